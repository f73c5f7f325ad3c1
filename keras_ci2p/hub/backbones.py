"""The backbones as KerasHub's: the graphs and configurations of `keras_ci2p.models`, with its loading and saving."""

from keras_ci2p import models
from keras_ci2p.hub.kerashub import keras_hub, register
from keras_ci2p.layers.ci2p_patch_embedding import compressor_config
from keras_ci2p.models.ci2p_classifier import CI2PParts
from keras_ci2p.presets.directory import complete_metadata

# What KerasHub's base class and the compressor itself tell of a configuration.
_TOLD_OTHERWISE = ("name", "dtype", "compressor", "freeze_compressor")


class HubBackbone(CI2PParts, keras_hub.models.Backbone):
    """Base class: a `keras_hub.models.Backbone` over the functional graph of a `core_class` of ours.

    Args:
        dtype: Dtype policy of the layers; with a `DTypePolicyMap`, each layer's own.
        name, trainable: As in `keras.Model`.
        **arguments: Of the `core_class`.
    """

    core_class = None

    def __init__(self, dtype=None, name=None, trainable=True, **arguments):
        core = self.core_class(dtype=dtype, **arguments)
        super().__init__(inputs=core.input, outputs=core.output, dtype=dtype, name=name, trainable=trainable)

        # === Config ===
        self._arguments = [argument for argument in core.get_config() if argument not in _TOLD_OTHERWISE]
        for argument in self._arguments:
            setattr(self, argument, getattr(core, argument))

    def get_config(self):
        return {
            **super().get_config(),
            **{argument: getattr(self, argument) for argument in self._arguments},
            "compressor": compressor_config(self.compressor),
            "freeze_compressor": self.freeze_compressor,
        }

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves the backbone as a preset that `keras_ci2p` reads as well.

        Args:
            preset_dir: Directory to write to.
            max_shard_size: Largest size of a weight file in GB; None for a single file.
        """
        super().save_to_preset(preset_dir, max_shard_size=max_shard_size)
        complete_metadata(preset_dir)

    def default_lora_layer_names(self):
        return ["qkv"]


@register
class CI2PViTBackbone(HubBackbone):
    """`keras_ci2p.CI2PViTBackbone` as a KerasHub backbone: images to tokens.

    Args: As in `keras_ci2p.CI2PViTBackbone`, and `trainable`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255, channels last.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Example:
        >>> backbone = keras_ci2p.hub.CI2PViTBackbone(image_shape=(64, 64, 3), num_layers=2)
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 768)
    """

    core_class = models.CI2PViTBackbone


@register
class CI2PViTDualScaleBackbone(HubBackbone):
    """`keras_ci2p.CI2PViTDualScaleBackbone` as a KerasHub backbone: images to tokens.

    Args: As in `keras_ci2p.CI2PViTDualScaleBackbone`, and `trainable`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255, channels last.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.
    """

    core_class = models.CI2PViTDualScaleBackbone
