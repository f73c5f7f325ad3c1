"""The paper's optimizer and learning rate schedule (section 4.1)."""

import keras

# The paper's warm-up begins at a third of its learning rate of 1e-4, its cosine ends at 1.25e-6.
WARMUP_START = 1 / 3
FINAL_SHARE = 1.25e-6 / 1e-4


def make_optimizer(learning_rate, weight_decay, steps_per_epoch, epochs, warmup_epochs):
    """AdamW with a linear warm-up and a cosine down to an eightieth of `learning_rate`."""
    total = steps_per_epoch * epochs
    warmup = min(round(steps_per_epoch * warmup_epochs), total - 1)
    if warmup > 0:
        schedule = keras.optimizers.schedules.CosineDecay(
            learning_rate * WARMUP_START,
            decay_steps=total - warmup,
            alpha=FINAL_SHARE,
            warmup_target=learning_rate,
            warmup_steps=warmup,
        )
    else:
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps=total, alpha=FINAL_SHARE)
    return keras.optimizers.AdamW(schedule, weight_decay=weight_decay, epsilon=1e-8)
