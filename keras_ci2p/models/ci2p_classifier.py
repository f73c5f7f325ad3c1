"""What the CI2P-ViT models share: a compressor, usually frozen, and a patch generator in front of a transformer."""

import warnings
from pathlib import Path

import keras

from keras_ci2p.layers.analysis_transform import check_images
from keras_ci2p.layers.ci2p_patch_embedding import PATCH_SIZE, compressor_config, make_compressor
from keras_ci2p.models.backbone import Backbone
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import ImageClassifier


def model_compressor(compressor, frozen, dtype):
    """`make_compressor`, which takes a `Compressor` too."""
    compressor = compressor.analysis if isinstance(compressor, Compressor) else compressor
    return make_compressor(compressor, frozen, dtype)


class CI2PParts:
    """Access by name to the parts that backbone and classifier share."""

    size_multiple = PATCH_SIZE

    @property
    def compressor(self):
        """The `AnalysisTransform`; `compressor.encode(images)` gives latents."""
        return self.get_layer("compressor")

    @property
    def patch_generator(self):
        """The `PatchGenerator`, latents to tokens."""
        return self.get_layer("patch_generator")

    @property
    def freeze_compressor(self):
        """Whether the compressor is kept from training. After a change, compile the model again."""
        return self.compressor.frozen

    @freeze_compressor.setter
    def freeze_compressor(self, value):
        self.compressor.frozen = value

    def call(self, inputs, training=None, mask=None):
        # Where the model takes any size, only the batch tells.
        check_images(inputs.shape, self.size_multiple, self.name)
        return super().call(inputs, training=training, mask=mask)


class CI2PBackbone(CI2PParts, Backbone):
    """Base class: its layers `compressor` and `patch_generator` make the tokens."""

    def get_config(self):
        return {
            **super().get_config(),
            "compressor": compressor_config(self.compressor),
            "freeze_compressor": self.freeze_compressor,
        }


class CI2PClassifier(CI2PParts, ImageClassifier):
    """Base class: an `ImageClassifier` over a `CI2PBackbone`, whose layers follow one another."""

    @classmethod
    def from_preset(
        cls, preset, num_classes=None, load_weights=True, image_shape=None, dtype=None, compressor=None, **arguments
    ):
        """The model of a preset.

        Args:
            preset, num_classes, load_weights, image_shape, dtype, **arguments: As in `ViT.from_preset`.
            compressor: A `Compressor`, or its preset's name or directory, in place of the preset's own. Where the
                preset has weights, the latents must have as many channels as its own.

        Raises:
            keras_ci2p.presets.PresetError: Unknown name, missing, truncated or foreign file, another kind of model.
            OSError: A published compressor could not be downloaded.
        """
        overrides = {"image_shape": image_shape, "dtype": dtype, **arguments}
        if compressor is None:
            return cls._from_preset(preset, num_classes, load_weights, **overrides)
        if isinstance(compressor, (str, Path)):
            compressor = Compressor.from_preset(compressor)
        model = cls._from_preset(preset, num_classes, load_weights, compressor=compressor, **overrides)
        # Again, since the preset's weights hold its own compressor.
        model.compressor.copy_weights(compressor.analysis)
        return model

    @property
    def latent_classifier(self):
        """The model after the compressor: latents `(batch, height / 16, width / 16, channels)` to logits.

        It shares the weights of this model, so training it on stored latents trains this model too.
        """
        if "_latent_classifier" not in self.__dict__:
            compressor, *rest = self.layers[1:]
            shape = compressor.compute_output_shape((None, *self.image_shape))[1:]
            inputs = outputs = keras.Input(shape, dtype="float32", name="latents")
            for layer in rest:
                outputs = layer(outputs)
            # Past Keras's attribute tracking: these layers belong to this model already.
            self.__dict__["_latent_classifier"] = keras.Model(inputs, outputs, name="latent_classifier")
        return self.__dict__["_latent_classifier"]

    # Latents and files of a compressor serve every model that holds it.
    _exact_groups = ("analysis_transform",)

    def _preset_metadata(self):
        # The preset with the synthesis transform: with it, reconstructions can be shown.
        origin = self.compressor.origin
        return {"compressor": origin["name"]} if origin else {}

    def make_train_function(self, force=False):
        if self.train_function is None and self.freeze_compressor and self.compressor.is_randomly_initialized:
            warnings.warn(
                "Training with a compressor that is frozen at random weights. Load a trained compressor, or let it "
                "learn: `freeze_compressor=False`.",
                stacklevel=3,
            )
        return super().make_train_function(force)
