"""The learning rate over the steps of a run."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ci2p")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up, step by step, then a cosine (paper section 4.1; mmengine's LinearLR and CosineAnnealingLR).

    The warm-up reaches `learning_rate` in its last step. The cosine is at its lowest after `cosine_epochs`, and rises
    again if training goes on.

    Args:
        learning_rate: The highest.
        steps_per_epoch: Steps of an epoch.
        warmup_epochs, cosine_epochs: Lengths; the warm-up's may be 0.
        warmup_start, final: Shares of `learning_rate` where the warm-up begins and the cosine ends.
        by_epoch: Whether the cosine keeps its value through each epoch.
    """

    def __init__(
        self,
        learning_rate,
        steps_per_epoch,
        warmup_epochs,
        cosine_epochs,
        warmup_start=1 / 3,
        final=0.0125,
        by_epoch=True,
    ):
        super().__init__()
        self.learning_rate = learning_rate
        self.steps_per_epoch = steps_per_epoch
        self.warmup_epochs = warmup_epochs
        self.cosine_epochs = cosine_epochs
        self.warmup_start = warmup_start
        self.final = final
        self.by_epoch = by_epoch

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warmup_steps = round(self.warmup_epochs * self.steps_per_epoch)
        rising = self.warmup_start + (1 - self.warmup_start) * step / max(warmup_steps - 1, 1)
        epoch = (step - warmup_steps) / self.steps_per_epoch
        if self.by_epoch:
            # A step's own rounding must not move it to the epoch before.
            epoch = ops.floor(epoch + 0.5 / self.steps_per_epoch)
        cosine = (1 + ops.cos(math.pi * epoch / self.cosine_epochs)) / 2
        falling = self.final + (1 - self.final) * cosine
        return self.learning_rate * ops.where(step < warmup_steps, rising, falling)

    def get_config(self):
        names = "learning_rate steps_per_epoch warmup_epochs cosine_epochs warmup_start final by_epoch"
        return {name: getattr(self, name) for name in names.split()}
