"""Convolutions padded by half the kernel on all four sides, as PyTorch pads.

At stride 2 and even sizes TensorFlow's "same" pads one pixel less at the top and left, which shifts the output.
"""

import keras
from keras import ops

from keras_ci2p.layers.jax_cpu import depthwise_conv, on_jax_cpu
from keras_ci2p.layers.torch_kernels import conv2d, on_torch


class _SymmetricPadding:
    """Mixin for a Keras convolution: pads by itself where Keras's "same" would not be symmetric."""

    def __init__(self, *args, kernel_size, strides, **kwargs):
        sizes = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        if any(size % 2 == 0 for size in sizes):
            raise ValueError(f"`kernel_size` must be odd. Received: kernel_size={kernel_size}")
        padding = "same" if strides in (1, (1, 1), [1, 1]) else "valid"
        super().__init__(
            *args,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format="channels_last",
            **kwargs,
        )

    def call(self, inputs):
        if on_torch():
            bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
            padding = [rate * (size // 2) for rate, size in zip(self.dilation_rate, self.kernel_size, strict=True)]
            kernel = self._grouped_kernel()
            return self.activation(conv2d(inputs, kernel, bias, self.strides, padding, self.dilation_rate))
        if self.padding == "valid":
            inputs = ops.pad(inputs, self._pad_width())
        return super().call(inputs)

    def compute_output_shape(self, input_shape):
        if self.padding == "valid":
            input_shape = tuple(
                None if size is None else size + sum(pad)
                for size, pad in zip(input_shape, self._pad_width(), strict=True)
            )
        return super().compute_output_shape(input_shape)

    def _grouped_kernel(self):
        """Tensor `(rows, columns, channels / groups, filters)`."""
        return ops.convert_to_tensor(self.kernel)

    def _pad_width(self):
        rows, columns = (k // 2 for k in self.kernel_size)
        return (0, 0), (rows, rows), (columns, columns), (0, 0)

    def get_config(self):
        config = super().get_config()
        for fixed in ("padding", "data_format"):
            config.pop(fixed)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SymmetricConv2D(_SymmetricPadding, keras.layers.Conv2D):
    """`keras.layers.Conv2D`, channels last, with `kernel_size // 2` zeros on each side.

    Args:
        filters, kernel_size, strides, **kwargs: As in `keras.layers.Conv2D`; kernel sizes are odd, `padding` is fixed.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        super().__init__(filters=filters, kernel_size=kernel_size, strides=strides, **kwargs)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SymmetricDepthwiseConv2D(_SymmetricPadding, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D`, channels last, with `kernel_size // 2` zeros on each side.

    Args:
        kernel_size, strides, **kwargs: As in `keras.layers.DepthwiseConv2D`; kernel sizes are odd, `padding` is fixed.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, ceil(height / stride), ceil(width / stride), channels)`.
    """

    def __init__(self, kernel_size, strides=1, **kwargs):
        super().__init__(kernel_size=kernel_size, strides=strides, **kwargs)

    def call(self, inputs):
        if (
            on_jax_cpu()
            and self.depth_multiplier == 1
            and self.dilation_rate == (1, 1)
            and None not in inputs.shape[1:3]
        ):
            outputs = depthwise_conv(
                ops.pad(inputs, self._pad_width()), ops.convert_to_tensor(self.kernel), self.strides
            )
            outputs = outputs if self.bias is None else outputs + self.bias
            return self.activation(outputs)
        return super().call(inputs)

    def _grouped_kernel(self):
        rows, columns, channels, multiplier = self.kernel.shape
        return ops.reshape(self.kernel, (rows, columns, 1, channels * multiplier))
