"""Stochastic depth (arXiv 1603.09382)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ci2p")
class DropPath(keras.layers.Layer):
    """Drops the whole branch of a sample with probability `rate`, while training.

    What is kept is scaled by `1 / (1 - rate)`, so the expected value stays the same (timm's `DropPath`).

    Args:
        rate: Probability of dropping, in [0, 1).
        seed: Seed of the random draws, an integer or None.

    Input shape: `(batch, ...)`, float. Output shape: the same.
    """

    def __init__(self, rate=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None
        self.built = True

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        keep = 1 - self.rate
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        # float32: 16-bit uniform numbers are too coarse for small rates.
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) < keep
        # One pass over the inputs, where selecting takes three.
        return inputs * ops.cast(ops.cast(kept, "float32") / keep, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(rate=self.rate, seed=self.seed)
        return config
