"""Inverted residual block of MobileNetV3 (arXiv 1905.02244), as in mmpretrain."""

import keras
from keras import ops

from keras_ci2p.layers.batch_norm import BatchNormalization
from keras_ci2p.layers.pointwise import PointwiseConv2D
from keras_ci2p.layers.symmetric_conv import SymmetricDepthwiseConv2D

# mmpretrain: BatchNorm2d(eps=1e-5, momentum=0.1); Keras counts the momentum from the other side.
BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}


def squeeze_width(channels):
    """Width of the squeeze-excite bottleneck: a quarter, to the nearest multiple of 8, at most 10 % below a quarter.

    Source: mmpretrain `make_divisible(channels / 4, 8)`.
    """
    quarter = channels / 4
    width = max(8, int(quarter + 4) // 8 * 8)
    return width + 8 if width < 0.9 * quarter else width


def _kaiming(mode):
    return keras.initializers.VarianceScaling(2.0, mode=mode, distribution="untruncated_normal")


@keras.saving.register_keras_serializable(package="keras_ci2p")
class InvertedResidual(keras.layers.Layer):
    """Expand, depthwise convolution, squeeze-excite, project (MobileNetV3 style).

    Pointwise expansion and depthwise convolution are followed by batch normalisation and hard-swish; the projection by
    batch normalisation alone. The input is added when the stride is 1 and the widths agree. The depthwise convolution
    pads `kernel_size // 2` on all sides.

    The batch normalisation keeps the biased batch variance in its running statistics, PyTorch the unbiased one: the
    increments differ by `n / (n - 1)` over the `n` pixels of a batch.

    Args:
        filters: Output channels.
        expanded_filters: Channels between expansion and projection.
        kernel_size: Odd size of the depthwise kernel.
        strides: Stride of the depthwise convolution.

    Input shape: `(batch, height, width, channels)`, float.
    Output shape: `(batch, ceil(height / strides), ceil(width / strides), filters)`.
    """

    def __init__(self, filters, expanded_filters, kernel_size=3, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.expanded_filters = expanded_filters
        self.kernel_size = kernel_size
        self.strides = strides
        dtype = self.dtype_policy

        def pointwise(filters, name):
            return PointwiseConv2D(filters, kernel_initializer=_kaiming("fan_out"), dtype=dtype, name=name)

        def norm(name):
            return BatchNormalization(**BATCH_NORM, dtype=dtype, name=name)

        self.expand = pointwise(expanded_filters, "expand")
        self.expand_norm = norm("expand_norm")
        # PyTorch counts channels * k * k as fan_out of a depthwise kernel; Keras calls that fan_in.
        self.depthwise = SymmetricDepthwiseConv2D(
            kernel_size,
            strides=strides,
            use_bias=False,
            depthwise_initializer=_kaiming("fan_in"),
            dtype=dtype,
            name="depthwise",
        )
        self.depthwise_norm = norm("depthwise_norm")
        self.squeeze = keras.layers.Dense(
            squeeze_width(expanded_filters),
            activation="relu",
            kernel_initializer=_kaiming("fan_out"),
            dtype=dtype,
            name="squeeze",
        )
        self.excite = keras.layers.Dense(
            expanded_filters,
            activation="hard_sigmoid",
            kernel_initializer=_kaiming("fan_out"),
            dtype=dtype,
            name="excite",
        )
        self.project = pointwise(filters, "project")
        self.project_norm = norm("project_norm")

    def build(self, input_shape):
        expanded = (*input_shape[:-1], self.expanded_filters)
        self.expand.build(input_shape)
        self.expand_norm.build(expanded)
        self.depthwise.build(expanded)
        strided = self.depthwise.compute_output_shape(expanded)
        self.depthwise_norm.build(strided)
        self.squeeze.build((strided[0], self.expanded_filters))
        self.excite.build((strided[0], self.squeeze.units))
        self.project.build(strided)
        self.project_norm.build((*strided[:-1], self.filters))
        self.has_residual = self.strides == 1 and input_shape[-1] == self.filters

    def call(self, inputs, training=None):
        x = ops.hard_silu(self.expand_norm(self.expand(inputs), training=training))
        x = ops.hard_silu(self.depthwise_norm(self.depthwise(x), training=training))
        scale = self.excite(self.squeeze(ops.mean(x, axis=(1, 2))))
        x = x * scale[:, None, None, :]
        x = self.project_norm(self.project(x), training=training)
        return inputs + x if self.has_residual else x

    def compute_output_shape(self, input_shape):
        return (*self.depthwise.compute_output_shape(input_shape)[:-1], self.filters)

    def get_config(self):
        config = super().get_config()
        config.update(
            filters=self.filters,
            expanded_filters=self.expanded_filters,
            kernel_size=self.kernel_size,
            strides=self.strides,
        )
        return config
