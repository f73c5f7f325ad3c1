import json
import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import once
from golden_weights import GOLDEN, compressai_state_dict

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.convert import CheckpointError, from_compressai, to_compressai
from keras_ci2p.names import WHOLE

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

ZOO = np.load(GOLDEN / "compressai_zoo.npz")
NAMES = sorted({key.split("/")[0] for key in ZOO.files if "/" in key})


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def relative(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.every_backend
@pytest.mark.parametrize("name", [once(name) if name == "bmshj2018-factorized-8" else name for name in NAMES])
def test_golden_numbers(name):
    """What CompressAI computes with the same weights."""
    expected = {key.split("/")[1]: ZOO[key] for key in ZOO.files if key.startswith(f"{name}/")}
    architecture, quality = name.rsplit("-", 1)
    compressor = from_compressai(compressai_state_dict(name), quality=int(quality))
    assert compressor.architecture == architecture and compressor.quality == int(quality)
    images = ZOO["images"]
    latents = to_numpy(compressor.encode(images))
    assert relative(latents[..., ::4], expected["latent"]) < 1e-4
    if "reconstruction" in expected:
        decoded = to_numpy(compressor.decode(np.round(latents)))[:, ::8, ::8] / 255
        assert relative(decoded, expected["reconstruction"]) < 1e-4
    outputs = compressor(images)
    assert ("likelihoods" in outputs) == (architecture in WHOLE)
    if "bpp" in expected:
        assert outputs["likelihoods"].shape == latents.shape
        likelihoods = to_numpy(outputs["likelihoods"])[..., ::4]
        medians = to_numpy(compressor.entropy_bottleneck.medians)
        fraction = (latents - medians) % 1
        # Either rounding is right beside an edge.
        on_edge = np.abs(fraction - 0.5) < 2e-5
        np.testing.assert_allclose(
            np.where(on_edge[..., ::4], expected["y_likelihood"], likelihoods), expected["y_likelihood"], atol=1e-4
        )
        assert abs(compressor.bits_per_pixel(images) / expected["bpp"] - 1) < 1e-4
        x_hat = to_numpy(outputs["x_hat"])[:, ::8, ::8] / 255
        if not on_edge.any():
            assert relative(x_hat, expected["x_hat"]) < 1e-4
        loss = float(to_numpy(compressor.entropy_bottleneck.auxiliary_loss()))
        assert abs(loss / expected["aux_loss"] - 1) < 1e-4


@pytest.mark.every_backend
@pytest.mark.skipif("COMPRESSAI_CHECKPOINT" not in os.environ, reason="needs a checkpoint trained with CompressAI")
def test_a_real_checkpoint():
    """$COMPRESSAI_CHECKPOINT, a `.pth.tar` with what CompressAI computes beside it as `.npz`."""
    path = Path(os.environ["COMPRESSAI_CHECKPOINT"])
    expected = np.load(str(path).removesuffix(".pth.tar") + ".npz")
    compressor = from_compressai(path, quality=5)
    assert compressor.origin["name"] == path.name and len(compressor.origin["sha256"]) == 64
    outputs = {key: to_numpy(value) for key, value in compressor(expected["images"]).items()}
    assert relative(outputs["latents"][..., ::4], expected["latent"]) < 1e-4
    assert relative(outputs["x_hat"][:, ::4, ::4] / 255, expected["x_hat"]) < 1e-4
    np.testing.assert_allclose(outputs["likelihoods"][..., ::4], expected["y_likelihood"], atol=1e-4)
    assert abs(compressor.bits_per_pixel(expected["images"]) / expected["bpp"] - 1) < 1e-4


def small_compressor(architecture="bmshj2018-factorized"):
    return Compressor(architecture, quality=None, channels=(8, 12))


@pytest.fixture
def state():
    return to_compressai(small_compressor())


def same(one, other):
    return all((to_numpy(a) == to_numpy(b)).all() for a, b in zip(one.weights, other.weights, strict=True))


@pytest.mark.every_backend
@pytest.mark.parametrize("architecture", WHOLE)
def test_round_trip_is_exact(architecture):
    compressor = small_compressor(architecture)
    state = to_compressai(compressor)
    back = from_compressai(state)
    assert back.architecture == architecture and (back.num_filters, back.latent_channels) == (8, 12)
    assert back.quality is None and same(back, compressor)
    again = to_compressai(back)
    assert again.keys() == state.keys()
    assert all((again[key] == state[key]).all() and again[key].dtype == state[key].dtype for key in state)


def test_all_key_generations(state):
    reference = from_compressai(state)
    plural = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
    lists = {
        re.sub(r"\._(matrix|bias|factor)(\d)$", lambda m: f"._{plural[m[1]]}.{m[2]}", key): value
        for key, value in state.items()
    }
    assert lists.keys() != state.keys()
    newest = {key.replace("._matrices", ".matrices").replace("._biases", ".biases"): v for key, v in lists.items()}
    for other in (lists, newest):
        assert same(from_compressai(other), reference)


def test_what_wraps_the_weights(state, tmp_path):
    import torch

    reference = from_compressai(state)
    lightning = {f"model.{key}": value for key, value in state.items()}
    parallel = {f"module._orig_mod.{key}": value for key, value in state.items()}
    random = to_compressai(small_compressor())
    for stored in (
        parallel,
        {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"exp_avg": np.zeros(3)}}}},
        {"state_dict": {**lightning, "criterion.weight": np.zeros(3)}, "hyper_parameters": {"lmbda": 0.01}},
        {"net": parallel, "net_ema": random},
    ):
        assert same(from_compressai(stored), reference)
        torch.save(as_tensors(stored), tmp_path / "file.pth.tar")
        loaded = from_compressai(tmp_path / "file.pth.tar")
        assert same(loaded, reference) and loaded.source["name"] == "file.pth.tar"
    assert same(from_compressai(stored, key="net_ema"), from_compressai(random))
    for arguments in ({"source": {"name": "x"}}, {"origin": {"name": "x"}}):
        assert from_compressai(state, **arguments).source == {"name": "x"}


def as_tensors(value):
    import torch

    if isinstance(value, dict):
        return {key: as_tensors(inner) for key, inner in value.items()}
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("lost", ["g_a.1.", "g_a.2."])
def test_another_analysis_transform_is_refused_by_its_layers(state, lost):
    other = {key: value for key, value in state.items() if not key.startswith(lost)}
    other |= {f"{lost}conv1.weight": np.zeros((8, 8, 1, 1), "float32"), f"{lost}conv1.bias": np.zeros(8, "float32")}
    with pytest.raises(CheckpointError, match=rf"none of this package's .* what the checkpoint has: {lost}conv1.bias"):
        from_compressai(other)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["latent_codec.y.channel_context.y1.0.weight", "g_a.1.conv1.weight"], "ELIC"),
        (["latent_codec.y.context_prediction.weight"], "cheng2020-anchor-checkerboard"),
        (["latent_codec.entropy_bottleneck.quantiles"], "latent codecs"),
        (["Gain", "QuantABCD.0.weight"], "variable bit rate"),
        (["cc_mean_transforms.0.0.weight"], "channel-wise prior"),
    ],
)
def test_other_models_of_compressai_are_refused_by_name(state, keys, message):
    """None of them is taken for the nearest of ours."""
    with pytest.raises(CheckpointError, match=f"{message}.*bmshj2018-factorized.*cheng2020-attn"):
        from_compressai({**state, **{key: np.zeros((1, 1), "float32") for key in keys}})


def test_downsample_became_skip():
    state = compressai_state_dict("cheng2020-anchor-3")
    old = {key.replace(".skip.", ".downsample."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    assert same(from_compressai(old), from_compressai(state))


def test_what_does_not_fit_is_named(state):
    with pytest.raises(CheckpointError, match=r"lacks g_s.6.bias"):
        from_compressai({key: value for key, value in state.items() if key != "g_s.6.bias"})
    with pytest.raises(CheckpointError, match="h_x.0.weight"):
        from_compressai({**state, "h_x.0.weight": np.zeros(3)})
    with pytest.raises(CheckpointError, match=r"g_a.2.bias has shape \(9,\).*\(8,\)"):
        from_compressai({**state, "g_a.2.bias": np.zeros(9)})
    with pytest.raises(CheckpointError, match="no weights of CompressAI: it begins with layer.weight"):
        from_compressai({"layer.weight": np.zeros(3)})
    with pytest.raises(CheckpointError, match="twice"):
        from_compressai({**state, "g_a.0.downsample.bias": np.zeros(3), "g_a.0.skip.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"quality 5 has the channels .*\(8, 12\)"):
        from_compressai(state, quality=5)


def test_only_whole_priors_go_back():
    with pytest.raises(ValueError, match="mbt2018"):
        to_compressai(small_compressor("mbt2018"))


class TestCompressor:
    @pytest.mark.parametrize("quality", [0, 9, "5"])
    def test_bad_quality(self, quality):
        with pytest.raises(ValueError, match="quality"):
            Compressor(quality=quality)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="architecture"):
            Compressor("jpeg")
        with pytest.raises(ValueError, match="channels"):
            Compressor(quality=None)
        with pytest.raises(ValueError, match=r"\(128, 192\)"):
            Compressor(quality=5, channels=(192, 320))

    @pytest.mark.every_backend
    def test_encodes_only(self):
        compressor = small_compressor("cheng2020-anchor")
        assert set(compressor(np.zeros((1, 32, 32, 3), "uint8"))) == {"latents"}
        with pytest.raises(ValueError, match="encodes only"):
            compressor.decode(np.zeros((1, 2, 2, 12)))
        with pytest.raises(ValueError, match="prior"):
            compressor.bits_per_pixel(np.zeros((1, 32, 32, 3), "uint8"))

    def test_bad_latents(self):
        with pytest.raises(ValueError, match="latents|Latents"):
            small_compressor().decode(np.zeros((1, 2, 2, 5), "float32"))

    @pytest.mark.every_backend
    def test_noise_from_the_host(self, rng):
        compressor = small_compressor()
        images = rng.integers(0, 256, (1, 32, 32, 3)).astype("uint8")
        noise = rng.uniform(-0.5, 0.5, (1, 2, 2, 12)).astype("float32")
        outputs = compressor(images, noise=noise, training=True)
        expected = to_numpy(compressor.decode(to_numpy(outputs["latents"]) + noise))
        np.testing.assert_allclose(to_numpy(outputs["x_hat"]), expected, rtol=1e-4, atol=1e-2)

    def test_files(self, tmp_path, rng):
        compressor = from_compressai(to_compressai(small_compressor()), origin={"name": "x", "sha256": "0"})
        compressor.save_to_preset(tmp_path / "preset")
        compressor.save(tmp_path / "compressor.keras")
        images = rng.integers(0, 256, (1, 32, 32, 3)).astype("uint8")
        for loaded in (
            Compressor.from_preset(tmp_path / "preset"),
            keras.saving.load_model(tmp_path / "compressor.keras"),
        ):
            assert same(loaded, compressor) and loaded.origin == {"name": "x", "sha256": "0"}
            np.testing.assert_array_equal(to_numpy(loaded.encode(images)), to_numpy(compressor.encode(images)))


@pytest.mark.every_backend
class TestInAClassifier:
    def test_object(self, nano, rng, tmp_path):
        compressor = from_compressai(to_compressai(small_compressor()), origin={"name": "x", "sha256": "0"})
        model = CI2PViT((64, 64, 3), compressor=compressor, **nano)
        images = rng.integers(0, 256, (1, 64, 64, 3)).astype("uint8")
        latents = to_numpy(compressor.encode(images))
        np.testing.assert_array_equal(to_numpy(model.compressor.encode(images)), latents)
        assert model.patch_generator.refine.filters == 12
        assert not model.compressor.is_randomly_initialized
        assert CI2PViT((64, 64, 3), compressor=small_compressor(), **nano).compressor.is_randomly_initialized
        assert model.get_config()["compressor"] == {
            "architecture": "bmshj2018-factorized",
            "num_filters": 8,
            "latent_channels": 12,
            "origin": {"name": "x", "sha256": "0"},
        }
        model.save_to_preset(tmp_path / "preset")
        assert CI2PViT.from_preset(tmp_path / "preset").compressor.origin == {"name": "x", "sha256": "0"}
        assert json.loads((tmp_path / "preset" / "metadata.json").read_text())["compressor"] == "x"

    def test_name_or_object_in_from_preset(self, nano, rng, tmp_path):
        model = CI2PViT((64, 64, 3), compressor={"num_filters": 8, "latent_channels": 12}, **nano)
        model.save_to_preset(tmp_path / "preset")
        compressor = small_compressor()
        compressor.save_to_preset(tmp_path / "compressor")
        for given in (compressor, tmp_path / "compressor", str(tmp_path / "compressor")):
            loaded = CI2PViT.from_preset(tmp_path / "preset", compressor=given)
            assert all(
                (to_numpy(a) == to_numpy(b)).all()
                for a, b in zip(loaded.compressor.weights, compressor.analysis.weights, strict=True)
            )
            kernels = [to_numpy(m.get_layer("block_1").qkv.kernel) for m in (loaded, model)]
            np.testing.assert_array_equal(*kernels)

    def test_another_family(self, nano):
        model = CI2PViT((64, 64, 3), compressor=small_compressor("cheng2020-attn"), **nano)
        assert model(np.zeros((1, 64, 64, 3), "uint8")).shape == (1, 10)
        clone = CI2PViT.from_config(model.get_config())
        assert clone.compressor.architecture == "cheng2020-attn"
