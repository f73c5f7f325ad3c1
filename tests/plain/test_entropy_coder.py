"""The entropy coder and its tables, against streams of CompressAI (`tests/oracle/bitstreams.py`)."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from keras_ci2p.codec import CodecError, EntropyTables, decode_symbols, encode_symbols, ms_ssim, quantize_cdf, rans
from keras_ci2p.codec.tables import SCALES, factorized_tables, gaussian_tables, read_tables, scale_indexes

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "bitstreams.npz")


@pytest.fixture(params=["python", "numba"])
def loops(request, monkeypatch):
    """Which loops code: numba's, or Python's where there is no numba."""
    if request.param == "numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("needs numba")
    if request.param == "python":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rans._loops.cache_clear()
    yield request.param
    rans._loops.cache_clear()


@pytest.fixture(scope="module")
def tables():
    rows = np.split(GOLDEN["coder/cdfs"], np.cumsum(GOLDEN["coder/lengths"] + 1)[:-1])
    return as_tables(rows, GOLDEN["coder/offsets"])


def as_tables(rows, offsets):
    cdf = np.zeros((len(rows), max(map(len, rows))), "int32")
    for values, row in zip(cdf, rows, strict=True):
        values[: len(row)] = row
    return EntropyTables(cdf, np.array([len(row) for row in rows]), np.asarray(offsets))


def test_tables_are_those_of_compressai(tables):
    probabilities = np.split(GOLDEN["coder/probabilities"], np.cumsum(GOLDEN["coder/lengths"])[:-1])
    assert any((row == 0).any() for row in probabilities), "some have no count of their own"
    for values, cdf, length in zip(probabilities, tables.quantized_cdf, tables.cdf_length, strict=True):
        np.testing.assert_array_equal(quantize_cdf(values), cdf[:length])


def test_the_coder_is_that_of_compressai(loops, tables):
    symbols, indexes, string = (GOLDEN[f"coder/{name}"] for name in ("symbols", "indexes", "string"))
    slots = symbols - tables.offset[indexes]
    assert (slots < 0).sum() > 10 and (slots > 2**20).sum() > 3, "escapes of many digits"
    assert encode_symbols(symbols, indexes, tables) == string.tobytes()
    np.testing.assert_array_equal(decode_symbols(string.tobytes(), indexes, tables), symbols)


@pytest.mark.parametrize("i", range(4))
def test_streams_of_images_are_those_of_compressai(loops, i):
    """Channel after channel, by the tables of a model."""
    symbols = GOLDEN[f"{i}/symbols"].astype("int32")
    tables = EntropyTables(*(GOLDEN[f"tables/{name}"] for name in ("_quantized_cdf", "_cdf_length", "_offset")))
    string = GOLDEN[f"{i}/string"].tobytes()
    assert rans.encode_latents(symbols, tables) == string
    np.testing.assert_array_equal(rans.decode_latents(string, symbols.shape, tables), symbols)


def test_no_symbols_and_the_farthest(loops, tables):
    nothing = np.zeros(0, "int32")
    assert len(encode_symbols(nothing, nothing, tables)) == 8
    assert len(decode_symbols(encode_symbols(nothing, nothing, tables), nothing, tables)) == 0
    # 2^28 - 1 and 2^28 - 2 as escaped, of the tables of offset -83 and another.
    indexes = np.array([0, 1, 0, 1], "int32")
    low = tables.offset[:2] - 2**27
    high = tables.offset[:2] + tables.cdf_length[:2] - 2 + 2**27 - 1
    symbols = np.concatenate([low, high]).astype("int32")
    np.testing.assert_array_equal(decode_symbols(encode_symbols(symbols, indexes, tables), indexes, tables), symbols)
    for beyond in (low - 1, high + 1):
        with pytest.raises(CodecError, match="too large"):
            encode_symbols(beyond.astype("int32"), indexes[:2], tables)


def test_damaged_streams_end_in_errors_or_other_symbols(loops, tables):
    """No crash, no endless loop, no array of another length."""
    rng = np.random.default_rng(0)
    symbols, indexes = GOLDEN["coder/symbols"][:200], GOLDEN["coder/indexes"][:200]
    string = encode_symbols(symbols, indexes, tables)
    found = 0
    for _ in range(300):
        damaged = bytearray(string)
        match rng.integers(4):
            case 0:
                damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            case 1:
                del damaged[rng.integers(len(damaged)) :]
            case 2:
                damaged += rng.bytes(rng.integers(1, 9))
            case _:
                damaged = bytearray(rng.bytes(rng.integers(0, 400)))
        try:
            decoded = decode_symbols(bytes(damaged), indexes, tables)
        except CodecError as error:
            assert "damaged" in str(error)
            found += 1
        else:
            assert len(decoded) == len(symbols) and not np.array_equal(decoded, symbols)
    assert found > 250
    with pytest.raises(CodecError, match="does not hold 199 symbols"):
        decode_symbols(string, indexes[:-1], tables)
    with pytest.raises(CodecError, match="does not hold 200 symbols"):
        decode_symbols(string, indexes[::-1].copy(), tables)


def test_numba_and_python_agree(tables, monkeypatch):
    """Beyond the golden sequence."""
    pytest.importorskip("numba")
    rng = np.random.default_rng(1)
    indexes = rng.integers(len(tables.offset), size=5000).astype("int32")
    symbols = np.rint(rng.laplace(scale=60, size=5000)).astype("int32")
    compiled = encode_symbols(symbols, indexes, tables)
    monkeypatch.setattr(rans, "_loops", lambda: (rans._on_lists(rans._encode), None))
    assert encode_symbols(symbols, indexes, tables) == compiled


@pytest.mark.parametrize("values", [[0.5], [-0.1, 1.1], [np.nan, 1], [0, 0], np.ones(65537)])
def test_probabilities_that_make_no_table(values):
    with pytest.raises(CodecError):
        quantize_cdf(values)


def test_what_are_no_tables_is_refused():
    good = {"quantized_cdf": [[0, 1, 65536], [0, 5, 65536]], "cdf_length": [3, 3], "offset": [0, -1]}
    EntropyTables(*map(np.array, good.values()))
    for name, values in (
        ("quantized_cdf", [[0, 0, 65536], [0, 5, 65536]]),
        ("quantized_cdf", [[1, 2, 65536], [0, 5, 65536]]),
        ("quantized_cdf", [[0, 1, 65535], [0, 5, 65536]]),
        ("quantized_cdf", [0, 1, 65536]),
        ("cdf_length", [3, 4]),
        ("cdf_length", [3, 2]),
        ("offset", [0]),
    ):
        with pytest.raises(CodecError):
            EntropyTables(*map(np.array, {**good, name: values}.values()))


def test_tables_are_stored(tables):
    stored = tables.to_bytes(weights=np.arange(3))
    assert stored == tables.to_bytes(weights=np.arange(3)), "equal ones make equal files"
    loaded, more = read_tables(stored)
    assert loaded.crc == tables.crc and loaded.is_close(tables) and more["weights"].tolist() == [0, 1, 2]
    for damaged in (b"", stored[:100], stored[:-50], b"PK" + bytes(100)):
        with pytest.raises(CodecError, match="no tables"):
            read_tables(damaged)


def test_close_tables_differ_by_two_counts_beside_the_escape():
    def tables(*frequencies):
        return as_tables([np.concatenate([[0], np.cumsum(frequencies)])], [-1])

    ours = tables(30000, 30000, 5536)
    assert ours.is_close(tables(30002, 29998, 5536)) and ours.is_close(tables(29998, 29998, 5540))
    assert not ours.is_close(tables(30003, 29997, 5536))
    assert not ours.is_close(as_tables([[0, 30000, 60000, 65536]], [0]))
    assert ours.crc != tables(30002, 29998, 5536).crc


def test_a_prior_without_end_makes_no_tables():
    parts = [[np.zeros((2, 1, 1), "float32")], [np.zeros((2, 1, 1), "float32")], []]
    for far in (1e5, np.nan, np.inf):
        quantiles = np.array([[[-far, 0, far]], [[-10, 0, 10]]], "float32")
        with pytest.raises(CodecError, match="not trained"):
            factorized_tables(*parts, quantiles)


def test_gaussian_tables_are_those_of_compressai():
    """But for its float32; and no rounding of ours is so near to a half that another machine's floats decide it."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "hyperpriors.npz")
    names = ("_quantized_cdf", "_cdf_length", "_offset")
    theirs = EntropyTables(*(golden[f"gaussian_conditional.{name}"] for name in names))
    tables = gaussian_tables()
    assert tables.is_close(theirs)
    assert (tables.quantized_cdf != theirs.quantized_cdf).any(axis=1).sum() == 1
    assert tables.crc == 0xD1325D5E
    margins = []
    for scale, end in zip(SCALES.astype("float64"), -tables.offset, strict=True):
        beyond = [0.5 * math.erfc(x / scale / math.sqrt(2)) for x in np.arange(end + 2) - 0.5]
        counts = 65536 * np.append(-np.diff(beyond), 2 * beyond[-1])
        margins.append(np.abs(counts % 1 - 0.5).min())
    assert min(margins) > 1e-7
    # To the middle between two floats of 32 bits, in their distance.
    exact = np.exp(np.linspace(np.log(0.11), np.log(256), 64))
    assert np.abs((exact - SCALES) / np.spacing(SCALES)).max() < 0.5 - 1e-4


def test_scales_choose_tables():
    above = np.nextafter(SCALES, np.float32(1e9))
    np.testing.assert_array_equal(scale_indexes(SCALES), np.arange(64))
    np.testing.assert_array_equal(scale_indexes(above), np.minimum(np.arange(64) + 1, 63))
    np.testing.assert_array_equal(scale_indexes(np.array([-1.0, 0.0, 1e30])), [0, 0, 63])


def test_ms_ssim_is_that_of_pytorch_msssim():
    for seed, ((height, width), expected) in enumerate(
        zip([(161, 175), (200, 333), (256, 256)], GOLDEN["ms_ssim"], strict=True)
    ):
        rng = np.random.default_rng(seed)
        image = (rng.integers(0, 256, (height, width, 3)).cumsum(axis=1) % 256).astype("uint8")
        other = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype("uint8")
        assert ms_ssim(image, other) == pytest.approx(expected, abs=1e-5)
        assert ms_ssim(image, image) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 161"):
        ms_ssim(image[:160], image[:160])
