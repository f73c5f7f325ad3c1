"""CI2P as one layer, to stand in for the patch embedding of a Vision Transformer."""

import keras

from keras_ci2p.layers.analysis_transform import AnalysisTransform, check_images
from keras_ci2p.layers.patch_generator import PatchGenerator

# The compressor divides height and width by 16, the patch generator by 2.
PATCH_SIZE = 32


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PPatchEmbedding(keras.layers.Layer):
    """Compressor and patch generator: images to tokens, a quarter as many as 16x16 patches would give.

    Args:
        hidden_dim: Width of the tokens.
        compressor: An `AnalysisTransform`, its configuration as a dict, or None for the paper's (GDN, 128 and 192
            channels, randomly initialised). A built layer's weights are copied.
        freeze_compressor: Whether to keep the compressor from training; survives save and load.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 32.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Example:
        >>> keras_ci2p.layers.CI2PPatchEmbedding(192)(np.zeros((1, 64, 96, 3), "float32")).shape
        (1, 6, 192)
    """

    def __init__(self, hidden_dim, compressor=None, freeze_compressor=True, **kwargs):
        # autocast=False: the compressor takes pixel values in full precision.
        super().__init__(autocast=False, **kwargs)
        self.hidden_dim = hidden_dim
        dtype = self.dtype_policy
        self.compressor = make_compressor(compressor, freeze_compressor, dtype)
        self.patch_generator = PatchGenerator(hidden_dim, dtype=dtype, name="patch_generator")

    def build(self, input_shape):
        check_images(input_shape, PATCH_SIZE, self.name)
        if not self.compressor.built:
            self.compressor.build(input_shape)
        self.patch_generator.build(self.compressor.compute_output_shape(input_shape))

    def call(self, images, training=None):
        check_images(images.shape, PATCH_SIZE, self.name)
        return self.patch_generator(self.compressor(images), training=training)

    @property
    def freeze_compressor(self):
        return self.compressor.frozen

    @freeze_compressor.setter
    def freeze_compressor(self, value):
        self.compressor.frozen = value

    def compute_output_shape(self, input_shape):
        return self.patch_generator.compute_output_shape(self.compressor.compute_output_shape(input_shape))

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        config.update(
            hidden_dim=self.hidden_dim,
            compressor=compressor_config(self.compressor),
            freeze_compressor=self.freeze_compressor,
        )
        return config


def compressor_config(compressor):
    """What a model's configuration says of its compressor: a dict of plain values."""
    return {key: getattr(compressor, key) for key in ("architecture", "num_filters", "latent_channels", "origin")}


def make_compressor(compressor, frozen, dtype):
    """A new `AnalysisTransform` named "compressor", like `compressor` (layer, configuration or None).

    A built layer's weights are copied, so that one compressor can serve several models.
    """
    is_layer = isinstance(compressor, AnalysisTransform)
    if not is_layer and not isinstance(compressor, (dict, type(None))):
        raise ValueError(
            f"`compressor` must be an AnalysisTransform, its configuration or None. Received: compressor={compressor!r}"
        )
    config = compressor_config(compressor) if is_layer else compressor or {}
    copy = AnalysisTransform(**config, frozen=frozen, dtype=dtype, name="compressor")
    if is_layer and compressor.built:
        copy.build((None, None, None, 3))
        copy.copy_weights(compressor)
    return copy
