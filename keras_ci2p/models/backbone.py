"""What the models share: a backbone that keeps its arguments, transformer encoders, and the compressor's part."""

import contextlib
import gc
import inspect
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self, TypeAlias

import keras
import numpy as np

from keras_ci2p.layers.compression_transforms import DOWNSAMPLING, AnalysisTransform
from keras_ci2p.layers.core import Dense, LayerNormalization, check_images
from keras_ci2p.layers.embedding import (
    PATCH_SIZE,
    PatchGenerator,
    PositionEmbedding,
    compressor_config,
    make_compressor,
    resize_position_embedding,
)
from keras_ci2p.layers.transformer import LAYER_NORM_EPSILON, LeFFBlock, PatchMerging, TransformerBlock
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.names import DUAL_SCALE_VARIANTS, renamed_names
from keras_ci2p.presets import freeze_as, frozen_config
from keras_ci2p.utils import Mixin, PathLike, Shape, Tensor, without_arrays

# What a model takes as its `compressor`; `compressor_layer` tells. A dict configures an `AnalysisTransform`.
CompressorLike: TypeAlias = Compressor | AnalysisTransform | PathLike | dict[str, Any]

__getattr__ = renamed_names(__name__, {"CI2PClassifier": "CompressorMixin"})


@contextlib.contextmanager
def _only_new_garbage():
    """A context in which garbage is looked for among new objects alone, as Keras does for each weight it removes."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class ClassSignature:
    """What `inspect.signature` finds in a class, not in its instances: their signature is that of their `__call__`."""

    def __init__(self, signature):
        self._signature = signature

    def __get__(self, instance, owner):
        if instance is not None:
            raise AttributeError("__signature__")
        return self._signature


class FixedGraph(Mixin):
    """Mixed into functional models whose layers were made of arguments: what cannot change them cannot be assigned.

    Configurations keep what is frozen, as those of Keras's functional models do.
    """

    def _fix(self, arguments):
        """Lets none of the `arguments` be assigned from now on, unless there is a property that does it."""
        self.__dict__["_fixed"] = frozenset(arguments) - {"dtype", "name"}

    def __setattr__(self, name, value):
        attribute: Any = getattr(type(self), name, None)
        is_property = isinstance(attribute, property)
        # PyTorch's modules would take a layer under the name of any property, and nobody would ask for it.
        if (attribute.fset is None) if is_property else name in self.__dict__.get("_fixed", ()):
            raise AttributeError(
                f"`{name}` of a {type(self).__name__} cannot be assigned, since its layers are made already. Make a "
                "model with another as an argument (`num_classes` for another head, `compressor`, ...), also of "
                "`from_preset`."
            )
        super().__setattr__(name, value)

    def quantize(self, mode: str, config: Any = None) -> None:
        """Quantises the transformer's products after training, by `keras.Model.quantize`.

        These are the weights of the attention and of the MLPs, most of the model; compressor, patch generator and head
        stay as they are. Inference only: integers do not learn. Saved presets load as they were saved.

        Args:
            mode: "int8": weights in eight bits, a scale for each output channel, and each token rounded likewise
                when it is multiplied.
            config: None, or a `keras.quantizers.Int8QuantizationConfig` that rounds tokens as that: a preset could
                not tell of another way.

        Raises:
            ValueError: Another mode or way to round tokens, or a model that is quantised already.
        """
        # Keras itself gives a `config` where there is none.
        rounding = config.activation_quantizer
        if mode != "int8" or not rounding or rounding.get_config() != keras.quantizers.AbsMaxQuantizer().get_config():
            raise ValueError(
                "`mode` must be int8, with the tokens rounded by `AbsMaxQuantizer()`. "
                f"Received: mode={mode!r}, config={config}"
            )
        if any(layer.quantization_mode for layer in self._flatten_layers()):
            raise ValueError(f"{self.name} is quantised already.")
        with _only_new_garbage():
            # Keras leaves subclasses of its Dense alone unless told not to; ours computes the same.
            super().quantize(mode, config, filters=lambda layer: isinstance(layer, Dense), type_check=False)

    def get_config(self) -> dict[str, Any]:
        return {**self._constructor_config(), **frozen_config(self)}

    def _constructor_config(self):
        return super().get_config()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return freeze_as(config, super().from_config)


class Backbone(FixedGraph, keras.Model):
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
        call = inspect.signature(cls).bind(*args, **kwargs)
        call.apply_defaults()
        _check_numbers(call.arguments)
        model = super().__new__(cls)
        model.__dict__["_given"] = call.arguments
        return model

    def __init__(
        self, inputs: keras.KerasTensor, outputs: keras.KerasTensor, dtype_policy: keras.DTypePolicy, name: str
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.dtype_policy = dtype_policy
        given = self.__dict__.pop("_given")
        self._arguments = tuple(argument for argument in given if argument not in ("dtype", "name"))
        for argument in self._arguments:
            if not hasattr(type(self), argument):
                setattr(self, argument, without_arrays(given[argument]))
        self._fix(self._arguments)

    def _constructor_config(self):
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

    def load_pretrained(self, filepath: PathLike, image_shape: Shape, keep: Iterable[str] = ()) -> None:
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
        copy_resized(self, source)


def copy_resized(model, source):
    """Gives a model the weights of one for images of another size; a position embedding is resized."""
    for layer, source_layer in zip(model.layers, source.layers, strict=True):
        weights = source_layer.get_weights()
        if isinstance(layer, PositionEmbedding):
            weights = [resize_position_embedding(weights[0], source_layer.grid, layer.grid)]
        layer.set_weights(weights)


_SIZES = {"patch_size"}.union(*DUAL_SCALE_VARIANTS.values())


def _check_numbers(arguments):
    """Raises ValueError for sizes that are no positive integers, and a rate that is none."""
    for name in _SIZES & set(arguments):
        value = arguments[name]
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    rate = arguments.get("drop_path_rate", 0)
    if not isinstance(rate, Real) or not 0 <= float(rate) < 1:
        raise ValueError(f"`drop_path_rate` must be in [0, 1). Received: drop_path_rate={rate!r}")


def check_image_shape(image_shape, multiple, receiver):
    """Returns the `image_shape` of a model as a tuple; ValueError unless it is `(height, width, 3)` as it takes it."""
    shape = without_arrays(image_shape)
    is_shape = isinstance(shape, tuple) and len(shape) == 3 and shape[2] == 3
    if not is_shape or any(size is not None and type(size) is not int for size in shape):
        raise ValueError(
            f"`image_shape` must be (height, width, 3), integers, channels last. Received: image_shape={image_shape!r}"
        )
    check_images((None, *shape), multiple, receiver)
    return shape


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
    return LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name="norm")


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


class CompressorMixin(Mixin):
    """What models have whose first layers are `compressor` and `patch_generator`: backbones, classifiers, KerasHub's.

    Mixed in before a functional Keras model whose layers follow one another.
    """

    # Height and width of what a token stands for, in pixels.
    patch_size = PATCH_SIZE

    @property
    def compressor(self) -> AnalysisTransform:
        """The `AnalysisTransform`; `compressor.encode(images)` gives latents."""
        return self.get_layer("compressor")

    @property
    def patch_generator(self) -> PatchGenerator:
        """The `PatchGenerator`, latents to tokens."""
        return self.get_layer("patch_generator")

    @property
    def freeze_compressor(self) -> bool:
        """Whether the compressor is kept from training. After a change, compile the model again."""
        return self.compressor.frozen

    @freeze_compressor.setter
    def freeze_compressor(self, value: bool) -> None:
        self.compressor.frozen = value

    @property
    def latent_classifier(self) -> "LatentClassifier":
        """The model after the compressor: latents `(batch, height / 16, width / 16, channels)` to logits.

        It shares the weights of this model, so training it on stored latents trains this model too.
        """
        if "_latent_classifier" not in self.__dict__:
            # Past Keras's attribute tracking: these layers belong to this model already.
            self.__dict__["_latent_classifier"] = self._after_compressor(self.input_shape)
        return self.__dict__["_latent_classifier"]

    def latent_classifier_of(self, grid: tuple[int, int]) -> "LatentClassifier":
        """The `latent_classifier` for latents of any grid, as those of images of another size.

        It shares the weights too; but where there is a position embedding, it is a copy of them in which that is
        resized, made at each call.

        Args:
            grid: `(rows, columns)`, even numbers.
        """
        image_shape = (*(DOWNSAMPLING * side for side in grid), 3)
        if self.input_shape[1:] in (image_shape, (None, None, 3)):
            return self.latent_classifier
        if any(isinstance(layer, PositionEmbedding) for layer in self.layers):
            copy = type(self).from_config({**self.get_config(), "image_shape": image_shape})
            copy_resized(copy, self)
            return copy.latent_classifier
        if "_any_latent_classifier" not in self.__dict__:
            self.__dict__["_any_latent_classifier"] = self._after_compressor((None, None, None, 3))
        return self.__dict__["_any_latent_classifier"]

    def _after_compressor(self, input_shape):
        compressor, *rest = self.layers[1:]
        shape = compressor.compute_output_shape(input_shape)[1:]
        inputs = outputs = keras.Input(shape, dtype="float32", name="latents")
        for layer in rest:
            outputs = layer(outputs)
        classifier = LatentClassifier(inputs, outputs, name="latent_classifier")
        classifier.__dict__["_compressor"] = compressor
        return classifier

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        # In a dict or a list too, as functional models take them. Where ours takes any size, only the batch tells.
        for images in keras.tree.flatten(inputs):
            check_images(images.shape, self.patch_size, self.name)
        return super().call(inputs, training=training, mask=mask)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # The layer has a dtype and a state besides. KerasHub's classifiers tell of the backbone instead.
        return {**config, "compressor": compressor_config(self.compressor)} if "compressor" in config else config

    # Latents and files of a compressor serve every model that holds it.
    _exact_groups: tuple[str, ...] = ("analysis_transform",)

    def _preset_metadata(self):
        # The preset with the synthesis transform: with it, reconstructions can be shown.
        name = (self.compressor.source or {}).get("name")
        return {"compressor": name} if name else {}


@keras.saving.register_keras_serializable(package="keras_ci2p")
class LatentClassifier(keras.Model):
    """Latents to logits: a functional model that knows, until it is saved, the compressor that it goes with."""

    def call(self, inputs, training=None, mask=None):
        if "_compressor" in self.__dict__:
            self.__dict__["_compressor"].check_training(inputs, training)
        return super().call(inputs, training=training, mask=mask)
