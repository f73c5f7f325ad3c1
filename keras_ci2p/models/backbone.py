"""What the models share: a backbone that keeps its arguments, transformer encoders, and the compressor's part."""

import inspect
import warnings
from numbers import Integral, Real
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
from keras_ci2p.utils import renamed_names

__getattr__ = renamed_names(__name__, {"CI2PClassifier": "CompressorMixin"})


class ClassSignature:
    """What `inspect.signature` finds in a class, not in its instances: their signature is that of their `__call__`."""

    def __init__(self, signature):
        self._signature = signature

    def __get__(self, instance, owner):
        if instance is not None:
            raise AttributeError("__signature__")
        return self._signature


class Backbone(keras.Model):
    """A functional model, images to tokens, whose configuration is the arguments of its constructor.

    A subclass writes its arguments once, in the signature of its `__init__`: each but `dtype` and `name` becomes an
    attribute, unless the class has a property of that name, and all are in `get_config`.

    Args:
        inputs, outputs, name: As in `keras.Model`.
        dtype_policy: The policy of its layers.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # What `help` shows; else it is `__new__`'s.
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = ClassSignature(inspect.Signature(parameters))

    def __new__(cls, *args, **kwargs):
        # Keras records the arguments of a layer's constructor in the same place, but not those of functional models.
        model = super().__new__(cls)
        model.__dict__["_given"] = args, kwargs
        return model

    def __init__(self, inputs, outputs, dtype_policy, name):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.dtype_policy = dtype_policy
        args, kwargs = self.__dict__.pop("_given")
        call = inspect.signature(type(self)).bind(*args, **kwargs)
        call.apply_defaults()
        self._arguments = tuple(argument for argument in call.arguments if argument not in ("dtype", "name"))
        for argument in self._arguments:
            if not hasattr(type(self), argument):
                setattr(self, argument, plain_value(call.arguments[argument]))

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

    def load_pretrained(self, filepath, image_shape, keep=()):
        """Loads weights saved at `image_shape`; a position embedding is resized if that is not ours.

        Args:
            filepath: Weight file of a backbone of this class.
            image_shape: `(height, width, 3)` of that backbone.
            keep: Names of layers that keep the weights they have.
        """
        kept = {name: self.get_layer(name).get_weights() for name in keep}
        self._load_weights(filepath, image_shape)
        for name, weights in kept.items():
            self.get_layer(name).set_weights(weights)

    def _load_weights(self, filepath, image_shape):
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


def plain_value(value):
    """Returns an argument as Keras's layers and JSON take it: NumPy's numbers as Python's, a list as a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(plain_value(entry) for entry in value)
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


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


def compressor_layer(compressor, frozen, dtype):
    """Returns a new `AnalysisTransform` named "compressor" of what a model takes as its `compressor`.

    Args:
        compressor: A `Compressor`, its preset's name or directory, an `AnalysisTransform`, the latter's configuration
            as a dict, or None for the paper's, randomly initialised. Weights are copied.
        frozen: Whether to keep it from training.
        dtype: Its dtype policy.

    Raises:
        ValueError: Something else.
        keras_ci2p.presets.PresetError: No such preset, or one of another kind.
        OSError: A published compressor could not be downloaded.
    """
    if isinstance(compressor, (str, Path)):
        compressor = Compressor.from_preset(compressor)
    if isinstance(compressor, Compressor):
        compressor = compressor.analysis
    return make_compressor(compressor, frozen, dtype)


class CompressorMixin:
    """What models have whose first layers are `compressor` and `patch_generator`: backbones, classifiers, KerasHub's.

    Mixed in before a functional Keras model whose layers follow one another.
    """

    # Height and width of what a token stands for, in pixels.
    patch_size = PATCH_SIZE

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

    @property
    def latent_classifier(self):
        """The model after the compressor: latents `(batch, height / 16, width / 16, channels)` to logits.

        It shares the weights of this model, so training it on stored latents trains this model too.
        """
        if "_latent_classifier" not in self.__dict__:
            compressor, *rest = self.layers[1:]
            shape = compressor.compute_output_shape(self.input_shape)[1:]
            inputs = outputs = keras.Input(shape, dtype="float32", name="latents")
            for layer in rest:
                outputs = layer(outputs)
            # Past Keras's attribute tracking: these layers belong to this model already.
            self.__dict__["_latent_classifier"] = keras.Model(inputs, outputs, name="latent_classifier")
        return self.__dict__["_latent_classifier"]

    def call(self, inputs, training=None, mask=None):
        # Where the model takes any size, only the batch tells.
        check_images(inputs.shape, self.patch_size, self.name)
        return super().call(inputs, training=training, mask=mask)

    def get_config(self):
        config = super().get_config()
        # The layer has a dtype and a state besides. KerasHub's classifiers tell of the backbone instead.
        return {**config, "compressor": compressor_config(self.compressor)} if "compressor" in config else config

    # Latents and files of a compressor serve every model that holds it.
    _exact_groups = ("analysis_transform",)

    def _preset_metadata(self):
        # The preset with the synthesis transform: with it, reconstructions can be shown.
        name = (self.compressor.source or {}).get("name")
        return {"compressor": name} if name else {}

    def make_train_function(self, force=False):
        if self.train_function is None and self.freeze_compressor and self.compressor.is_randomly_initialized:
            warnings.warn(
                "Training with a compressor that is frozen at random weights. Load a trained compressor, or let it "
                "learn: `freeze_compressor=False`.",
                stacklevel=3,
            )
        return super().make_train_function(force)
