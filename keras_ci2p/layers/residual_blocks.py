"""Residual and attention blocks of the cheng2020 compressors (arXiv 2001.01568), as in CompressAI."""

import math

import keras

from keras_ci2p.layers.gdn import GDN
from keras_ci2p.layers.symmetric_conv import SymmetricConv2D


def torch_conv2d(filters, kernel_size, in_channels, **kwargs):
    """A `SymmetricConv2D` with PyTorch's default initial weights: uniform +-1/sqrt(fan_in), the bias too."""
    limit = 1 / math.sqrt(in_channels * kernel_size**2)
    uniform = keras.initializers.RandomUniform(-limit, limit)
    return SymmetricConv2D(filters, kernel_size, kernel_initializer=uniform, bias_initializer=uniform.clone(), **kwargs)


def _leaky_relu(x):
    return keras.activations.leaky_relu(x, negative_slope=0.01)


class _ChannelBlock(keras.layers.Layer):
    """Base of the blocks that are told only how many channels they give."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def _conv(self, filters, kernel_size, in_channels, name, strides=1):
        return torch_conv2d(filters, kernel_size, in_channels, strides=strides, dtype=self.dtype_policy, name=name)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(filters=self.filters)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ResidualBlock(_ChannelBlock):
    """Two 3x3 convolutions, each with LeakyReLU(0.01), and the input added.

    Args:
        filters: Channels, those of the input.

    Input shape: `(batch, height, width, filters)`, float. Output shape: the same.
    """

    def build(self, input_shape):
        self.conv1 = self._conv(self.filters, 3, input_shape[-1], "conv1")
        self.conv2 = self._conv(self.filters, 3, self.filters, "conv2")
        self.conv1.build(input_shape)
        self.conv2.build(self.conv1.compute_output_shape(input_shape))

    def call(self, inputs):
        return inputs + _leaky_relu(self.conv2(_leaky_relu(self.conv1(inputs))))


@keras.saving.register_keras_serializable(package="keras_ci2p")
class StridedResidualBlock(_ChannelBlock):
    """3x3 convolution of stride 2, LeakyReLU(0.01), 3x3 convolution, GDN; plus a 1x1 convolution of stride 2.

    Args:
        filters: Output channels.

    Input shape: `(batch, height, width, channels)`, float.
    Output shape: `(batch, ceil(height / 2), ceil(width / 2), filters)`.
    """

    def build(self, input_shape):
        self.conv1 = self._conv(self.filters, 3, input_shape[-1], "conv1", strides=2)
        self.conv2 = self._conv(self.filters, 3, self.filters, "conv2")
        self.gdn = GDN(dtype=self.dtype_policy, name="gdn")
        self.skip = self._conv(self.filters, 1, input_shape[-1], "skip", strides=2)
        self.conv1.build(input_shape)
        self.skip.build(input_shape)
        strided = self.conv1.compute_output_shape(input_shape)
        self.conv2.build(strided)
        self.gdn.build(strided)

    def call(self, inputs):
        return self.skip(inputs) + self.gdn(self.conv2(_leaky_relu(self.conv1(inputs))))

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else (s + 1) // 2 for s in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ResidualUnit(_ChannelBlock):
    """1x1, 3x3 and 1x1 convolutions through half the width, the input added, ReLU after each and at the end.

    Args:
        filters: Channels, those of the input.

    Input shape: `(batch, height, width, filters)`, float. Output shape: the same.
    """

    def build(self, input_shape):
        half = self.filters // 2
        self.reduce = self._conv(half, 1, self.filters, "reduce")
        self.middle = self._conv(half, 3, half, "middle")
        self.expand = self._conv(self.filters, 1, half, "expand")
        self.reduce.build(input_shape)
        for layer in (self.middle, self.expand):
            layer.build((*input_shape[:-1], half))

    def call(self, inputs):
        relu = keras.activations.relu
        x = relu(self.middle(relu(self.reduce(inputs))))
        return relu(inputs + self.expand(x))


@keras.saving.register_keras_serializable(package="keras_ci2p")
class AttentionBlock(_ChannelBlock):
    """`inputs + a * sigmoid(b)`: a is three residual units, b three more and a 1x1 convolution.

    Args:
        filters: Channels, those of the input.

    Input shape: `(batch, height, width, filters)`, float. Output shape: the same.
    """

    def build(self, input_shape):
        def units(branch):
            return [ResidualUnit(self.filters, dtype=self.dtype_policy, name=f"{branch}_{i}") for i in range(3)]

        self.values = units("values")
        self.mask = [*units("mask"), self._conv(self.filters, 1, self.filters, "mask_3")]
        for layer in (*self.values, *self.mask):
            layer.build(input_shape)

    def call(self, inputs):
        values = mask = inputs
        for layer in self.values:
            values = layer(values)
        for layer in self.mask:
            mask = layer(mask)
        return inputs + values * keras.activations.sigmoid(mask)
