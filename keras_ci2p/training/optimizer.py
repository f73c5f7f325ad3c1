"""The optimizer of a recipe."""

from keras_ci2p.training.fused_adamw import adamw
from keras_ci2p.training.schedule import WarmupCosine


def make_optimizer(recipe, steps_per_epoch):
    """AdamW with warm-up and cosine.

    Args:
        recipe: `Recipe`.
        steps_per_epoch: Batches of an epoch.
    """
    # At least one step with the full learning rate, however short the run.
    warmup_epochs = min(recipe.warmup_epochs, recipe.epochs - 1 / steps_per_epoch)
    schedule = WarmupCosine(
        recipe.learning_rate,
        steps_per_epoch,
        warmup_epochs,
        recipe.cosine_epochs or recipe.epochs - warmup_epochs,
        warmup_start=recipe.warmup_start,
        final=recipe.final_learning_rate,
        by_epoch=recipe.cosine_steps == "epoch",
    )
    return adamw(
        schedule,
        weight_decay=recipe.weight_decay,
        beta_1=recipe.beta_1,
        beta_2=recipe.beta_2,
        epsilon=recipe.epsilon,
        global_clipnorm=recipe.clip_norm,
        gradient_accumulation_steps=recipe.accumulate if recipe.accumulate > 1 else None,
        use_ema=recipe.ema > 0,
        # Keras averages after every batch, also where only each n-th changes the weights.
        ema_momentum=recipe.ema ** (1 / recipe.accumulate) if recipe.ema else 0.99,
    )
