"""CompressAI's entropy coder, byte for byte: range asymmetric numeral systems (rANS), in Python or compiled by numba.

The state `x` has 63 bits, tables have 16; what no table holds is escaped in 4-bit digits. `docs/compressed.md` has the
whole format. Everything is an integer below 2^63, so that lists of Python's integers and arrays of numba's 64-bit ones
give the same.
"""

import functools
import importlib.util
from bisect import bisect_right
from typing import Any

import numpy as np


class CodecError(ValueError):
    """Symbols that cannot be coded, or bytes that are no stream or file of this format, or a damaged one.

    Examples:
        >>> keras_ci2p.codec.read_compressed(b"JFIF")
        Traceback (most recent call last):
            ...
        keras_ci2p.codec.rans.CodecError: This is no .ci2p file: it does not begin with CI2P.
    """


_LOWEST = 1 << 31
_WORD = (1 << 32) - 1
# Of an escaped symbol. CompressAI's encoder never ends for more.
_MOST_DIGITS = 7


_TOO_LARGE = "The latents are too large to be coded: the compressor's weights or the images are faulty."


def to_symbols(values):
    """Floats rounded to int32, halves to even; CodecError where one is too large, or no number."""
    rounded = np.rint(values)
    if not (np.abs(rounded) < 2**31).all():
        raise CodecError(_TOO_LARGE)
    return rounded.astype("int32")


def encode_latents(symbols, tables, indexes=None):
    """Codes the integers of an image as one string, a channel after the other.

    Args:
        symbols: int32 array `(rows, columns, channels)`.
        tables: `EntropyTables`.
        indexes: int32 array of the same shape, the table of each symbol; None where each channel has its own.

    Returns, raises: As `encode_symbols`.
    """
    return encode_symbols(_in_order(symbols), _indexes(symbols.shape, indexes), tables)


def decode_latents(string, shape, tables, indexes=None):
    """Integers of a shape `(rows, columns, channels)` that `encode_latents` has coded; raises as `decode_symbols`."""
    rows, columns, channels = shape
    symbols = decode_symbols(string, _indexes(shape, indexes), tables)
    return symbols.reshape(channels, rows, columns).transpose(1, 2, 0)


def _in_order(latents):
    """An array `(rows, columns, channels)` as it is coded."""
    return latents.transpose(2, 0, 1).ravel()


def _indexes(shape, indexes):
    if indexes is not None:
        return _in_order(indexes)
    rows, columns, channels = shape
    return np.repeat(np.arange(channels, dtype="int32"), rows * columns)


def encode_symbols(symbols: np.ndarray, indexes: np.ndarray, tables: Any) -> bytes:
    """Codes integers as one string.

    Args:
        symbols: int32 array `(n,)`.
        indexes: int32 array `(n,)`, the table of each symbol.
        tables: `EntropyTables`.

    Returns:
        bytes, a multiple of 4, at least 8.

    Raises:
        CodecError: A symbol farther than 2^27 from its table.

    Examples:
        >>> tables = keras_ci2p.codec.EntropyTables(
        ...     keras_ci2p.codec.quantize_cdf([0.2, 0.5, 0.2, 0.1])[None], np.array([5]), np.array([-1])
        ... )
        >>> symbols, indexes = np.array([0, -1, 1, 0], "int32"), np.zeros(4, "int32")
        >>> string = keras_ci2p.codec.encode_symbols(symbols, indexes, tables)
        >>> len(string)
        8
    """
    encode, _ = _loops()
    # Each symbol takes at most 16 bits, and an escaped one eight digits more.
    words = np.empty(len(symbols) * 48 // 32 + 3, "uint32")
    count = encode(symbols, indexes, *tables.columns, words)
    if count < 0:
        raise CodecError(_TOO_LARGE)
    return words[:count][::-1].astype("<u4").tobytes()


def decode_symbols(string: bytes, indexes: np.ndarray, tables: Any) -> np.ndarray:
    """Integers that `encode_symbols`, or CompressAI, has coded.

    Args:
        string: bytes.
        indexes: int32 array `(n,)`, the table of each symbol.
        tables: The `EntropyTables` that it was coded with.

    Returns:
        int32 array `(n,)`.

    Raises:
        CodecError: The string does not hold exactly so many symbols of these tables. Most damage is found, not all.

    Examples:
        >>> tables = keras_ci2p.codec.EntropyTables(
        ...     keras_ci2p.codec.quantize_cdf([0.2, 0.5, 0.2, 0.1])[None], np.array([5]), np.array([-1])
        ... )
        >>> symbols, indexes = np.array([0, -1, 1, 0], "int32"), np.zeros(4, "int32")
        >>> string = keras_ci2p.codec.encode_symbols(symbols, indexes, tables)
        >>> keras_ci2p.codec.decode_symbols(string, indexes, tables).tolist()
        [0, -1, 1, 0]
    """
    _, decode = _loops()
    words = np.frombuffer(string, "<u4", count=len(string) // 4).astype("int64")
    symbols = np.empty(len(indexes), "int32")
    if len(string) % 4 or len(words) < 2 or not decode(words, indexes, tables.hints, *tables.columns, symbols):
        raise CodecError(
            f"A stream of {len(string):,} bytes does not hold {len(indexes):,} symbols of these tables: it is damaged, "
            "or was coded with others."
        )
    return symbols


def _encode(symbols, indexes, cdfs, starts, lengths, offsets, words):
    """Fills `words` from the last symbol to the first; returns their number, -1 for a symbol beyond all bounds."""
    x, count = _LOWEST, 0
    for i in range(len(symbols) - 1, -1, -1):
        table = indexes[i]
        escape = lengths[table] - 2
        value = symbols[i] - offsets[table]
        if value < 0 or value >= escape:
            raw = -2 * value - 1 if value < 0 else 2 * (value - escape)
            value = escape
            digits = 0
            while raw >> (4 * digits) > 0:
                digits += 1
            if digits > _MOST_DIGITS:
                return -1
            # The decoder reads their number first, then the lowest.
            for j in range(digits - 1, -2, -1):
                if x >= 1 << 59:
                    words[count] = x & _WORD
                    count += 1
                    x >>= 32
                x = (x << 4) + (digits if j < 0 else (raw >> (4 * j)) & 15)
        slot = starts[table] + value
        start = cdfs[slot]
        frequency = cdfs[slot + 1] - start
        if x >= frequency << 47:
            words[count] = x & _WORD
            count += 1
            x >>= 32
        x = ((x // frequency) << 16) + x % frequency + start
    words[count] = x >> 32
    words[count + 1] = x & _WORD
    return count + 2


def _decode(search, words, indexes, hints, cdfs, starts, lengths, offsets, symbols):
    """Fills `symbols`; returns whether the words were exactly these symbols."""
    x, used, size = words[0] + (words[1] << 32), 2, len(words)
    # Above, it would not fit into 63 bits.
    if words[1] > _WORD >> 1 or x < _LOWEST:
        return False
    for i in range(len(indexes)):
        table = indexes[i]
        first, escape = starts[table], lengths[table] - 2
        q = x & 65535
        slot = search(cdfs, q, hints[(table << 8) + (q >> 8)] + 1, first + escape + 1) - 1
        start = cdfs[slot]
        x = (cdfs[slot + 1] - start) * (x >> 16) + q - start
        if x < _LOWEST:
            if used == size:
                return False
            x = (x << 32) + words[used]
            used += 1
        value = slot - first
        if value == escape:
            raw, digits, j = 0, 0, -1
            while j < digits:
                digit = x & 15
                x >>= 4
                if x < _LOWEST:
                    if used == size:
                        return False
                    x = (x << 32) + words[used]
                    used += 1
                if j < 0:
                    digits = digit
                    if digits > _MOST_DIGITS:
                        return False
                else:
                    raw |= digit << (4 * j)
                j += 1
            value = -(raw >> 1) - 1 if raw & 1 else (raw >> 1) + escape
        symbols[i] = value + offsets[table]
    return x == _LOWEST and used == size


def _search(values, value, low, high):
    """`bisect.bisect_right`, for numba: the hint is hardly ever far off."""
    while low < high and values[low] <= value:
        low += 1
    return low


@functools.cache
def _loops():
    """The encoding and the decoding loop: compiled by numba where it is installed, else on lists."""
    if importlib.util.find_spec("numba") is not None:
        import numba

        # Without it numba would run them on arrays, in Python.
        if not numba.config.DISABLE_JIT:
            return _compile(numba.njit)
    return _on_lists(_encode), functools.partial(_on_lists(_decode), bisect_right)


def _compile(njit):
    # No frequency is zero, so that divisors need no check.
    options = {"nogil": True, "error_model": "numpy"}
    try:
        encode, decode, search = (njit(loop, cache=True, **options) for loop in (_encode, _decode, _search))
    except RuntimeError:
        # No directory is there to keep what was compiled.
        encode, decode, search = (njit(loop, **options) for loop in (_encode, _decode, _search))
    return encode, functools.partial(decode, search)


def _on_lists(loop):
    """A loop on arrays, the last of which it fills, run on lists, whose items Python reads ten times as fast."""

    def run(*arguments):
        lists = [part.tolist() if isinstance(part, np.ndarray) else part for part in arguments]
        result = loop(*lists)
        arguments[-1][:] = lists[-1]
        return result

    return run
