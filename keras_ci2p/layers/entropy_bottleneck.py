"""The factorized prior of learned image compression (Ballé et al., arXiv 1802.01436, appendix 6.1)."""

import math

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.gdn import lower_bound

# CompressAI `EntropyBottleneck` defaults.
WIDTHS = (1, 3, 3, 3, 3, 1)
INIT_SCALE = 10.0
TAIL_MASS = 1e-9
LIKELIHOOD_BOUND = 1e-9


@keras.saving.register_keras_serializable(package="keras_ci2p")
class EntropyBottleneck(keras.layers.Layer):
    """A learned probability distribution for each channel, and quantisation.

    In training, uniform noise in (-1/2, 1/2) stands for rounding; otherwise values are rounded about the channel's
    median. All is computed in float32 under every dtype policy.

    Args:
        seed: Seed of the noise, an integer or None.

    Input shape: `(..., channels)`, float.
    Output: `(values, likelihoods)`, both of the input's shape; likelihoods in [1e-9, 1].
    """

    def __init__(self, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        channels = input_shape[-1]
        scale = INIT_SCALE ** (1 / (len(WIDTHS) - 1))

        def add(name, shape, initializer):
            return self.add_weight(shape=(channels, *shape), initializer=initializer, autocast=False, name=name)

        self.matrices, self.biases, self.factors = [], [], []
        for i, (width, next_width) in enumerate(zip(WIDTHS[:-1], WIDTHS[1:], strict=True)):
            constant = keras.initializers.Constant(math.log(math.expm1(1 / scale / next_width)))
            self.matrices.append(add(f"matrix_{i}", (next_width, width), constant))
            self.biases.append(add(f"bias_{i}", (next_width, 1), keras.initializers.RandomUniform(-0.5, 0.5)))
            if i < len(WIDTHS) - 2:
                self.factors.append(add(f"factor_{i}", (next_width, 1), "zeros"))
        self.quantiles = add("quantiles", (1, 3), _initial_quantiles)

    def call(self, inputs, noise=None, training=False):
        x = ops.cast(inputs, "float32")
        if training:
            if noise is None:
                noise = keras.random.uniform(ops.shape(x), -0.5, 0.5, dtype="float32", seed=self.seed_generator)
            values = x + noise
        else:
            values = ops.round(x - self.medians) + self.medians
        return values, self.likelihood(values)

    @property
    def medians(self):
        """Median of each channel, `(channels,)`."""
        return ops.convert_to_tensor(self.quantiles)[:, 0, 1]

    def likelihood(self, values):
        """Probability of the unit interval around each value, at least 1e-9; `(..., channels)` to the same."""
        channels = values.shape[-1]
        columns = ops.reshape(ops.transpose(ops.reshape(values, (-1, channels))), (channels, 1, -1))
        lower, upper = self._cumulative_logits(columns - 0.5), self._cumulative_logits(columns + 0.5)
        # Where both are large, the difference of sigmoids cancels; mirrored to the negative side it does not.
        sign = ops.stop_gradient(ops.where(lower + upper > 0, -1.0, 1.0))
        mass = ops.abs(ops.sigmoid(sign * upper) - ops.sigmoid(sign * lower))
        mass = lower_bound(mass, LIKELIHOOD_BOUND) if self.trainable else ops.maximum(mass, LIKELIHOOD_BOUND)
        return ops.reshape(ops.transpose(ops.reshape(mass, (channels, -1))), ops.shape(values))

    def auxiliary_loss(self):
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

    def compute_output_shape(self, input_shape, **kwargs):
        return input_shape, input_shape

    def compute_output_spec(self, inputs, noise=None, training=False):
        spec = keras.KerasTensor(inputs.shape, dtype="float32")
        return spec, keras.KerasTensor(inputs.shape, dtype="float32")

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        config.update(seed=self.seed)
        return config


def _initial_quantiles(shape, dtype=None):
    return ops.convert_to_tensor(np.tile([-INIT_SCALE, 0, INIT_SCALE], (*shape[:2], 1)), dtype=dtype)
