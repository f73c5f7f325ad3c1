"""Layers of learned image compression: GDN, residual blocks, entropy models."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.core import RandomUniform, SeedGenerator, torch_conv2d
from keras_ci2p.utils import Shape, Tensor

# CompressAI's `NonNegativeParametrizer`: reparam_offset = 2**-18.
PEDESTAL = 2.0**-36


def lower_bound(x, bound):
    """`max(x, bound)` whose gradient also passes where it would raise `x`.

    A plain maximum has no gradient below the bound, so a parameter that once fell below it could never
    return. Source: CompressAI `LowerBound`.
    """

    @ops.custom_gradient
    def clamp(x):
        def grad(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            passes = ops.logical_or(x >= bound, upstream < 0)
            return ops.where(passes, upstream, ops.zeros_like(upstream))

        return ops.maximum(x, bound), grad

    if isinstance(x, keras.KerasTensor):
        # JAX does not look into functions of its own gradient with these.
        return ops.maximum(x, bound)
    # A Keras Variable given directly yields a zero gradient on torch.
    return clamp(ops.convert_to_tensor(x))


def _non_negative(raw, minimum, trainable):
    bound = float(np.sqrt(minimum + PEDESTAL))
    clamped = lower_bound(raw, bound) if trainable else ops.maximum(raw, bound)
    return ops.square(clamped) - PEDESTAL


def _tensor(values, dtype):
    """A tensor of NumPy's float64 numbers, which Apple's GPUs cannot even be given to be rounded."""
    return ops.convert_to_tensor(values if dtype == "float64" else values.astype("float32"), dtype=dtype)


class _StoredRoot(keras.initializers.Initializer):
    """The raw value whose effective (squared) value is `value`, or `value` times the identity for matrices."""

    def __init__(self, value):
        self.value = value

    def __call__(self, shape, dtype=None):
        value = self.value * np.eye(shape[0]) if len(shape) == 2 else np.full(shape, self.value)
        return _tensor(np.sqrt(value + PEDESTAL), dtype)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class GDN(keras.layers.Layer):
    """Generalised divisive normalisation, as in CompressAI.

    `y[i] = x[i] / sqrt(beta[i] + sum_j gamma[j, i] * x[j]**2)` over the channels of each pixel; the inverse
    multiplies by the root. `beta` and `gamma` stay non-negative through CompressAI's reparametrisation: the stored
    value is clamped from below, squared, and a small pedestal is subtracted. The kernel is stored
    `(input channel, output channel)`, the transpose of CompressAI's `gamma`.

    The normaliser is computed in float32 (or float64) under every dtype policy: squares of 16-bit activations
    lose too much.

    Args:
        inverse: Whether to multiply by the root instead of dividing (IGDN, used by synthesis transforms).
        beta_min: Smallest effective `beta`, > 0 (CompressAI: 1e-6).
        gamma_init: Initial effective `gamma` on the diagonal, >= 0 (CompressAI: 0.1).

    Input shape: `(..., channels)`, float. Output shape: the same.

    Examples:
        >>> keras_ci2p.layers.GDN()(np.ones((1, 4, 4, 8), "float32")).shape
        (1, 4, 4, 8)
    """

    def __init__(self, inverse: bool = False, beta_min: float = 1e-6, gamma_init: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if beta_min <= 0:
            raise ValueError(f"`beta_min` must be positive. Received: beta_min={beta_min}")
        if gamma_init < 0:
            raise ValueError(f"`gamma_init` must not be negative. Received: gamma_init={gamma_init}")
        self.inverse = inverse
        self.beta_min = beta_min
        self.gamma_init = gamma_init

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"GDN needs a known number of channels. Received: input_shape={input_shape}")
        # autocast=False: a 16-bit copy of the raw values would square away the pedestal.
        self.beta = self.add_weight(shape=(channels,), initializer=_StoredRoot(1.0), autocast=False, name="beta")
        self.gamma = self.add_weight(
            shape=(channels, channels), initializer=_StoredRoot(self.gamma_init), autocast=False, name="gamma"
        )

    def call(self, inputs: Tensor) -> Tensor:
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        beta = _non_negative(ops.cast(self.beta, dtype), self.beta_min, self.trainable)
        gamma = _non_negative(ops.cast(self.gamma, dtype), 0.0, self.trainable)
        x = ops.cast(inputs, dtype)
        energy = ops.matmul(ops.square(x), gamma) + beta
        outputs = x * (ops.sqrt(energy) if self.inverse else ops.rsqrt(energy))
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(inverse=self.inverse, beta_min=self.beta_min, gamma_init=self.gamma_init)
        return config


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


# CompressAI `EntropyBottleneck` defaults.
WIDTHS = (1, 3, 3, 3, 3, 1)
INIT_SCALE = 10.0
TAIL_MASS = 1e-9
LIKELIHOOD_BOUND = 1e-9
# CompressAI `GaussianConditional` default.
LEAST_SCALE = 0.11


class _EntropyModel(keras.layers.Layer):
    """Base of the layers that quantise and tell how probable the result is; float32 under every dtype policy."""

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = SeedGenerator(seed)

    def _quantize(self, x, centers, noise, training):
        """Adds noise, drawn where none is given, or rounds about `centers`."""
        if not training:
            return ops.round(x - centers) + centers
        if noise is None:
            noise = keras.random.uniform(ops.shape(x), -0.5, 0.5, dtype="float32", seed=self.seed_generator)
        return x + noise

    def _at_least(self, x, bound):
        return lower_bound(x, bound) if self.trainable else ops.maximum(x, bound)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        config.update(seed=self.seed)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class EntropyBottleneck(_EntropyModel):
    """A learned probability distribution for each channel, and quantisation.

    In training, uniform noise in (-1/2, 1/2) stands for rounding; otherwise values are rounded about the channel's
    median. All is computed in float32 under every dtype policy.

    Args:
        seed: Seed of the noise, an integer or None.

    Input shape: `(..., channels)`, float.
    Output: `(values, likelihoods)`, both of the input's shape; likelihoods in [1e-9, 1].

    Examples:
        >>> bottleneck = keras_ci2p.layers.EntropyBottleneck()
        >>> values, likelihoods = bottleneck(np.zeros((1, 4, 4, 8), "float32"))
        >>> values.shape, likelihoods.shape
        ((1, 4, 4, 8), (1, 4, 4, 8))
    """

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        scale = INIT_SCALE ** (1 / (len(WIDTHS) - 1))

        def add(name, shape, initializer):
            return self.add_weight(shape=(channels, *shape), initializer=initializer, autocast=False, name=name)

        self.matrices, self.biases, self.factors = [], [], []
        for i, (width, next_width) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
            constant = keras.initializers.Constant(math.log(math.expm1(1 / scale / next_width)))
            self.matrices.append(add(f"matrix_{i}", (next_width, width), constant))
            self.biases.append(add(f"bias_{i}", (next_width, 1), RandomUniform(-0.5, 0.5)))
            if i < len(WIDTHS) - 2:
                self.factors.append(add(f"factor_{i}", (next_width, 1), "zeros"))
        self.quantiles = add("quantiles", (1, 3), _initial_quantiles)

    def call(self, inputs: Tensor, noise: Tensor | None = None, training: bool = False) -> tuple[Tensor, Tensor]:
        values = self._quantize(ops.cast(inputs, "float32"), self.medians, noise, training)
        return values, self.likelihood(values)

    @property
    def medians(self) -> Tensor:
        """Median of each channel, `(channels,)`."""
        return ops.convert_to_tensor(self.quantiles)[:, 0, 1]

    def likelihood(self, values: Tensor) -> Tensor:
        """Probability of the unit interval around each value, at least 1e-9; `(..., channels)` to the same."""
        channels = values.shape[-1]
        columns = ops.reshape(ops.transpose(ops.reshape(values, (-1, channels))), (channels, 1, -1))
        lower, upper = self._cumulative_logits(columns - 0.5), self._cumulative_logits(columns + 0.5)
        # Where both are large, the difference of sigmoids cancels; mirrored to the negative side it does not.
        sign = ops.stop_gradient(ops.where(lower + upper > 0, -1.0, 1.0))
        mass = ops.abs(ops.sigmoid(sign * upper) - ops.sigmoid(sign * lower))
        mass = ops.reshape(ops.transpose(ops.reshape(mass, (channels, -1))), ops.shape(values))
        return self._at_least(mass, LIKELIHOOD_BOUND)

    def auxiliary_loss(self) -> Tensor:
        """What the quantiles learn by: their distance from the median and the tails of mass 1e-9. A scalar.

        The other weights get no gradient from it.
        """
        tail = math.log(2 / TAIL_MASS - 1)
        logits = self._cumulative_logits(ops.convert_to_tensor(self.quantiles), stop_gradient=True)
        return ops.sum(ops.abs(logits - ops.convert_to_tensor([-tail, 0.0, tail], "float32")))

    def _cumulative_logits(self, logits, stop_gradient=False):
        """Logits of the cumulative distribution at `(channels, 1, points)`."""
        hold = ops.stop_gradient if stop_gradient else lambda x: x
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = (hold(ops.convert_to_tensor(w)) for w in (matrix, bias))
            logits = ops.matmul(ops.softplus(matrix), logits) + bias
            if i < len(self.factors):
                factor = hold(ops.convert_to_tensor(self.factors[i]))
                logits = logits + ops.tanh(factor) * ops.tanh(logits)
        return logits

    def compute_output_shape(self, input_shape: Shape, **kwargs: Any) -> tuple[Shape, Shape]:
        return input_shape, input_shape

    def compute_output_spec(
        self, inputs: Tensor, noise: Tensor | None = None, training: bool = False
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        spec = keras.KerasTensor(inputs.shape, dtype="float32")
        return spec, keras.KerasTensor(inputs.shape, dtype="float32")


def _initial_quantiles(shape, dtype=None):
    return _tensor(np.tile([-INIT_SCALE, 0, INIT_SCALE], (*shape[:2], 1)), dtype)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class GaussianConditional(_EntropyModel):
    """A normal distribution for each value, and quantisation.

    In training, uniform noise in (-1/2, 1/2) stands for rounding; otherwise values are rounded about the means. All is
    computed in float32 under every dtype policy.

    Args:
        seed: Seed of the noise, an integer or None.

    Inputs: values `(..., channels)`, float; and `parameters`, their standard deviations, counted as 0.11 where they are
    less, `(..., channels)`, or these and then the means, `(..., 2 * channels)`. Without means these are 0.
    Output: `(values, likelihoods)`, both of the values' shape; likelihoods in [1e-9, 1].

    Examples:
        >>> latents, scales = np.array([[0.2, 1.7]]), np.array([[0.1, 2.0]])
        >>> _, likelihoods = keras_ci2p.layers.GaussianConditional()(latents, scales)
        >>> [round(float(value), 3) for value in likelihoods[0]]
        [1.0, 0.121]
    """

    def call(
        self, inputs: Tensor, parameters: Tensor, noise: Tensor | None = None, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        x, parameters = (ops.cast(tensor, "float32") for tensor in (inputs, parameters))
        channels = x.shape[-1]
        means = parameters[..., channels:] if parameters.shape[-1] == 2 * channels else ops.zeros_like(x)
        values = self._quantize(x, means, noise, training)
        return values, self.likelihood(values - means, parameters[..., :channels])

    def likelihood(self, distances: Tensor, scales: Tensor) -> Tensor:
        """Probability of the unit interval around values at such distances from their means, at least 1e-9."""
        scales = self._at_least(scales, LEAST_SCALE) * math.sqrt(2)
        # In the lower tail, where the cumulative distribution has all its digits.
        distances = ops.abs(distances)
        upper, lower = (ops.erfc((distances - side) / scales) for side in (0.5, -0.5))
        return self._at_least(0.5 * (upper - lower), LIKELIHOOD_BOUND)

    def compute_output_spec(
        self, inputs: Tensor, parameters: Tensor, noise: Tensor | None = None, training: bool = False
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        return tuple(keras.KerasTensor(inputs.shape, dtype="float32") for _ in range(2))
