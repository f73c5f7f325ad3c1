"""The patch generator of CI2P-ViT-ds: latents to as many tokens."""

import keras

from keras_ci2p.layers.inverted_residual import InvertedResidual
from keras_ci2p.layers.patch_generator import PatchGenerator


@keras.saving.register_keras_serializable(package="keras_ci2p")
class FinePatchGenerator(PatchGenerator):
    """Two inverted residual blocks turn each position of the latents into a token.

    Both expand the M channels of the latent to 4M, with a 3x3 kernel and stride 1; each adds its input where the widths
    agree: the second does if `hidden_dim` is M. Positions become tokens row by row.

    Args:
        hidden_dim: Width of the tokens.

    Input shape: `(batch, height, width, latent_channels)`, float.
    Output shape: `(batch, height * width, hidden_dim)`.
    """

    def build(self, input_shape):
        channels = input_shape[-1]
        dtype = self.dtype_policy
        self.refine = InvertedResidual(channels, 4 * channels, 3, dtype=dtype, name="refine")
        self.reduce = InvertedResidual(self.hidden_dim, 4 * channels, 3, dtype=dtype, name="reduce")
        self.refine.build(input_shape)
        self.reduce.build(input_shape)

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        tokens = None if height is None or width is None else height * width
        return (batch, tokens, self.hidden_dim)
