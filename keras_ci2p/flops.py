"""Counts multiply-accumulates (MACs) and parameters of a model."""

import contextlib
import math
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_ci2p.layers.compression_layers import GDN, EntropyBottleneck
from keras_ci2p.layers.embedding import PositionEmbedding


@dataclass(frozen=True)
class PartCount:
    """What a part of a model, or all of it, takes for one image.

    Attributes:
        macs: Multiply-accumulates of a prediction: convolutions, dense layers, GDN's product, both products of
            attention.
        paper_flops: What the paper calls FLOPs: the same, and the norms and averages, about 0.1 %.
        training: Multiply-accumulates of a training step. A frozen layer takes its forward pass once; behind trained
            ones twice, since their gradients pass through it; all else thrice.
    """

    macs: int
    paper_flops: int
    training: int


@dataclass(frozen=True)
class MacCount(PartCount):
    """What a model takes for one image.

    Attributes:
        macs, paper_flops, training: As in `PartCount`.
        parts: `PartCount` by the part's name; parts that take nothing are left out.
        image_shape: `(height, width, channels)`.
    """

    parts: dict
    image_shape: tuple

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON can hold them."""
        return {**asdict(self), "image_shape": list(self.image_shape)}


def count_macs(model: keras.Model | keras.Layer, image_shape: tuple[int, ...] | None = None) -> MacCount:
    """Counts the multiply-accumulates of a model from its own layers; nothing is computed.

    The model is called with a tensor that has only a shape. Layers with a kernel are counted from it and the shapes
    that they meet, others are looked into. Blocks and closing norm are one part, "transformer", pooling belongs to the
    "head"; the other parts are the model's layers by name.

    Args:
        model: A classifier, a `Compressor`, or any built Keras model or layer with one input, made of layers known here
            and functions of `keras.ops`. Its trainable weights decide what a training step takes.
        image_shape: Shape of the input without the batch, such as `(256, 256, 3)`; None for the model's own.

    Returns:
        `MacCount`.

    Raises:
        ValueError: No `image_shape` for a model that takes any size, or one that the model does not take; a layer with
            weights, or an operation, that cannot be counted.

    Examples:
        >>> keras_ci2p.count_macs(keras_ci2p.CI2PViT((64, 64, 3), variant="tiny")).macs / 1e9
        0.2...
    """
    shape = _input_shape(model, image_shape)
    counter = _Counter()
    with symbolic_calls(counter.visit):
        counter.visit(model, keras.KerasTensor((1, *shape), dtype="float32"))
    parts = {name: PartCount(**part) for name, part in counter.parts.items() if part["paper_flops"]}
    total = {key: sum(getattr(part, key) for part in parts.values()) for key in ("macs", "paper_flops", "training")}
    return MacCount(**total, parts=parts, image_shape=shape)


def part_name(layer_name):
    """The part of a model that its layer belongs to."""
    if layer_name == "norm" or layer_name.startswith("block_"):
        return "transformer"
    return "head" if layer_name == "pool" else layer_name


def _input_shape(model, image_shape):
    # A model that is no graph of layers, or a layer, does not tell.
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise ValueError(f"count_macs takes models with one input. {model.name} has {len(inputs)}.")
    own = tuple(inputs[0].shape[1:]) if inputs else (None,) * len(image_shape or [None])
    shape = own if image_shape is None else tuple(image_shape)
    if None in shape:
        raise ValueError(f"{model.name} takes any size: give `image_shape`. Received: image_shape={image_shape}")
    if len(shape) != len(own) or any(side not in (None, given) for side, given in zip(own, shape, strict=True)):
        raise ValueError(
            f"{model.name} takes inputs of the shape {own}; make or load it with another `image_shape`. "
            f"Received: image_shape={shape}"
        )
    return shape


@dataclass
class _Opened:
    """A layer that is being looked into.

    Attributes:
        layer: The layer.
        accounted: Ids of the weights of the layers found in it.
        multiplies: Whether it multiplies with weights of its own.
    """

    layer: keras.Layer
    accounted: set = field(default_factory=set)
    multiplies: bool = False


class _Counter:
    """Adds up the work of all calls, in their order.

    Attributes:
        parts: dict of `PartCount`'s numbers by part.
    """

    def __init__(self):
        self.parts = {}
        self._opened = []
        self._gradients_pass = False

    def visit(self, operation, *args, **kwargs):
        """Takes the place of a call: shapes in, shapes out."""
        rule = rule_of(operation)
        if isinstance(operation, keras.Layer):
            if not operation.built:
                raise ValueError(f"count_macs takes built models. {operation.name} is not built: call it once.")
            if rule is None:
                return self._look_into(operation, args, kwargs)
        outputs = operation.compute_output_spec(*args, **kwargs)
        if rule is not None:
            operands = [x for x in keras.tree.flatten((args, kwargs)) if hasattr(x, "shape")]
            self._add(operation, operands, rule(operation, operands, outputs))
        return outputs

    def _look_into(self, layer, args, kwargs):
        self._opened.append(_Opened(layer))
        outputs = layer.call(*args, **kwargs)
        opened = self._opened.pop()
        unknown = [weight.path for weight in layer.weights if id(weight) not in opened.accounted]
        if unknown and not opened.multiplies:
            raise ValueError(
                f"count_macs does not know what {layer.name} ({type(layer).__name__}) multiplies with its weights "
                f"{', '.join(unknown)}."
            )
        self._account_for(layer)
        return outputs

    def _account_for(self, layer):
        if self._opened:
            self._opened[-1].accounted.update(map(id, layer.weights))

    def _add(self, operation, operands, work):
        if isinstance(operation, keras.Layer):
            owner = operation
            self._account_for(operation)
        else:
            # Of two tensors, one can be a weight of the layer around.
            with_weights = work.macs and not all(isinstance(x, keras.KerasTensor) for x in operands)
            owner = self._opened[-1].layer if with_weights else None
            self._opened[-1].multiplies |= bool(with_weights)
        path = [opened.layer.name for opened in self._opened[1:]] + [operation.name]
        part = self.parts.setdefault(part_name(path[0]), {"macs": 0, "paper_flops": 0, "training": 0})
        part["macs"] += work.macs
        part["paper_flops"] += work.macs + work.extra
        part["training"] += work.macs * self._passes(owner)

    def _passes(self, owner):
        """How often a training step does the work of a forward pass with the weights of `owner`, None for none."""
        if owner is not None and owner.trainable_weights:
            self._gradients_pass = True
            return 3
        if not self._gradients_pass:
            return 1
        return 3 if owner is None else 2


class Work(NamedTuple):
    """What one call takes.

    Attributes:
        macs: Multiply-accumulates of its products.
        extra: What the paper's tool counts besides, for norms and averages.
    """

    macs: int = 0
    extra: int = 0


def rule_of(operation):
    """Returns the function `(operation, inputs, output) -> Work` of a layer or a `keras.ops` operation, inputs and
    output with a `shape`; None for others: layers to look into, and functions without products.
    """
    if isinstance(operation, layers.Layer):
        return next((_RULES[kind] for kind in type(operation).__mro__ if kind in _RULES), None)
    return _RULES.get(type(operation).__name__)


def _positions(x, layer):
    """Entries of `x` besides its channels."""
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return math.prod(x.shape) // x.shape[-1 if last else 1]


def _kernel_on_output(layer, inputs, output):
    return Work(_positions(output, layer) * math.prod(layer.kernel.shape))


def _kernel_on_input(layer, inputs, output):
    return Work(_positions(inputs[0], layer) * math.prod(layer.kernel.shape))


def _gdn(layer, inputs, output):
    return Work(_positions(output, layer) * math.prod(layer.gamma.shape))


def _entropy_bottleneck(layer, inputs, output):
    """The small network of each channel, at both ends of each value's unit interval."""
    return Work(2 * math.prod(inputs[0].shape) * sum(math.prod(matrix.shape[1:]) for matrix in layer.matrices))


def _matmul(operation, inputs, output):
    return Work(math.prod(output.shape) * inputs[0].shape[-1])


def _attention(operation, inputs, output):
    """Queries with keys, weights with values."""
    batch, queries, heads, width = inputs[0].shape
    return Work(2 * batch * heads * queries * inputs[1].shape[1] * width)


def _per_entry(count):
    return lambda operation, inputs, output: Work(extra=count * math.prod(inputs[0].shape))


def _refuse(operation, inputs, output):
    """Of functions that have products but no rule."""
    raise ValueError(f"count_macs cannot count the operation {type(operation).__name__}.")


# Layers by their classes, functions of `keras.ops` by the names of theirs, which Keras does not export. The extras are
# those of mmengine's counter (`mmengine/analysis/jit_handles.py`), for inference.
_RULES = {
    **dict.fromkeys(
        (
            *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
            *(layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.Dense),
        ),
        _kernel_on_output,
    ),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _kernel_on_input),
    GDN: _gdn,
    EntropyBottleneck: _entropy_bottleneck,
    layers.LayerNormalization: _per_entry(5),
    layers.BatchNormalization: _per_entry(2),
    PositionEmbedding: _per_entry(0),
    "DotProductAttention": _attention,
    "Matmul": _matmul,
    "Mean": _per_entry(1),
    "AveragePool": _per_entry(1),
    **dict.fromkeys(
        (
            *("Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv"),
            *("Dot", "Einsum", "Inner", "Outer", "Tensordot", "Vdot"),
        ),
        _refuse,
    ),
}


# Keras's classes are shared by all threads.
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def symbolic_calls(visit):
    """While it lasts, what this thread calls with a `keras.KerasTensor` is `visit(operation, *args, **kwargs)` instead.

    That is layers and `keras.ops` alike. Keras itself would not look into a layer, but ask for its output shape, and
    would keep a record of the call in the layer.
    """
    thread = threading.get_ident()

    def visiting(original):
        def call(operation, *args, **kwargs):
            is_symbolic = any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs)))
            if is_symbolic and threading.get_ident() == thread:
                return visit(operation, *args, **kwargs)
            return original(operation, *args, **kwargs)

        return call

    with _ONE_AT_A_TIME:
        # Where all layers pass, and all functions of `keras.ops`.
        of_layers, of_functions = keras.Layer.__call__, keras.Operation.symbolic_call
        keras.Layer.__call__ = visiting(of_layers)
        keras.Operation.symbolic_call = visiting(of_functions)
        try:
            yield
        finally:
            keras.Layer.__call__ = of_layers
            keras.Operation.symbolic_call = of_functions


def count_parameters(model):
    """Counts the parameters of a Keras model, trained or frozen, without running statistics of batch normalisation."""
    return _size(model.weights) - _statistics(model)


def parameters_by_part(model):
    """Counts the parameters of a model by part, as `count_macs` names them; parts without weights are left out.

    Returns:
        dict of part to `(parameters, trainable parameters, running statistics)`.
    """
    parts = {}
    for layer in model.layers:
        counts = count_parameters(layer), _size(layer.trainable_weights), _statistics(layer)
        if any(counts):
            part = part_name(layer.name)
            parts[part] = tuple(map(sum, zip(parts.get(part, (0, 0, 0)), counts, strict=True)))
    return parts


def _statistics(model):
    return _size(weight for weight in model.weights if weight.name.startswith("moving_"))


def _size(weights):
    return sum(math.prod(weight.shape) for weight in weights)
