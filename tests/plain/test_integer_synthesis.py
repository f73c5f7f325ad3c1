"""A hyperprior's synthesis in integers: exact, whatever the order of its sums."""

import itertools

import numpy as np
import pytest

from keras_ci2p.codec import CodecError
from keras_ci2p.codec.tables import BOUND, FRACTION, IntegerSynthesis


def random_parts(rng, scale=1.0):
    shapes = ((5, 5, 4, 3), (5, 5, 5, 4), (3, 3, 5, 2))
    kernels = [(scale * rng.normal(0, 0.2, shape)).astype("float32") for shape in shapes]
    return kernels, [rng.normal(0, 0.2, n).astype("float32") for n in (4, 5, 2)]


def by_hand(x, kernel, bias, is_transposed):
    """A convolution of Python's integers, whose number of digits has no end, in an order of its own."""
    rows, columns, _ = x.shape
    size = (2 * rows, 2 * columns) if is_transposed else (rows, columns)
    outputs = np.empty((*size, len(bias)), object)
    outputs[:] = [int(value) for value in bias]
    for i, j in reversed(list(itertools.product(range(rows), range(columns)))):
        for a, b in np.ndindex(kernel.shape[:2]):
            if is_transposed:
                row, column, matrix = 2 * i + a - 2, 2 * j + b - 2, kernel[a, b].T
            else:
                row, column, matrix = i - a + 1, j - b + 1, kernel[a, b]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                outputs[row, column] += [
                    sum(int(v) * int(w) for v, w in zip(x[i, j], weights, strict=True)) for weights in matrix.T
                ]
    return outputs


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_every_sum_is_exact(slope):
    """By the description in `docs/compressed.md`, with integers of Python."""
    rng = np.random.default_rng(0)
    kernels, biases = random_parts(rng)
    medians = rng.normal(size=3).astype("float32")
    symbols = rng.integers(-40, 40, (2, 3, 3)).astype("int32")
    # Far beyond the bound of activations.
    symbols[0, 0] = 2**27, -(2**27), 16000
    x = np.clip(symbols * 2.0**FRACTION + np.rint(medians.astype("float64") * 2**FRACTION), -BOUND, BOUND)
    largest = 0
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        taps = (0, 1, 3) if i < 2 else (0, 1, 2)
        for exponent in range(24, -1, -1):
            weights = np.rint(kernel.astype("float64") * 2**exponent)
            offset = np.rint(bias.astype("float64") * 2 ** (exponent + FRACTION))
            if (np.abs(weights).sum(taps) * BOUND + np.abs(offset)).max() < 2**53:
                break
        assert 16 < exponent < 24
        x = by_hand(x, weights, offset, is_transposed=i < 2)
        largest = max(largest, np.abs(x).max())
        if i < 2:
            x = x.astype("float64")
            x = np.clip(np.rint(np.where(x < 0, slope * x, x) / 2**exponent), -BOUND, BOUND)
    assert 2**45 < largest < 2**53, "floats are used nearly as far as they are exact"
    expected = x.astype("float64") / 2 ** (exponent + FRACTION)
    np.testing.assert_array_equal(IntegerSynthesis(kernels, biases, slope, medians)(symbols), expected)


def test_large_weights_have_fewer_bits_and_none_where_they_are_too_large():
    rng = np.random.default_rng(1)
    symbols = rng.integers(-9, 9, (2, 2, 3)).astype("int32")
    medians = np.zeros(3, "float32")
    kernels, biases = random_parts(rng, scale=1000)
    outputs = IntegerSynthesis(kernels, biases, 0.0, medians)(symbols)
    assert np.isfinite(outputs).all() and outputs.any()
    for scale in (1e9, np.inf, np.nan):
        kernels, biases = random_parts(rng)
        kernels[1] = np.float32(scale) * kernels[1]
        with pytest.raises(CodecError, match="not finite, or too large"):
            IntegerSynthesis(kernels, biases, 0.0, medians)
