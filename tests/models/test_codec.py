"""`Compressor.compress` and `decompress`, and `.ci2p` files."""

import collections
import hashlib
import struct
import zlib

import keras
import numpy as np
import pytest
from fuzz import mutate_bytes
from golden_weights import GOLDEN, compressai_state_dict
from PIL import Image
from skimage import data

from keras_ci2p import Compressor
from keras_ci2p.codec import CodecError, CompressedImage, ImageCodec, read_compressed
from keras_ci2p.convert import CheckpointError, from_compressai, to_compressai
from keras_ci2p.models import coding
from keras_ci2p.presets import TABLES, open_preset

STREAMS = np.load(GOLDEN / "bitstreams.npz")
ROWS = ("_quantized_cdf", "_cdf_length", "_offset")
SHIPPED = "bmshj2018-factorized-mse-5-photos"

to_numpy = keras.ops.convert_to_numpy


def small(seed=0, **arguments):
    keras.utils.set_random_seed(seed)
    compressor = Compressor("bmshj2018-factorized", quality=None, channels=(8, 12), **arguments)
    # Of random weights all latents would round to zero.
    last = compressor.analysis.stages[-1]
    last.kernel.assign(100 * last.kernel)
    return compressor


def photo(height, width):
    return data.astronaut()[100 : 100 + height, 150 : 150 + width]


@pytest.fixture(scope="module")
def golden():
    """The compressor whose streams CompressAI has written, with its tables."""
    state = compressai_state_dict("bmshj2018-factorized-1")
    state["g_a.6.weight"] = state["g_a.6.weight"] * np.float32(15)
    state |= {f"entropy_bottleneck.{name}": STREAMS[f"tables/{name}"] for name in ROWS}
    return from_compressai(state, quality=1)


@pytest.mark.parametrize(("i", "size"), [(1, (64, 80)), (3, (16, 32))])
def test_streams_of_compressai(golden, i, size):
    """The same bytes where the latents round to the same integers, and CompressAI's images of its own."""
    height, width = size
    images = np.load(GOLDEN / "compressai_zoo.npz")["images"][:, :height, :width]
    string, symbols = STREAMS[f"{i}/string"].tobytes(), STREAMS[f"{i}/symbols"]
    mine = golden.compress(images)
    assert mine["shape"] == symbols.shape[:2] and [len(strings) for strings in mine["strings"]] == [1]
    ((quantized,),), _ = golden.encode_images(images)
    others = quantized != symbols
    # Frameworks differ by 1e-5, which takes a latent over a half.
    assert others.mean() < 1e-3 and np.abs(quantized - symbols).max() <= 1
    assert (mine["strings"][0][0] == string) == (not others.any())
    restored = golden.decompress([[string]], mine["shape"])
    np.testing.assert_allclose(restored[0, ::4, ::4] / 255, STREAMS[f"{i}/x_hat"], atol=1e-4)


def test_restores_what_the_model_computes(rng):
    compressor = small()
    images = rng.integers(0, 256, (3, 32, 48, 3)).astype("uint8")
    compressed = compressor.compress(images)
    assert compressed["shape"] == (2, 3)
    assert all(isinstance(string, bytes) for string in compressed["strings"][0]) and len(compressed["strings"][0]) == 3
    restored = compressor.decompress(**compressed)
    assert restored.dtype == "float32"
    expected = to_numpy(compressor(images, training=False)["x_hat"])
    np.testing.assert_allclose(restored, expected.clip(0, 255), atol=1e-3)
    one = compressor.compress(keras.ops.convert_to_tensor(images[1:2], "float32"))
    assert one["strings"][0][0] == compressed["strings"][0][1], "images are coded one by one"


@pytest.mark.once
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 31), (48, 50)])
def test_any_size_is_padded_and_cut_back(height, width):
    compressor = small()
    image = photo(height, width)[None]
    compressed = compressor.compress(image)
    rows, columns = -(-height // 16), -(-width // 16)
    assert compressed["shape"] == (rows, columns)
    # As much on one side as on the other, and the odd pixel after it.
    top, left = (16 * rows - height) // 2, (16 * columns - width) // 2
    sides = ((top, 16 * rows - height - top), (left, 16 * columns - width - left))
    padded = np.pad(image, [(0, 0), *sides, (0, 0)], "edge")
    assert compressor.compress(padded) == compressed
    whole = compressor.decompress(**compressed)
    restored = compressor.decompress(**compressed, image_size=(height, width))
    np.testing.assert_array_equal(restored, whole[:, top : top + height, left : left + width])
    with pytest.raises(ValueError, match="have no latents .* Received: image_size="):
        compressor.decompress(**compressed, image_size=(height + 16, width))


@pytest.mark.once
def test_large_images_are_coded_in_tiles(monkeypatch):
    compressor = small()
    image = photo(16 * 9, 16 * 7)[None]
    latents = to_numpy(compressor.encode(image))
    restored = to_numpy(compressor.decode(np.round(latents)))
    monkeypatch.setattr(coding, "_TILE", 3)
    tiled = coding._in_tiles(compressor.encode, image, 16, 1)
    np.testing.assert_allclose(tiled, latents, atol=1e-4 * np.abs(latents).max())
    tiled = coding._in_tiles(compressor.decode, np.round(latents), 1, 16)
    np.testing.assert_allclose(tiled, restored, atol=1e-4 * np.abs(restored).max())
    monkeypatch.setattr(coding, "_MARGIN", 1)
    narrow = coding._in_tiles(compressor.decode, np.round(latents), 1, 16)
    assert np.abs(narrow - restored).max() > 1e-3 * np.abs(restored).max(), "all of the margin is needed"


@pytest.mark.once
def test_true_size_is_what_likelihoods_promise():
    """Within a hundredth, of the shipped compressor on photos."""
    compressor = Compressor.from_preset(SHIPPED)
    images = np.stack([photo(128, 128), data.coffee()[100:228, 200:328]])
    promised = compressor.bits_per_pixel(images) * images[..., 0].size
    actual = 8 * sum(map(len, compressor.compress(images)["strings"][0]))
    assert actual == pytest.approx(promised, rel=0.01)


def test_tables_are_the_same_on_every_backend():
    """Made in float64 from the weights; the number is from torch."""
    state = compressai_state_dict("bmshj2018-factorized-1")
    compressor = from_compressai(state, quality=1)
    assert compressor.entropy_tables.crc == 0x8C32F2F6
    assert Compressor.from_preset(SHIPPED).entropy_tables.crc == 0xF60C8B11


@pytest.mark.once
def test_tables_follow_the_weights(tmp_path, rng):
    compressor = small()
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    crcs = [compressor.entropy_tables.crc]
    made = compressor.entropy_tables
    assert compressor.entropy_tables is made, "made once"
    compressor.analysis.stages[0].kernel.assign(0.5 * compressor.analysis.stages[0].kernel)
    assert compressor.entropy_tables is made, "the prior's weights count alone"

    bottleneck = compressor.entropy_bottleneck
    bottleneck.set_weights([1.1 * weight for weight in bottleneck.get_weights()])
    crcs.append(compressor.entropy_tables.crc)
    other = small(seed=3)
    other.save_weights(tmp_path / "other.weights.h5")
    compressor.load_weights(tmp_path / "other.weights.h5")
    crcs.append(compressor.entropy_tables.crc)
    assert crcs[-1] == other.entropy_tables.crc
    compressor.compile(lmbda=0.02)
    compressor.fit(images, verbose=0)
    crcs.append(compressor.entropy_tables.crc)
    assert len(set(crcs)) == 4
    restored = compressor.decompress(**compressor.compress(images))
    np.testing.assert_allclose(restored, to_numpy(compressor(images)["x_hat"]).clip(0, 255), atol=1e-3)
    # Not those of the original, which the copy has not any more.
    compressor.save(tmp_path / "compressor.keras")
    assert keras.saving.load_model(tmp_path / "compressor.keras").entropy_tables.crc == crcs[-1]


@pytest.mark.once
def test_a_preset_holds_the_tables(tmp_path):
    compressor = small()
    other = small(seed=3).entropy_tables
    # As a machine with other floats would have made them.
    compressor.entropy_tables = other
    for storage in ("float32", "int8"):
        compressor.save_to_preset(tmp_path / storage, storage=storage)
        assert Compressor.from_preset(tmp_path / storage).entropy_tables.crc == other.crc
    assert TABLES in open_preset(tmp_path / "int8").metadata["files"]
    # Written again, with what else the preset knows.
    loaded, preset = Compressor.from_preset(tmp_path / "int8"), open_preset(tmp_path / "int8")
    assert preset.further_files() == {}
    loaded.save_to_preset(tmp_path / "again", **preset.carried())
    assert Compressor.from_preset(tmp_path / "again").entropy_tables.crc == other.crc


@pytest.mark.once
def test_tables_never_decide_whether_a_preset_loads(tmp_path):
    compressor = small()
    own = compressor.entropy_tables.crc
    compressor.save_to_preset(tmp_path / "preset")
    metadata = (tmp_path / "preset" / "metadata.json").read_text()
    digest = open_preset(tmp_path / "preset").metadata["files"][TABLES]
    stale = small(seed=3)
    stale_file = stale.entropy_tables.to_bytes(weights=np.frombuffer(stale.prior_hash(), "uint8"))
    for content in (stale_file, b"no tables", stale.entropy_tables.to_bytes()):
        (tmp_path / "preset" / TABLES).write_bytes(content)
        changed = metadata.replace(digest, hashlib.sha256(content).hexdigest())
        (tmp_path / "preset" / "metadata.json").write_text(changed)
        assert Compressor.from_preset(tmp_path / "preset").entropy_tables.crc == own
    # As before there were tables.
    (tmp_path / "preset" / TABLES).unlink()
    lines = [line for line in metadata.splitlines() if TABLES not in line]
    (tmp_path / "preset" / "metadata.json").write_text("\n".join(lines))
    assert Compressor.from_preset(tmp_path / "preset").entropy_tables.crc == own


@pytest.mark.once
def test_weights_without_tables_are_saved_all_the_same(tmp_path):
    compressor = small()
    quantiles = compressor.entropy_bottleneck.quantiles
    quantiles.assign(1e6 * quantiles)
    with pytest.raises(CodecError, match="not trained"):
        compressor.compress(photo(16, 16)[None])
    compressor.save_to_preset(tmp_path / "preset")
    assert TABLES not in open_preset(tmp_path / "preset").metadata["files"]
    assert to_compressai(compressor)["entropy_bottleneck._quantized_cdf"].size == 0
    with pytest.raises(CodecError, match="not trained"):
        Compressor.from_preset(tmp_path / "preset").entropy_tables  # noqa: B018


@pytest.mark.once
def test_tables_of_a_checkpoint(golden):
    stored = STREAMS["tables/_quantized_cdf"]
    fresh = to_compressai(golden)
    np.testing.assert_array_equal(fresh["entropy_bottleneck._quantized_cdf"], stored, "written back")
    assert golden.entropy_tables.quantized_cdf.tolist() == stored.tolist()
    # CompressAI's float32 is not our float64.
    own = from_compressai({**fresh, **{f"entropy_bottleneck.{name}": np.array([], "int32") for name in ROWS}})
    assert own.entropy_tables.crc != golden.entropy_tables.crc
    assert own.entropy_tables.is_close(golden.entropy_tables)


@pytest.mark.once
def test_stale_tables_of_a_checkpoint():
    trained, before = small(), small(seed=3)
    stale = to_compressai(trained) | {
        key: value for key, value in to_compressai(before).items() if key.rsplit(".")[-1] in ROWS
    }
    with pytest.warns(UserWarning, match="made before its last training"):
        assert from_compressai(stale).entropy_tables.crc == trained.entropy_tables.crc
    old = from_compressai(stale, tables="checkpoint")
    assert old.entropy_tables.crc == before.entropy_tables.crc
    compressed = old.compress(photo(32, 32)[None])
    np.testing.assert_allclose(
        old.decompress(**compressed), trained.decompress(**trained.compress(photo(32, 32)[None])), atol=1e-3
    )
    faulty = stale | {"entropy_bottleneck._offset": np.zeros(3, "int32")}
    with pytest.warns(UserWarning, match="made before"):
        from_compressai(faulty)
    with pytest.raises(CheckpointError, match="faulty"):
        from_compressai(faulty, tables="checkpoint")
    none = stale | {f"entropy_bottleneck.{name}": np.array([], "int32") for name in ROWS}
    with pytest.raises(CheckpointError, match="holds no tables"):
        from_compressai(none, tables="checkpoint")
    with pytest.raises(ValueError, match="`tables` must be one of"):
        from_compressai(none, tables="new")


@pytest.mark.once
def test_what_cannot_be_coded_is_refused():
    compressor = small()
    with pytest.raises(ValueError, match="Images have the shape"):
        compressor.compress(np.zeros((16, 16, 3), "uint8"))
    with pytest.raises(CodecError, match="too large"):
        compressor.compress(np.full((1, 16, 16, 3), np.nan, "float32"))
    compressed = compressor.compress(photo(16, 32)[None])
    with pytest.raises(ValueError, match="one list of strings"):
        compressor.decompress(2 * compressed["strings"], compressed["shape"])
    with pytest.raises(ValueError, match=r"of \[0\] strings"):
        compressor.decompress([[]], compressed["shape"])
    with pytest.raises(CodecError, match="damaged"):
        compressor.decompress(compressed["strings"], (2, 2))
    with pytest.raises(CodecError, match="12 tables"):
        compressor.entropy_tables = Compressor(quality=None, channels=(3, 4)).entropy_tables
    compressor.analysis.stages[-1].kernel.assign(1e12 * compressor.analysis.stages[-1].kernel)
    with pytest.raises(CodecError, match="too large"):
        compressor.compress(photo(16, 16)[None])
    other = Compressor("mbt2018", quality=None, channels=(8, 12))
    for call in (lambda: other.compress(photo(16, 16)[None]), lambda: other.entropy_tables):
        with pytest.raises(ValueError, match="The prior of mbt2018"):
            call()
    with pytest.raises(ValueError, match="no Gaussian tables"):
        compressor.gaussian_tables = compressor.entropy_tables


# === Files ===


@pytest.fixture
def codec():
    return ImageCodec(small(), "nano")


@pytest.mark.once
def test_a_file_holds_an_image(codec):
    image = photo(50, 37)
    content = codec.compress(image)
    file = read_compressed(content)
    assert (file.name, file.height, file.width, file.prior) == ("nano", 50, 37, codec.compressor.prior_crc())
    assert file.compressor == codec.compressor.analysis.weights_hash()[:16]
    compressed = codec.compressor.compress(image[None])
    assert file.strings == tuple(compressed["strings"][0])
    expected = np.rint(codec.compressor.decompress(**compressed, image_size=(50, 37))[0])
    restored = codec.decompress(content)
    assert restored.dtype == "uint8"
    np.testing.assert_array_equal(restored, expected)
    latents = codec.latents(content)
    assert latents.shape == (1, 4, 3, 12)
    np.testing.assert_array_equal(latents, codec.compressor.decode_strings(**compressed)[1])


@pytest.mark.once
def test_header_and_checksums_of_a_shipped_name_take_64_bytes():
    file = CompressedImage(SHIPPED, "0123456789abcdef", 1, 3000, 4000, (2,), (bytes(100),))
    assert len(file.to_bytes()) == 164


@pytest.mark.once
def test_bytes_of_a_file():
    """As `docs/compressed.md` has them."""
    strings = (b"first", b"second!")
    file = CompressedImage("abc", "0123456789abcdef", 7, 300, 513, (8, 9), strings)
    header = b"CI2P" + bytes([1, 2, 0x2C, 1, 1, 2]) + bytes.fromhex("0123456789abcdef") + struct.pack("<I", 7)
    header += b"\x03abc" + struct.pack("<3I", 8, 9, 5)
    assert file.to_bytes() == header + struct.pack("<I", zlib.crc32(header)) + b"firstsecond!"
    assert read_compressed(file.to_bytes()) == file


@pytest.mark.once
def test_mutated_files_are_refused_or_the_right_image(codec):
    """Two thousand; never a wrong image, nor another error than the one that says so."""
    rng = np.random.default_rng(0)
    image = photo(40, 56)
    content = codec.compress(image)
    expected = codec.decompress(content)
    outcomes = collections.Counter()
    for _ in range(2000):
        kind, mutated = mutate_bytes(content, rng)
        if mutated == content:
            continue
        try:
            restored = codec.decompress(mutated)
        except CodecError as error:
            assert 20 < len(str(error)) < 400
            outcomes["refused"] += 1
        else:
            np.testing.assert_array_equal(restored, expected, err_msg=kind)
            outcomes["right"] += 1
    assert outcomes["refused"] > 1800


def with_header(content, **changes):
    """The file with other words in its header, and the checksum that goes with them."""
    file = read_compressed(content)
    return CompressedImage(**{**vars(file), **changes}).to_bytes()


@pytest.mark.once
def test_headers_that_lie(codec, monkeypatch):
    content = codec.compress(photo(40, 56))
    for changes, words in (
        ({"compressor": 16 * "0"}, "of another compressor, 'nano'"),
        ({"prior": 5}, "other tables"),
        ({"height": 65535, "width": 65535}, "Pillow's limit"),
        ({"height": 56}, "damaged"),
        ({"width": 16}, "damaged"),
        ({"crcs": (5,)}, "checksum of its latents"),
        ({"strings": (b"",)}, "damaged"),
        ({"crcs": (1, 2), "strings": (b"12345678", b"12345678")}, "other tables"),
    ):
        with pytest.raises(CodecError, match=words):
            codec.decompress(with_header(content, **changes))
    for changed, words in (
        (b"\x89PNG" + content[4:], "no .ci2p file"),
        (b"", "no .ci2p file"),
        (content[:4] + b"\x02" + content[5:], "format 2"),
        (content[:20], "cut off in its header"),
        (content[:6] + b"\xff" + content[7:], "checksum is wrong"),
    ):
        with pytest.raises(CodecError, match=words):
            codec.check(changed)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 56 // 2)
    codec.decompress(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 56 // 2 - 1)
    with pytest.raises(CodecError, match="Pillow's limit"):
        codec.decompress(content)
    for changes, words in (
        ({"height": 65536}, "1 to 65,535 pixels .* Received: height=65536"),
        ({"name": 256 * "a"}, "at most 255 bytes. Received: name="),
    ):
        with pytest.raises(CodecError, match=words):
            with_header(content, **changes)


@pytest.mark.once
def test_other_weights_do_not_read_a_file(codec):
    content = codec.compress(photo(40, 56))
    with pytest.raises(CodecError, match="of another compressor, 'nano'"):
        ImageCodec(small(seed=3)).decompress(content)
    quantiles = codec.compressor.entropy_bottleneck.quantiles
    # The same tables: a median is as far from both tails.
    quantiles.assign(quantiles + 0.25)
    with pytest.raises(CodecError, match="other tables"):
        ImageCodec(codec.compressor).decompress(content)
