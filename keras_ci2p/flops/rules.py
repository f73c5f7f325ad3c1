"""How many multiplications each layer and function takes."""

import math
from typing import NamedTuple

from keras import layers

from keras_ci2p.layers.entropy_bottleneck import EntropyBottleneck
from keras_ci2p.layers.gdn import GDN
from keras_ci2p.layers.position_embedding import PositionEmbedding


class Work(NamedTuple):
    """What one call takes.

    Attributes:
        macs: Multiply-accumulates of its products.
        extra: What the paper's tool counts besides, for norms and averages.
    """

    macs: int = 0
    extra: int = 0


def rule_of(operation):
    """The function `(operation, inputs, output) -> Work` of a layer or a `keras.ops` operation, inputs and output with
    a `shape`; None for others: layers to look into, and functions without products.

    Raises:
        ValueError: A function that has products but no rule.
    """
    if isinstance(operation, layers.Layer):
        return next((rule for known, rule in _LAYERS if isinstance(operation, known)), None)
    name = type(operation).__name__
    if name in _UNCOUNTED:
        raise ValueError(f"count_macs cannot count the operation {name}.")
    return _FUNCTIONS.get(name)


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


_KERNELS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.Dense)

# The extras are those of mmengine's counter (`mmengine/analysis/jit_handles.py`), for inference.
_LAYERS = (
    (_KERNELS, _kernel_on_output),
    ((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _kernel_on_input),
    (GDN, _gdn),
    (EntropyBottleneck, _entropy_bottleneck),
    (layers.LayerNormalization, _per_entry(5)),
    (layers.BatchNormalization, _per_entry(2)),
    (PositionEmbedding, _per_entry(0)),
)

# By the names of their classes, which Keras does not export.
_FUNCTIONS = {
    "DotProductAttention": _attention,
    "Matmul": _matmul,
    "Mean": _per_entry(1),
    "AveragePool": _per_entry(1),
}
_UNCOUNTED = {
    *("Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv"),
    *("Dot", "Einsum", "Inner", "Outer", "Tensordot", "Vdot"),
}
