"""Compressors with a hyperprior, against CompressAI's numbers and streams (`tests/oracle/hyperpriors.py`)."""

import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from golden_weights import GOLDEN, hyperprior_state_dict
from skimage import data

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.backend import run_in_process
from keras_ci2p.codec import CodecError, ImageCodec, read_compressed
from keras_ci2p.codec.tables import gaussian_tables
from keras_ci2p.convert import CheckpointError, from_compressai, to_compressai

ARCHITECTURES = ("bmshj2018-hyperprior", "mbt2018-mean")
NUMBERS = np.load(GOLDEN / "hyperpriors.npz")
IMAGES = np.load(GOLDEN / "compressai_zoo.npz")["images"]
# Backend, policy and number of threads.
WAYS = (("torch", "float32", 1), ("jax", "mixed_bfloat16", 3), ("tensorflow", "mixed_float16", 2))
TABLES = ("_quantized_cdf", "_cdf_length", "_offset")

to_numpy = keras.ops.convert_to_numpy
of_both = pytest.mark.parametrize("architecture", ARCHITECTURES)


def small(architecture):
    return Compressor(architecture, quality=None, channels=(8, 12))


def golden_state(architecture):
    return hyperprior_state_dict(to_compressai(small(architecture)))


def golden_codec(architecture):
    """Of the files that `golden` has."""
    return ImageCodec(from_compressai(golden_state(architecture)), "golden")


@of_both
def test_both_passes_are_those_of_compressai(architecture):
    compressor = from_compressai(golden_state(architecture))
    assert compressor.architecture == architecture
    for mode in ("evaluation", "training"):
        numbers = {key.split("/", 2)[2]: NUMBERS[key] for key in NUMBERS.files if f"{architecture}/{mode}/" in key}
        noise = {"noise": numbers["noise/y"], "hyper_noise": numbers["noise/z"]} if mode == "training" else {}
        outputs = {
            key: to_numpy(value) for key, value in compressor({"images": IMAGES, **noise}, training=bool(noise)).items()
        }
        for name, key in (("likelihoods", "y"), ("hyper_likelihoods", "z")):
            off = np.abs(outputs[name] - numbers[key]) > 1e-4
            # Frameworks differ by 1e-5, which takes a latent over a half.
            assert off.mean() < (0 if noise else 3e-3) + 1e-9, (mode, name)
        x_hat = outputs["x_hat"][:, ::8, ::8] / 255
        assert np.median(np.abs(x_hat - numbers["x_hat"])) < 1e-4 * np.abs(numbers["x_hat"]).max()
        if noise:
            np.testing.assert_allclose(x_hat, numbers["x_hat"], atol=1e-4 * np.abs(numbers["x_hat"]).max())
        else:
            # CompressAI gives improbable hyper-latents less than they have, to cancellation.
            assert compressor.bits_per_pixel(IMAGES) == pytest.approx(float(numbers["bpp"]), rel=0.02)
    loss = float(to_numpy(compressor.entropy_bottleneck.auxiliary_loss()))
    assert loss == pytest.approx(float(NUMBERS[f"{architecture}/aux_loss"]), rel=1e-4)


@of_both
@pytest.mark.parametrize(("i", "size"), [(0, (64, 64)), (1, (128, 192))])
def test_streams_of_compressai(architecture, i, size):
    """The same bytes where the numbers round to the same integers, and CompressAI's images of its own."""
    tables = {f"entropy_bottleneck.{name}": NUMBERS[f"{architecture}/entropy_bottleneck.{name}"] for name in TABLES}
    tables |= {f"gaussian_conditional.{name}": NUMBERS[f"gaussian_conditional.{name}"] for name in TABLES}
    compressor = from_compressai(golden_state(architecture) | tables)
    assert compressor.gaussian_tables.crc != gaussian_tables().crc, "CompressAI's float32"
    expected = {name: NUMBERS[f"{architecture}/{i}/{name}"] for name in ("y/symbols", "z/symbols", "x_hat")}
    strings = [[NUMBERS[f"{architecture}/{i}/{name}/string"].tobytes()] for name in "yz"]
    images = IMAGES[:, : size[0], : size[1]]
    symbols, own = compressor.encode_images(images)
    others = [some[0] != expected[f"{name}/symbols"] for name, some in zip("yz", symbols, strict=True)]
    assert max(some.mean() for some in others) < 3e-3
    assert (own == strings) == (not any(some.any() for some in others))
    shape = (size[0] // 64, size[1] // 64)
    assert compressor.compress(images) == {"strings": own, "shape": shape}
    decoded, _ = compressor.decode_strings(strings, shape)
    for name, some in zip("yz", decoded, strict=True):
        np.testing.assert_array_equal(some[0], expected[f"{name}/symbols"])
    restored = compressor.decompress(strings, shape)
    # Before they are clipped, the golden weights give numbers up to a hundred.
    differences = np.abs(restored[0, ::4, ::4] / 255 - expected["x_hat"])
    assert differences.max() < 1e-2 and (differences > 1e-4).mean() < 1e-3
    # And back into a checkpoint.
    state = to_compressai(compressor)
    assert all(np.array_equal(state[key], value) for key, value in tables.items())
    assert from_compressai(state, tables="checkpoint").prior_crc() == compressor.prior_crc()
    state["gaussian_conditional.scale_table"] = state["gaussian_conditional.scale_table"] * 2
    with pytest.raises(CheckpointError, match="of other scales"):
        from_compressai(state, tables="checkpoint")


@of_both
def test_a_file_is_decoded_to_the_same_latents(architecture):
    """A file from another machine: bit for bit, on each backend and under each policy."""
    content, expected = (NUMBERS[f"{architecture}/{name}"] for name in ("ci2p", "ci2p/latents"))
    codec = golden_codec(architecture)
    latents = codec.latents(content.tobytes())
    np.testing.assert_array_equal(latents[0], expected)
    assert len(read_compressed(content.tobytes()).strings) == 2
    mixed = Compressor.from_config({**codec.compressor.get_config(), "dtype": "mixed_bfloat16"})
    mixed.set_weights(codec.compressor.get_weights())
    codec = ImageCodec(mixed, "golden")
    np.testing.assert_array_equal(codec.latents(content.tobytes())[0], expected)
    own = codec.compress(IMAGES[0, :100, :150])
    assert 0.8 < len(own) / len(content) < 1.25
    np.testing.assert_array_equal(golden_codec(architecture).latents(own), codec.latents(own))


@pytest.fixture(scope="module")
def files_of_all(tmp_path_factory):
    """A directory of each architecture with what processes of each backend have written and read."""
    directory = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "helpers"))
        for backend, dtype, threads in WAYS:
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                patch.setenv(name, str(threads))
            run_in_process(backend, "hyperprior_files", [" ".join(ARCHITECTURES), dtype, directory], timeout=600)
    return directory


@pytest.mark.once
@of_both
def test_files_go_from_every_backend_to_every_other(architecture, files_of_all):
    """With other policies and numbers of threads; a process for each, which makes this one slow."""
    codec = golden_codec(architecture)
    files = sorted((files_of_all / architecture).glob("*.ci2p"))
    assert len(files) == 3 and len({path.read_bytes() for path in files}) == 3, "floats before the integers differ"
    read = 0
    for path, (backend, *_) in itertools.product(files, WAYS):
        latents = path.with_name(f"{path.stem}-{backend}.npy")
        # By those that came later, and the first one here.
        if latents.exists():
            np.testing.assert_array_equal(np.load(latents), codec.latents(path.read_bytes()))
            read += 1
    assert read == 6


@pytest.mark.once
@of_both
@pytest.mark.parametrize("size", [(1, 1), (65, 31), (100, 224)])
def test_any_size_is_padded_and_cut_back(architecture, size):
    codec = golden_codec(architecture)
    image = data.astronaut()[: size[0], : size[1]]
    content = codec.compress(image)
    restored = codec.decompress(content)
    assert restored.shape == image.shape and restored.dtype == "uint8"
    (height, width), missing = size, [-side % 64 for side in size]
    padding = [(some // 2, some - some // 2) for some in missing]
    padded = np.pad(image, [*padding, (0, 0)], "edge")
    whole = codec.decompress(codec.compress(padded))
    (top, _), (left, _) = padding
    np.testing.assert_array_equal(restored, whole[top : top + height, left : left + width])
    latents = codec.latents(codec.compress(padded))
    rows, columns = (slice(a // 16, -(-(a + side) // 16)) for (a, _), side in zip(padding, size, strict=True))
    np.testing.assert_array_equal(codec.latents(content), latents[:, rows, columns])


@pytest.mark.once
@of_both
def test_what_is_wrong_with_a_file_is_told(architecture):
    codec = golden_codec(architecture)
    content = codec.compress(data.astronaut()[:64, :64])
    rng = np.random.default_rng(0)
    expected, refused = codec.latents(content), 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            np.testing.assert_array_equal(codec.latents(bytes(damaged)), expected)
        except CodecError:
            refused += 1
    assert refused > 290
    compressor = codec.compressor
    crc = compressor.prior_crc()
    kernel = compressor.hyper_synthesis.stages[0].kernel
    kernel.assign(1.01 * kernel)
    assert compressor.prior_crc() != crc, "what decodes has changed"
    with pytest.raises(CodecError, match="other tables"):
        ImageCodec(compressor, "golden").latents(content)
    kernel.assign(np.inf * kernel)
    with pytest.raises(CodecError, match="not finite"):
        ImageCodec(compressor)
    image = np.zeros((1, 64, 64, 3), "uint8")
    strings = golden_codec(architecture).compressor.compress(image)["strings"]
    for wrong in (strings[:1], [strings[0], 2 * strings[1]], [[], []]):
        with pytest.raises(ValueError, match="two lists alike of strings"):
            compressor.decompress(wrong, (1, 1))
    with pytest.raises(CodecError, match="64 Gaussian tables"):
        compressor.gaussian_tables = compressor.entropy_tables


@of_both
def test_presets_and_files_of_keras(architecture, tmp_path):
    compressor = from_compressai(golden_state(architecture))
    stored = from_compressai(
        golden_state(architecture)
        | {f"gaussian_conditional.{name}": NUMBERS[f"gaussian_conditional.{name}"] for name in TABLES}
    )
    stored.save_to_preset(tmp_path / "preset")
    stored.save(tmp_path / "compressor.keras")
    preset, file = Compressor.from_preset(tmp_path / "preset"), keras.saving.load_model(tmp_path / "compressor.keras")
    assert preset.prior_crc() == stored.prior_crc() != compressor.prior_crc() == file.prior_crc()
    outputs = compressor(IMAGES)
    for other in (preset, file):
        for name, value in other(IMAGES).items():
            np.testing.assert_array_equal(to_numpy(value), to_numpy(outputs[name]), err_msg=name)


@pytest.mark.once
@pytest.mark.parametrize("quality", range(1, 9))
def test_channels_of_all_qualities(quality):
    """Those of CompressAI's zoo; the state dict's shapes are held against it by `tests/oracle`."""
    few = {"bmshj2018-hyperprior": quality <= 5, "mbt2018-mean": quality <= 4}
    for architecture, is_small in few.items():
        compressor = Compressor(architecture, quality=quality)
        assert (compressor.num_filters, compressor.latent_channels) == ((128, 192) if is_small else (192, 320))


@of_both
def test_it_goes_into_a_classifier(architecture, nano):
    """The analysis transform, and with it the latents of files."""
    codec = golden_codec(architecture)
    model = CI2PViT((64, 64, 3), compressor=codec.compressor, **nano)
    assert model.compressor.weights_hash()[:16] == codec.identity
    content = codec.compress(IMAGES[0, :64, :64])
    latents = codec.latents(content)
    expected = to_numpy(model(codec.decompress(content)[None]))
    assert to_numpy(model.latent_classifier(latents)).shape == expected.shape
    rounded = np.abs(latents - to_numpy(codec.compressor.encode(IMAGES[:, :64, :64])))
    assert rounded.max() <= 0.51, "the image's own latents, but for rounding"


@pytest.mark.once
def test_sizes_and_architectures_that_do_not_fit():
    compressor = small("mbt2018-mean")
    images = np.zeros((1, 48, 64, 3), "uint8")
    assert compressor.encode(images).shape == (1, 3, 4, 12)
    for call in (compressor, compressor.bits_per_pixel):
        with pytest.raises(ValueError, match="multiples of 64"):
            call(images)
    assert Compressor(quality=None, channels=(8, 12)).gaussian_tables is None
