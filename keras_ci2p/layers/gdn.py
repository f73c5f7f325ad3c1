"""Generalised divisive normalisation (Ballé et al., arXiv 1511.06281)."""

import keras
import numpy as np
from keras import ops

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

    # A Keras Variable given directly yields a zero gradient on torch.
    return clamp(ops.convert_to_tensor(x))


def _non_negative(raw, minimum, trainable):
    bound = float(np.sqrt(minimum + PEDESTAL))
    clamped = lower_bound(raw, bound) if trainable else ops.maximum(raw, bound)
    return ops.square(clamped) - PEDESTAL


class _StoredRoot(keras.initializers.Initializer):
    """The raw value whose effective (squared) value is `value`, or `value` times the identity for matrices."""

    def __init__(self, value):
        self.value = value

    def __call__(self, shape, dtype=None):
        value = self.value * np.eye(shape[0]) if len(shape) == 2 else np.full(shape, self.value)
        return ops.convert_to_tensor(np.sqrt(value + PEDESTAL), dtype=dtype)


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

    Example:
        >>> keras_ci2p.layers.GDN()(np.ones((1, 4, 4, 8), "float32")).shape
        (1, 4, 4, 8)
    """

    def __init__(self, inverse=False, beta_min=1e-6, gamma_init=0.1, **kwargs):
        super().__init__(**kwargs)
        if beta_min <= 0:
            raise ValueError(f"`beta_min` must be positive. Received: beta_min={beta_min}")
        if gamma_init < 0:
            raise ValueError(f"`gamma_init` must not be negative. Received: gamma_init={gamma_init}")
        self.inverse = inverse
        self.beta_min = beta_min
        self.gamma_init = gamma_init

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"GDN needs a known number of channels. Received: input_shape={input_shape}")
        # autocast=False: a 16-bit copy of the raw values would square away the pedestal.
        self.beta = self.add_weight(shape=(channels,), initializer=_StoredRoot(1.0), autocast=False, name="beta")
        self.gamma = self.add_weight(
            shape=(channels, channels), initializer=_StoredRoot(self.gamma_init), autocast=False, name="gamma"
        )

    def call(self, inputs):
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        beta = _non_negative(ops.cast(self.beta, dtype), self.beta_min, self.trainable)
        gamma = _non_negative(ops.cast(self.gamma, dtype), 0.0, self.trainable)
        x = ops.cast(inputs, dtype)
        energy = ops.matmul(ops.square(x), gamma) + beta
        outputs = x * (ops.sqrt(energy) if self.inverse else ops.rsqrt(energy))
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(inverse=self.inverse, beta_min=self.beta_min, gamma_init=self.gamma_init)
        return config
