"""What XLA does badly for JAX on a CPU, written so that it does it well; elsewhere Keras's own operations are faster.

`benchmarks/optimizations.py` measures the gain.
"""

import functools

import keras
from keras import ops


@functools.cache
def on_jax_cpu():
    """Whether Keras computes with JAX on a CPU."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def depthwise_conv(inputs, kernel, strides):
    """Depthwise convolution of padded images, as the sum over the kernel's positions: its gradient is ten times faster.

    With strides, images are taken apart first: a sum over strided slices has gradients that XLA computes slowly.

    Args:
        inputs: `(batch, height, width, channels)`, padded.
        kernel: `(rows, columns, channels, 1)`.
        strides: `(rows, columns)`.
    """
    rows, columns, channels, _ = kernel.shape
    down, right = strides
    _, height, width, _ = inputs.shape
    out_height, out_width = (height - rows) // down + 1, (width - columns) // right + 1
    inputs = ops.pad(inputs, ((0, 0), (0, -height % down), (0, -width % right), (0, 0)))
    # [:, :, i, :, j]: the pixels `strides` apart from (i, j) on.
    inputs = ops.reshape(inputs, (-1, -(-height // down), down, -(-width // right), right, channels))
    return sum(
        inputs[:, i // down : i // down + out_height, i % down, j // right : j // right + out_width, j % right]
        * kernel[i, j, :, 0]
        for i in range(rows)
        for j in range(columns)
    )


def as_rows(layer, inputs):
    """`layer(inputs)` of a layer that acts on the last axis, all others made one: its gradient is twice as fast."""
    outputs = layer(ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(outputs, (*ops.shape(inputs)[:-1], outputs.shape[-1]))
