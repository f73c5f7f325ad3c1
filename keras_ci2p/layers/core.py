"""Dense, convolution and normalization layers that the others are built of, and the check of image shapes."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ci2p import backend
from keras_ci2p.names import IMAGENET_MEAN, IMAGENET_STD
from keras_ci2p.utils import Mixin, Shape, Tensor


class SeedGenerator(keras.random.SeedGenerator):
    """Keras's, whose draw stays the same where a layer is computed once more for its gradient (`keras.RematScope`).

    TensorFlow does not tell that it does so: there a warning must do.
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(seed, **kwargs)
        # Whatever is made in such a scope keeps its mode.
        scope = keras.Operation(name="scope")._remat_mode if backend.draws_anew else None
        if scope is not None and scope.mode not in (None, "activations"):
            warnings.warn(
                "In a `keras.RematScope` TensorFlow draws random numbers once for the loss and once more for its "
                "gradient, which then is that of another loss: train with `drop_path_rate=0`, or on torch.",
                stacklevel=2,
            )

    def next(self, ordered=True):
        return backend.drawn_once(lambda: super(SeedGenerator, self).next(ordered))


@keras.saving.register_keras_serializable(package="keras_ci2p")
class RandomNormal(keras.initializers.RandomNormal):
    """`keras.initializers.RandomNormal` by the backend's own generator, as the two below."""

    def __call__(self, shape, dtype=None):
        return backend.draw_normal(shape, self.mean, self.stddev, dtype, self.seed)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class RandomUniform(keras.initializers.RandomUniform):
    """`keras.initializers.RandomUniform`."""

    def __call__(self, shape, dtype=None):
        return backend.draw_uniform(shape, self.minval, self.maxval, dtype, self.seed)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class VarianceScaling(keras.initializers.VarianceScaling):
    """`keras.initializers.VarianceScaling` of kernels of dense layers and convolutions, uniform or normal."""

    def __call__(self, shape, dtype=None):
        if self.distribution == "truncated_normal":
            return super().__call__(shape, dtype)
        *kernel_size, inputs, outputs = shape
        fans = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}
        variance = self.scale / max(1.0, fans[self.mode] * math.prod(kernel_size))
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return backend.draw_uniform(shape, -limit, limit, dtype, self.seed)
        return backend.draw_normal(shape, 0.0, math.sqrt(variance), dtype, self.seed)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense` by the backend's own kernel."""

    def call(self, inputs, training=None):
        return self.activation(backend.linear(inputs, self.kernel, self.bias))

    def quantized_call(self, inputs, training=None):
        if training:
            self.check_learns()
        return super().quantized_call(inputs, training=training)

    def check_learns(self):
        """Raises ValueError where it is to be trained and holds integers, which Keras would leave in silence."""
        if self.quantization_mode and self.trainable and not self.lora_enabled:
            raise ValueError(
                f"{self.path} is quantised, and integers do not learn: train the model before `quantize`, or set "
                "`trainable = False` on its quantised layers."
            )

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
    """`keras.layers.Conv2D` with a 1x1 kernel, channels last and without bias, by the backend's own kernel.

    Args:
        filters, **kwargs: As in `keras.layers.Conv2D`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, height, width, filters)`.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(filters, kernel_size=1, use_bias=False, data_format="channels_last", **kwargs)

    def call(self, inputs):
        if self.strides != (1, 1) or self.groups != 1:
            return super().call(inputs)
        return self.activation(backend.pointwise_conv2d(inputs, self.kernel))

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "use_bias", "data_format"):
            config.pop(fixed)
        return config


class _SymmetricPadding(Mixin):
    """Mixin for a Keras convolution, channels last: pads alike on both sides, where Keras's "same" does not.

    The output's shape is that of "same".
    """

    def __init__(self, *args: Any, kernel_size: int | tuple[int, int], **kwargs: Any) -> None:
        sizes = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        if any(size % 2 == 0 for size in sizes):
            raise ValueError(f"`kernel_size` must be odd. Received: kernel_size={kernel_size}")
        super().__init__(*args, kernel_size=kernel_size, padding="same", data_format="channels_last", **kwargs)

    def get_config(self) -> dict[str, Any]:
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

    Examples:
        >>> keras_ci2p.layers.SymmetricConv2D(16, 5, strides=2)(np.ones((1, 9, 8, 3), "float32")).shape
        (1, 5, 4, 16)
    """

    def __init__(
        self, filters: int, kernel_size: int | tuple[int, int], strides: int | tuple[int, int] = 1, **kwargs: Any
    ) -> None:
        super().__init__(filters=filters, kernel_size=kernel_size, strides=strides, **kwargs)

    def call(self, inputs: Tensor) -> Tensor:
        outputs = backend.conv2d(inputs, self.kernel, self.bias, self.strides, self.dilation_rate)
        return self.activation(outputs)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SymmetricDepthwiseConv2D(_SymmetricPadding, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D`, channels last, with `kernel_size // 2` zeros on each side.

    Args:
        kernel_size, strides, **kwargs: As in `keras.layers.DepthwiseConv2D`; kernel sizes are odd, `padding` is fixed.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, ceil(height / stride), ceil(width / stride), channels)`.

    Examples:
        >>> keras_ci2p.layers.SymmetricDepthwiseConv2D(3, strides=2)(np.ones((1, 9, 8, 4), "float32")).shape
        (1, 5, 4, 4)
    """

    def __init__(self, kernel_size: int | tuple[int, int], strides: int | tuple[int, int] = 1, **kwargs: Any) -> None:
        super().__init__(kernel_size=kernel_size, strides=strides, **kwargs)

    def call(self, inputs: Tensor) -> Tensor:
        outputs = backend.depthwise_conv2d(inputs, self.kernel, self.bias, self.strides, self.dilation_rate)
        return self.activation(outputs)


def torch_uniform(fan_in):
    """Returns initializers of kernel and bias as PyTorch's convolutions have them: uniform, +-1/sqrt(fan_in)."""
    limit = 1 / math.sqrt(fan_in)
    uniform = RandomUniform(-limit, limit)
    return {"kernel_initializer": uniform, "bias_initializer": uniform.clone()}


def torch_conv2d(filters, kernel_size, in_channels, **kwargs):
    """Makes a `SymmetricConv2D` with PyTorch's default initial weights."""
    return SymmetricConv2D(filters, kernel_size, **torch_uniform(in_channels * kernel_size**2), **kwargs)


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
        kwargs = {**torch_uniform(25 * filters), **kwargs}
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


@keras.saving.register_keras_serializable(package="keras_ci2p")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of the last axis; it trains by the backend's own kernel.

    Args:
        **kwargs: As in `keras.layers.BatchNormalization`, without `axis` and `renorm`.

    Input shape: `(batch, ..., channels)`, float. Output shape: the same.
    """

    def __init__(self, **kwargs):
        super().__init__(axis=-1, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not training or not self.trainable or mask is not None:
            return super().call(inputs, training=training, mask=mask)
        # 16-bit sums would overflow or round.
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        scale, offset = (None if weight is None else ops.cast(weight, x.dtype) for weight in (self.gamma, self.beta))
        outputs, *batch = backend.batch_norm(x, scale, offset, self.epsilon, synchronized=self.synchronized)
        if backend.is_recomputing():
            return ops.cast(outputs, self.compute_dtype)
        for moving, value in zip((self.moving_mean, self.moving_variance), batch, strict=True):
            moving.assign(ops.cast(moving, x.dtype) * self.momentum + value * (1 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        for fixed in [key for key in config if key == "axis" or key.startswith("renorm")]:
            config.pop(fixed)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class LayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` of the last axis, by the backend's own kernel.

    Args:
        **kwargs: As in `keras.layers.LayerNormalization`, without `axis` and `rms_scaling`.

    Input shape: `(batch, ..., channels)`, float. Output shape: the same.
    """

    def __init__(self, **kwargs):
        super().__init__(axis=-1, **kwargs)

    def call(self, inputs):
        return ops.cast(backend.layer_norm(inputs, self.gamma, self.beta, self.epsilon), self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        for fixed in ("axis", "rms_scaling"):
            config.pop(fixed)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ImageNormalization(keras.layers.Layer):
    """`(images - mean) / std` for each channel, computed in float32 under every dtype policy.

    `keras.layers.Rescaling` takes its channels from `image_data_format()`; ours are last always.

    Args:
        mean, std: One number for each channel, in the units of the images.

    Input shape: `(..., channels)`, uint8 or float. Output shape: the same, in the compute dtype.

    Examples:
        >>> normalization = keras_ci2p.layers.ImageNormalization(mean=(128, 128, 128), std=(64, 64, 64))
        >>> keras.ops.convert_to_numpy(normalization(np.full((1, 1, 3), 160, "uint8"))).tolist()
        [[[0.5, 0.5, 0.5]]]
    """

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, **kwargs: Any
    ) -> None:
        # autocast=False: 16-bit floats cannot hold interpolated pixel values.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.built = True

    def call(self, images: Tensor) -> Tensor:
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        mean, std = (ops.convert_to_tensor(value, dtype) for value in (self.mean, self.std))
        return ops.cast((ops.cast(images, dtype) - mean) / std, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        config.update(mean=self.mean, std=self.std)
        return config


def freeze_parts(layer):
    """Freezes the layers that the `build` of a frozen layer has made: Keras's files tell of the outer one alone."""
    if not layer.trainable:
        # Past the assignment, which on TensorFlow does nothing where the value is the same.
        keras.layers.Layer.trainable.fset(layer, False)


def check_images(shape, multiple, receiver):
    """Raises ValueError unless `shape` is `(batch, height, width, 3)` with sizes that are None or fit `multiple`."""
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"{receiver} takes RGB images of shape (batch, height, width, 3), channels last. "
            f"Received: shape={tuple(shape)}"
        )
    if any(size is not None and (size % multiple or not size) for size in shape[1:3]):
        raise ValueError(
            f"{receiver} takes heights and widths that are multiples of {multiple}; resize or crop the images. "
            f"Received: shape={tuple(shape)}"
        )
