"""Dense, convolution and normalization layers that the others are built of."""

import math

import keras
from keras import ops

from keras_ci2p.backend.jax import as_rows, depthwise_conv, on_jax_cpu
from keras_ci2p.backend.torch import batch_norm, conv2d, linear, on_torch
from keras_ci2p.layers.constants import IMAGENET_MEAN, IMAGENET_STD


@keras.saving.register_keras_serializable(package="keras_ci2p")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense`, faster on torch and under JAX on a CPU."""

    def call(self, inputs, training=None):
        call = super().call
        if on_jax_cpu() and len(inputs.shape) > 2:
            return as_rows(lambda rows: call(rows, training=training), inputs)
        if on_torch():
            kernel = ops.convert_to_tensor(self.kernel)
            if inputs.dtype == kernel.dtype:
                bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
                return self.activation(linear(inputs, kernel, bias))
        return call(inputs, training=training)

    @property
    def dtype_policy(self):
        """Of a `DTypePolicyMap` this layer's own; Keras's would save a quantised kernel without its scale."""
        policy = super().dtype_policy
        return policy[self.path] if isinstance(policy, keras.dtype_policies.DTypePolicyMap) and self.path else policy

    @dtype_policy.setter
    def dtype_policy(self, policy):
        keras.layers.Dense.dtype_policy.fset(self, policy)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PointwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a 1x1 kernel, channels last and without bias, faster on torch and under JAX on a CPU.

    Args:
        filters, **kwargs: As in `keras.layers.Conv2D`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, height, width, filters)`.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(filters, kernel_size=1, use_bias=False, data_format="channels_last", **kwargs)

    def call(self, inputs):
        if self.strides == (1, 1) and self.groups == 1:
            if on_jax_cpu():
                kernel = ops.convert_to_tensor(self.kernel)[0, 0]
                return self.activation(as_rows(lambda rows: ops.matmul(rows, kernel), inputs))
            if on_torch():
                return self.activation(linear(inputs, ops.convert_to_tensor(self.kernel)[0, 0]))
        return super().call(inputs)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "use_bias", "data_format"):
            config.pop(fixed)
        return config


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


@keras.saving.register_keras_serializable(package="keras_ci2p")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of the last axis; on torch it trains by PyTorch's own kernel.

    Keras composes it of operations, of which PyTorch keeps two copies of the input for the gradient instead of one.

    Args:
        **kwargs: As in `keras.layers.BatchNormalization`, without `axis` and `renorm`.

    Input shape: `(batch, ..., channels)`, float. Output shape: the same.
    """

    def __init__(self, **kwargs):
        super().__init__(axis=-1, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not on_torch() or not training or not self.trainable or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        # 16-bit sums would overflow or round.
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        scale, offset = (None if weight is None else ops.cast(weight, x.dtype) for weight in (self.gamma, self.beta))
        outputs, *batch = batch_norm(x, scale, offset, self.epsilon)
        for moving, value in zip((self.moving_mean, self.moving_variance), batch, strict=True):
            moving.assign(moving * self.momentum + ops.cast(value, moving.dtype) * (1 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        for fixed in [key for key in config if key == "axis" or key.startswith("renorm")]:
            config.pop(fixed)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ImageNormalization(keras.layers.Layer):
    """`(images - mean) / std` for each channel, computed in float32 under every dtype policy.

    `keras.layers.Rescaling` takes its channels from `image_data_format()`; ours are last always.

    Args:
        mean, std: One number for each channel, in the units of the images.

    Input shape: `(..., channels)`, uint8 or float. Output shape: the same, in the compute dtype.
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs):
        # autocast=False: 16-bit floats cannot hold interpolated pixel values.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.built = True

    def call(self, images):
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        mean, std = (ops.convert_to_tensor(value, dtype) for value in (self.mean, self.std))
        return ops.cast((ops.cast(images, dtype) - mean) / std, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        config.update(mean=self.mean, std=self.std)
        return config


def torch_conv2d(filters, kernel_size, in_channels, **kwargs):
    """A `SymmetricConv2D` with PyTorch's default initial weights: uniform +-1/sqrt(fan_in), the bias too."""
    limit = 1 / math.sqrt(in_channels * kernel_size**2)
    uniform = keras.initializers.RandomUniform(-limit, limit)
    return SymmetricConv2D(filters, kernel_size, kernel_initializer=uniform, bias_initializer=uniform.clone(), **kwargs)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SymmetricConv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`, 5x5, stride 2, channels last, that doubles the size.

    As PyTorch's with padding 2 and output padding 1; Keras's "same" crops one pixel less at the top and left. Initial
    weights as PyTorch's.

    Args:
        filters, **kwargs: As in `keras.layers.Conv2DTranspose`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, 2 * height, 2 * width, filters)`.
    """

    def __init__(self, filters, **kwargs):
        # PyTorch counts the output channels of a transposed convolution as its fan_in.
        limit = 1 / math.sqrt(25 * filters)
        uniform = keras.initializers.RandomUniform(-limit, limit)
        kwargs = {"kernel_initializer": uniform, "bias_initializer": uniform.clone(), **kwargs}
        super().__init__(filters, 5, strides=2, padding="valid", data_format="channels_last", **kwargs)

    def call(self, inputs):
        return super().call(inputs)[:, 2:-1, 2:-1]

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else 2 * s for s in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "strides", "padding", "data_format"):
            config.pop(fixed)
        return config
