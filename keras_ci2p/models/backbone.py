"""What all backbones share: configuration, compressor, transformer encoders."""

import warnings
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.layers.compression_transforms import check_images
from keras_ci2p.layers.embedding import (
    PATCH_SIZE,
    PositionEmbedding,
    compressor_config,
    make_compressor,
    resize_position_embedding,
)
from keras_ci2p.layers.transformer import LAYER_NORM_EPSILON, LeFFBlock, PatchMerging, TransformerBlock
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import ImageClassifier


class Backbone(keras.Model):
    """A functional model, images to tokens, that keeps its constructor's arguments.

    Args:
        inputs, outputs, name: As in `keras.Model`.
        dtype_policy: The policy of its layers.
        **config: The other arguments of the subclass's constructor; each becomes an attribute.
    """

    def __init__(self, inputs, outputs, name, dtype_policy, **config):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.dtype_policy = dtype_policy
        self._arguments = tuple(config)
        for argument, value in config.items():
            setattr(self, argument, value)

    def get_config(self):
        arguments = {argument: getattr(self, argument) for argument in self._arguments}
        return {"name": self.name, **arguments, "dtype": self._dtype_config()}

    def _dtype_config(self):
        """The name of the policy; of a quantised model, a serialised `DTypePolicyMap` of its layers by path."""
        policy = self.dtype_policy
        if not isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            quantised = {layer.path: layer.dtype_policy for layer in self._flatten_layers() if layer.quantization_mode}
            if not quantised:
                return policy.name
            policy = keras.dtype_policies.DTypePolicyMap(policy.name, quantised)
        return keras.dtype_policies.serialize(policy)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def load_pretrained(self, filepath, image_shape):
        """Loads weights saved at `image_shape`; a position embedding is resized if that is not ours."""
        has_positions = any(isinstance(layer, PositionEmbedding) for layer in self.layers)
        if not has_positions or tuple(image_shape) == self.image_shape:
            self.load_weights(filepath)
            return
        source = self.from_config({**self.get_config(), "image_shape": tuple(image_shape)})
        source.load_weights(filepath)
        for layer, source_layer in zip(self.layers, source.layers, strict=True):
            weights = source_layer.get_weights()
            if isinstance(layer, PositionEmbedding):
                weights = [resize_position_embedding(weights[0], source_layer.grid, layer.grid)]
            layer.set_weights(weights)


def transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, dtype):
    """`num_layers` transformer blocks and a closing norm over `tokens`, a symbolic `(batch, tokens, hidden_dim)`.

    The stochastic depth rate rises linearly from 0 in the first block to `drop_path_rate` in the last.
    Layer names: `block_0`, `block_1`, ..., `norm`.
    """
    for i, rate in enumerate(_drop_path_rates(drop_path_rate, num_layers)):
        tokens = TransformerBlock(num_heads, mlp_dim, drop_path_rate=rate, dtype=dtype, name=f"block_{i}")(tokens)
    return _norm(dtype)(tokens)


def dual_scale_encoder(tokens, grid, hidden_dim, num_layers, num_heads, mlp_dim, merge_at, drop_path_rate, dtype):
    """`num_layers` LeFF blocks over `tokens`, a symbolic `(batch, rows * columns, early_dim)`, and a closing norm.

    Before block `merge_at` the tokens of the `grid` are merged into a quarter as many, `hidden_dim` wide. The blocks
    before it have the head width and the MLP ratio of those after it. Stochastic depth as in `transformer_encoder`; the
    merge is not dropped.
    Layer names: `block_0`, `block_1`, ..., in between `merge`, at the end `norm`.
    """
    for i, rate in enumerate(_drop_path_rates(drop_path_rate, num_layers)):
        if i == merge_at:
            merge = PatchMerging(hidden_dim, grid, dtype=dtype, name="merge")
            tokens, grid = merge(tokens), merge.merged_grid
        width = tokens.shape[-1]
        heads, hidden = width * num_heads // hidden_dim, width * mlp_dim // hidden_dim
        tokens = LeFFBlock(heads, hidden, grid, drop_path_rate=rate, dtype=dtype, name=f"block_{i}")(tokens)
    return _norm(dtype)(tokens)


def _drop_path_rates(last, num_layers):
    return np.linspace(0, last, num_layers).tolist()


def _norm(dtype):
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name="norm")


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
