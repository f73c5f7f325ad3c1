"""What the entropy coder codes by, in integers: its tables, and a hyperprior's scales, which choose among them.

Tables are made from probabilities, from a factorized prior's weights, and of Gaussians. The scales are the same
everywhere because `IntegerSynthesis` rounds no sum.
"""

import functools
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from keras_ci2p.codec.rans import CodecError

PRECISION = 16
TOTAL = 1 << PRECISION
_COLUMNS = ("quantized_cdf", "cdf_length", "offset")


@dataclass(frozen=True, eq=False)
class EntropyTables:
    """Cumulative frequencies for the entropy coder, as CompressAI's entropy models hold them.

    Attributes:
        quantized_cdf: int32 `(tables, longest)`: each row rises from 0 to 65536, then zeros. Its last slot is the
            escape, for symbols that no other stands for.
        cdf_length: int32 `(tables,)`: numbers in each row before the zeros, at least 3.
        offset: int32 `(tables,)`: the symbol of each row's first slot.

    Raises:
        CodecError: Anything else.

    Examples:
        >>> # Of the symbols -1, 0 and 1, and of all others together, 10 %.
        >>> cdf = keras_ci2p.codec.quantize_cdf([0.2, 0.5, 0.2, 0.1])
        >>> tables = keras_ci2p.codec.EntropyTables(cdf[None], np.array([5]), np.array([-1]))
        >>> tables.quantized_cdf[0, -1].item()
        65536
    """

    quantized_cdf: np.ndarray
    cdf_length: np.ndarray
    offset: np.ndarray

    def __post_init__(self):
        for name in _COLUMNS:
            object.__setattr__(self, name, np.asarray(getattr(self, name)).astype("int32", casting="same_kind"))
        shape, lengths = self.quantized_cdf.shape, self.cdf_length
        if len(shape) != 2 or lengths.shape != shape[:1] or self.offset.shape != shape[:1]:
            raise CodecError(
                f"Tables have the shapes (tables, longest), (tables,), (tables,). Received: "
                f"quantized_cdf.shape={shape}, cdf_length.shape={lengths.shape}, offset.shape={self.offset.shape}"
            )
        if not len(lengths) or lengths.min() < 3 or lengths.max() > shape[1]:
            raise CodecError("Each table has at least 3 numbers, and not more than its row.")
        # The encoder divides by frequencies, and the decoder looks for a slot.
        rising = np.diff(self.quantized_cdf.astype("int64"), axis=1) > 0
        inside = np.arange(1, shape[1]) < lengths[:, None]
        ends = self.quantized_cdf[np.arange(shape[0]), lengths - 1]
        if not rising[inside].all() or self.quantized_cdf[:, 0].any() or (ends != TOTAL).any():
            raise CodecError(f"A table does not rise from 0 to {TOTAL} at each step.")

    @functools.cached_property
    def columns(self) -> tuple[np.ndarray, ...]:
        """What the coder's loops take: all rows in one array, where each begins, lengths and offsets."""
        tables, longest = self.quantized_cdf.shape
        starts = np.arange(0, tables * longest, longest, dtype="int64")
        return np.ascontiguousarray(self.quantized_cdf).ravel(), starts, self.cdf_length, self.offset

    @functools.cached_property
    def hints(self) -> np.ndarray:
        """For the decoder: of each table, and each of 256 equal parts of 65536, the slot that its beginning lies in."""
        cdfs, starts, lengths, _ = self.columns
        parts = np.arange(0, TOTAL, TOTAL // 256)
        rows = zip(starts, starts + lengths, strict=True)
        return np.concatenate([start + np.searchsorted(cdfs[start:end], parts, "right") - 1 for start, end in rows])

    @functools.cached_property
    def crc(self) -> int:
        """CRC-32 of all numbers that count, in order: lengths, offsets, rows without the zeros."""
        inside = np.arange(self.quantized_cdf.shape[1]) < self.cdf_length[:, None]
        return crc_of(np.concatenate([self.cdf_length, self.offset, self.quantized_cdf[inside]]))

    def is_close(self, other: Self, counts: int = 2) -> bool:
        """Whether others may be of the same probabilities, computed by other floats.

        Where one probability is rounded otherwise, each may get a count less, and the escape all of these. So its own
        frequency may be any, and the others may differ by so many counts of 65536.
        """
        if not (np.array_equal(self.cdf_length, other.cdf_length) and np.array_equal(self.offset, other.offset)):
            return False
        longest = self.cdf_length.max()
        ours, theirs = (np.diff(tables.quantized_cdf[:, :longest]) for tables in (self, other))
        is_symbol = np.arange(longest - 1) < self.cdf_length[:, None] - 2
        return bool((np.abs(ours - theirs)[is_symbol] <= counts).all())

    def to_bytes(self, **more: Any) -> bytes:
        """An `.npz` file of them, and of further arrays; equal ones make equal files."""
        file = io.BytesIO()
        np.savez_compressed(file, **{name: getattr(self, name) for name in _COLUMNS}, **more)
        return file.getvalue()


def read_tables(content):
    """`(EntropyTables, dict of the further arrays)` of what `EntropyTables.to_bytes` gave.

    Raises:
        CodecError: Other bytes.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        return EntropyTables(*(arrays.pop(name) for name in _COLUMNS)), arrays
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CodecError(f"These are no tables of an entropy coder: {error}") from error


def crc_of(integers, crc=0):
    """CRC-32 of an array of integers as 32-bit ones, lowest byte first; continues `crc`."""
    content: Any = np.ascontiguousarray(integers, "<i4")
    return zlib.crc32(content, crc)


def quantize_cdf(probabilities: ArrayLike) -> np.ndarray:
    """CompressAI's `pmf_to_quantized_cdf`: probabilities as cumulative frequencies of which none is zero.

    Args:
        probabilities: `(n,)`, 2 <= n <= 65536, not negative, not all zero; they need not sum to 1.

    Returns:
        int32 `(n + 1,)`, from 0 to 65536.

    Raises:
        CodecError: Other numbers.

    Examples:
        >>> keras_ci2p.codec.quantize_cdf([0.25, 0.5, 0.25]).tolist()
        [0, 16384, 49152, 65536]
    """
    probabilities = np.asarray(probabilities, "float64")
    if not 2 <= len(probabilities) <= TOTAL or not np.isfinite(probabilities).all() or probabilities.min() < 0:
        raise CodecError(
            f"A table takes 2 to {TOTAL} finite probabilities that are not negative. Received: {probabilities=}"
        )
    scaled = probabilities * TOTAL
    # C's `round`: halves away from zero.
    counts = np.floor(scaled).astype("int64") + (scaled - np.floor(scaled) >= 0.5)
    if not counts.any():
        raise CodecError(f"A table takes probabilities that are not all zero. Received: {probabilities=}")
    cdf = np.concatenate([[0], np.cumsum(TOTAL * counts // counts.sum())])
    cdf[-1] = TOTAL
    for i in np.arange(len(probabilities)):
        if cdf[i] == cdf[i + 1]:
            frequencies = np.diff(cdf)
            # The first of the rarest that can spare a count.
            j = np.argmin(np.where(frequencies > 1, frequencies, TOTAL + 1))
            if j < i:
                cdf[j + 1 : i + 1] -= 1
            else:
                cdf[i + 1 : j + 1] += 1
    return cdf.astype("int32")


def factorized_tables(matrices, biases, factors, quantiles):
    """The tables of CompressAI's entropy bottleneck, one for each channel, as its `update()` makes them.

    In float64, so that backends and processors agree on them. CompressAI's own, in float32, differ here and there, as
    `EntropyTables.is_close` allows for.

    Args:
        matrices, biases, factors: Lists of float32 arrays, `(channels, ...)` each, as `EntropyBottleneck` has them.
        quantiles: float32 `(channels, 1, 3)`: lower tail, median, upper tail.

    Raises:
        CodecError: Weights that are not finite; tails too far from the median.
    """
    lower, median, upper = quantiles[:, 0, :].T
    with np.errstate(invalid="ignore", over="ignore"):
        minima, maxima = (np.maximum(np.ceil(side), 0) for side in (median - lower, upper - median))
    if not (minima + maxima + 2 < TOTAL).all():
        raise CodecError(
            f"The quantiles of the prior are {TOTAL:,} apart or more, or not finite: the compressor is not trained, or "
            "its training has diverged."
        )
    minima, lengths = minima.astype("int64"), (minima + maxima).astype("int64") + 1
    # Of all channels as many points as of the longest: the tail's mass is taken beyond these, as CompressAI takes it.
    points = (median - minima)[:, None] + np.arange(lengths.max())
    below, above = (_cumulative_logits(points + side, matrices, biases, factors) for side in (-0.5, 0.5))
    masses, tails = np.abs(_sigmoid(above) - _sigmoid(below)), _sigmoid(below[:, 0]) + _sigmoid(-above[:, -1])
    rows = [
        quantize_cdf(np.append(mass[:length], tail)) for mass, tail, length in zip(masses, tails, lengths, strict=True)
    ]
    cdf = np.zeros((len(rows), lengths.max() + 2), "int32")
    for row, values in zip(cdf, rows, strict=True):
        row[: len(values)] = values
    return EntropyTables(cdf, lengths + 2, -minima)


# Standard deviations of the Gaussian tables: CompressAI's `get_scale_table()`, in float32.
SCALES = np.geomspace(0.11, 256, 64).astype("float32")
# Half of the mass beyond a table's symbols is below -6.1 standard deviations: the normal quantile of 0.5e-9.
_TAIL = 6.109410204869


def scale_indexes(scales):
    """The Gaussian table of each standard deviation, int32: the first whose own is not smaller, or the last."""
    return np.searchsorted(SCALES[:-1], scales).astype("int32")


@functools.cache
def gaussian_tables():
    """The tables of CompressAI's Gaussian conditional, one for each of `SCALES`, as its `update()` makes them.

    In float64, as `factorized_tables`; of CompressAI's own one differs, by counts of up to 2.
    """
    scales = SCALES.astype("float64")
    ends = np.ceil(scales * _TAIL).astype("int64")
    cdf = np.zeros((len(SCALES), 2 * ends[-1] + 3), "int32")
    for row, scale, end in zip(cdf, scales, ends, strict=True):
        # At half-integers from the mean, to one side of it.
        beyond = np.array([0.5 * math.erfc(x / scale / math.sqrt(2)) for x in np.arange(end + 2) - 0.5])
        masses = beyond[:-1] - beyond[1:]
        values = quantize_cdf(np.concatenate([masses[:0:-1], masses, [2 * beyond[-1]]]))
        row[: len(values)] = values
    return EntropyTables(cdf, 2 * ends + 3, -ends)


def _cumulative_logits(points, matrices, biases, factors):
    """`EntropyBottleneck`'s logits of the cumulative distribution, in float64; `(channels, points)`."""
    logits = points[:, None, :].astype("float64")
    for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
        logits = np.logaddexp(0, matrix.astype("float64")) @ logits + bias
        if i < len(factors):
            logits = logits + np.tanh(factors[i].astype("float64")) * np.tanh(logits)
    return logits[:, 0]


def _sigmoid(x):
    # By way of tanh, which does not overflow.
    return 0.5 * (1 + np.tanh(0.5 * x))


# Of activations: bits after the point, and the bound of their absolute values, in such units.
FRACTION = 14
BOUND = 2.0**27
_EXACT = 2.0**53
# Of weights: the most bits after the point.
_FINEST = 24


class IntegerSynthesis:
    """A hyperprior's synthesis transform in integers: hyper-latents to the scales, and perhaps means, of latents.

    The float network gives scales that differ between backends, processors and numbers of threads; a single scale that
    falls to the other side of a table's bound spoils all that follows in a stream (cf. Ballé et al., "Integer networks
    for data compression with latent-variable models", ICLR 2019). Here no sum is ever rounded: its terms are integers
    that together stay below 2^53, held in float64, of which any order of additions gives the same. All else is one
    operation of IEEE 754 for each number. So NumPy's fast products can be used. `docs/compressed.md` has the numbers.

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
