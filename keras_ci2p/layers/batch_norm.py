"""Batch normalisation over the last axis."""

import keras
from keras import ops

from keras_ci2p.layers.torch_kernels import batch_norm, on_torch


@keras.saving.register_keras_serializable(package="keras_ci2p")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of the last axis; on torch it trains by PyTorch's own kernel.

    Keras composes it of operations, of which PyTorch keeps two copies of the input for the gradient instead of one.

    Args:
        **kwargs: As in `keras.layers.BatchNormalization`, without `axis` and `renorm`.

    Input shape: `(batch, ..., channels)`, float. Output shape: the same.
    """

    def __init__(self, **kwargs):
        super().__init__(axis=-1, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not on_torch() or not training or not self.trainable or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        # 16-bit sums would overflow or round.
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        scale, offset = (None if weight is None else ops.cast(weight, x.dtype) for weight in (self.gamma, self.beta))
        outputs, *batch = batch_norm(x, scale, offset, self.epsilon)
        for moving, value in zip((self.moving_mean, self.moving_variance), batch, strict=True):
            moving.assign(moving * self.momentum + ops.cast(value, moving.dtype) * (1 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        for fixed in [key for key in config if key == "axis" or key.startswith("renorm")]:
            config.pop(fixed)
        return config
