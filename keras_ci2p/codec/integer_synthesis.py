"""A hyperprior's synthesis transform in integers, so that what a file is decoded by is the same everywhere.

The float network gives scales that differ between backends, processors and numbers of threads; a single scale that
falls to the other side of a table's bound spoils all that follows in a stream (cf. Ballé et al., "Integer networks for
data compression with latent-variable models", ICLR 2019). Here no sum is ever rounded: its terms are integers that
together stay below 2^53, held in float64, of which any order of additions gives the same. All else is one operation of
IEEE 754 for each number. So NumPy's fast products can be used. `docs/compressed.md` has the numbers.
"""

import numpy as np

from keras_ci2p.codec.rans import CodecError

# Of activations: bits after the point, and the bound of their absolute values, in such units.
FRACTION = 14
BOUND = 2.0**27
_EXACT = 2.0**53
# Of weights: the most bits after the point.
_FINEST = 24


class IntegerSynthesis:
    """Hyper-latents of an image to the scales, and perhaps means, of its latents.

    Args:
        kernels: float32 arrays: of the transposed 5x5 convolutions of stride 2 `(5, 5, outputs, inputs)`, then of the
            3x3 convolution `(3, 3, inputs, outputs)`.
        biases: float32 arrays `(outputs,)`.
        slope: Of negative activations between them.
        medians: float32 `(inputs,)`, what hyper-latents are counted from.

    Raises:
        CodecError: Weights that are not finite, or so large that sums would not be exact.
    """

    def __init__(self, kernels, biases, slope, medians):
        *doubling, last = zip(kernels, biases, strict=True)
        self._hidden = [_fixed_point(kernel.swapaxes(2, 3), bias) for kernel, bias in doubling]
        self._last = _fixed_point(*last)
        self._slope = slope
        self._medians = np.rint(medians.astype("float64") * 2.0**FRACTION)

    def __call__(self, symbols):
        """float64 array `(4 * rows, 4 * columns, outputs)`, exact.

        Args:
            symbols: int32 array `(rows, columns, inputs)`: hyper-latents less their medians.
        """
        x = np.clip(symbols * 2.0**FRACTION + self._medians, -BOUND, BOUND)
        for kernel, bias, exponent in self._hidden:
            x = _doubled(x, kernel) + bias
            x = np.where(x < 0, self._slope * x, x)
            x = np.clip(np.rint(x * 2.0**-exponent), -BOUND, BOUND)
        kernel, bias, exponent = self._last
        return (_convolved(x, kernel) + bias) * 2.0 ** -(exponent + FRACTION)


def _fixed_point(kernel, bias):
    """A kernel `(rows, columns, inputs, outputs)` and a bias as integers in float64, and the bits after the point.

    As many bits as keep every sum of products exact.
    """
    kernel, bias = kernel.astype("float64"), bias.astype("float64")
    for exponent in range(_FINEST, -1, -1):
        integers, offset = np.rint(kernel * 2.0**exponent), np.rint(bias * 2.0 ** (exponent + FRACTION))
        # What is not finite fails here too.
        if (np.abs(integers).sum((0, 1, 2)) * BOUND + np.abs(offset) < _EXACT).all():
            return integers, offset, exponent
    raise CodecError("The hyperprior's weights are not finite, or too large for files: the compressor is not trained.")


def _doubled(x, kernel):
    """The transposed convolution of stride 2 that doubles height and width, as `SymmetricConv2DTranspose` places it."""
    rows, columns, _ = x.shape
    outputs = np.zeros((2 * rows + 3, 2 * columns + 3, kernel.shape[-1]))
    for i, j in np.ndindex(kernel.shape[:2]):
        outputs[i : i + 2 * rows : 2, j : j + 2 * columns : 2] += _product(x, kernel[i, j])
    return outputs[2:-1, 2:-1]


def _convolved(x, kernel):
    """The convolution with as many zeros on each side as keep height and width."""
    rows, columns, _ = x.shape
    x = np.pad(x, [*((size // 2, size // 2) for size in kernel.shape[:2]), (0, 0)])
    taps = np.ndindex(kernel.shape[:2])
    return sum(_product(x[i : i + rows, j : j + columns], kernel[i, j]) for i, j in taps)


def _product(x, matrix):
    """Of each pixel; of all at once, for which NumPy has the fast one."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], -1)
