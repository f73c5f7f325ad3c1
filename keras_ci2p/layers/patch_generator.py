"""The patch generator of CI2P (paper section 3.2): latents to tokens."""

import keras
from keras import ops

from keras_ci2p.layers.inverted_residual import InvertedResidual


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PatchGenerator(keras.layers.Layer):
    """Two inverted residual blocks turn latents into a quarter as many tokens.

    The first keeps the M channels of the latent (expanded to 4M, 3x3, with residual), the second goes to
    `hidden_dim` at half the size (expanded to 6M, 5x5, stride 2). Positions become tokens row by row.

    Args:
        hidden_dim: Width of the tokens.

    Input shape: `(batch, height, width, latent_channels)`, float.
    Output shape: `(batch, ceil(height / 2) * ceil(width / 2), hidden_dim)`.
    """

    def __init__(self, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim

    def build(self, input_shape):
        channels = input_shape[-1]
        dtype = self.dtype_policy
        self.refine = InvertedResidual(channels, 4 * channels, 3, dtype=dtype, name="refine")
        self.reduce = InvertedResidual(self.hidden_dim, 6 * channels, 5, strides=2, dtype=dtype, name="reduce")
        self.refine.build(input_shape)
        self.reduce.build(input_shape)

    def call(self, latents, training=None):
        x = self.reduce(self.refine(latents, training=training), training=training)
        _, height, width, _ = x.shape
        tokens = -1 if height is None or width is None else height * width
        return ops.reshape(x, (ops.shape(x)[0], tokens, self.hidden_dim))

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else (s + 1) // 2 for s in input_shape[1:3])
        tokens = None if height is None or width is None else height * width
        return (input_shape[0], tokens, self.hidden_dim)

    def get_config(self):
        config = super().get_config()
        config.update(hidden_dim=self.hidden_dim)
        return config
