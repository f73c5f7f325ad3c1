"""CI2P-ViT (arXiv 2502.10120): a frozen image compressor and a patch generator in front of a Vision Transformer."""

import warnings
from pathlib import Path

import keras

from keras_ci2p.layers.analysis_transform import check_images
from keras_ci2p.layers.ci2p_patch_embedding import PATCH_SIZE, compressor_config, make_compressor
from keras_ci2p.layers.patch_generator import PatchGenerator
from keras_ci2p.models.backbone import Backbone
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.encoder import transformer_encoder
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.models.variants import transformer_sizes


class _CI2PParts:
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


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTBackbone(_CI2PParts, Backbone):
    """Images to tokens: compressor, patch generator, transformer blocks, norm.

    Args: As in `CI2PViT`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.
    """

    def __init__(
        self,
        image_shape=(256, 256, 3),
        hidden_dim=768,
        num_layers=12,
        num_heads=12,
        mlp_dim=3072,
        drop_path_rate=0.1,
        compressor=None,
        freeze_compressor=True,
        dtype=None,
        name="ci2p_vit_backbone",
    ):
        # === Layers ===
        check_images((None, *image_shape), PATCH_SIZE, type(self).__name__)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        compressor = compressor.analysis if isinstance(compressor, Compressor) else compressor
        compressor = make_compressor(compressor, freeze_compressor, policy)
        patch_generator = PatchGenerator(hidden_dim, dtype=policy, name="patch_generator")

        # === Functional model ===
        # A uint8 Input would silently truncate floats; this one accepts both.
        images = keras.Input(image_shape, dtype="float32", name="images")
        latents = compressor(images)
        tokens = patch_generator(latents)
        features = transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, policy)
        super().__init__(
            images,
            features,
            name,
            policy,
            image_shape=tuple(image_shape),
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            drop_path_rate=drop_path_rate,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "compressor": compressor_config(self.compressor),
            "freeze_compressor": self.freeze_compressor,
        }


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViT(_CI2PParts, ImageClassifier):
    """CI2P-ViT, the image classifier of arXiv 2502.10120.

    A frozen learned image compressor encodes the image to a sixteenth of its size, a small convolutional patch
    generator makes tokens of the latents, a Vision Transformer without class token and position embedding
    follows, and the mean of the tokens is classified.

    Layers by name: `compressor`, `patch_generator`, `block_0`, ..., `norm`, `pool`, `head`.

    Args:
        image_shape: `(height, width, 3)`; multiples of 32, or None for any size.
        num_classes: Number of classes.
        variant: Size of the transformer: "tiny", "small", "base", "large" or "base_8" (`VARIANTS`).
        freeze_compressor: Whether to keep the compressor from training; survives save and load.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 in the first (paper: 0.1).
        class_names: Names of the classes, or None.
        activation: Activation of the head, None for logits.
        hidden_dim, num_layers, num_heads, mlp_dim: In place of the variant's.
        compressor: A `Compressor` or `AnalysisTransform` whose weights are copied, the configuration of the latter as a
            dict, or None for the paper's (bmshj2018-factorized, 128 and 192 channels), randomly initialised.
        dtype: Dtype policy of the layers. The head computes in float32 under 16-bit policies.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, channels last.
    Output shape: `(batch, num_classes)`, logits.

    Raises:
        ValueError: A size that is no multiple of 32, wrong channels, unknown variant, `class_names` that do not fit
            `num_classes`.

    Example:
        >>> model = keras_ci2p.CI2PViT(variant="tiny", num_classes=3)
        >>> model(np.zeros((1, 256, 256, 3), "uint8")).shape
        (1, 3)
    """

    backbone_class = CI2PViTBackbone

    def __init__(
        self,
        image_shape=(256, 256, 3),
        num_classes=10,
        variant="base",
        freeze_compressor=True,
        drop_path_rate=0.1,
        class_names=None,
        activation=None,
        hidden_dim=None,
        num_layers=None,
        num_heads=None,
        mlp_dim=None,
        compressor=None,
        dtype=None,
        name="ci2p_vit",
    ):
        sizes = transformer_sizes(
            variant, hidden_dim=hidden_dim, num_layers=num_layers, num_heads=num_heads, mlp_dim=mlp_dim
        )
        backbone = CI2PViTBackbone(
            image_shape=image_shape,
            **sizes,
            drop_path_rate=drop_path_rate,
            compressor=compressor,
            freeze_compressor=freeze_compressor,
            dtype=dtype,
        )
        super().__init__(backbone, num_classes, class_names, activation, name=name)

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
