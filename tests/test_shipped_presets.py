"""The presets under `weights/`: they load without a network, and compute the same on every backend."""

import json
import shutil
import socket
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from skimage import data

import keras_ci2p
from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.data import center_crop
from keras_ci2p.presets import open_preset
from keras_ci2p.training.evaluation import evaluation_size

WEIGHTS = Path(__file__).parents[1] / "weights"
EXPECTED = json.loads((Path(__file__).parent / "golden" / "shipped_presets.json").read_text())
NAMES = {name: open_preset(name) for name in keras_ci2p.list_presets()}
WITH_WEIGHTS = sorted({preset.directory.name for preset in NAMES.values() if preset.has_weights})
CLASSIFIERS = [name for name, expected in EXPECTED.items() if "scores" in expected]
COMPRESSORS = [name for name, expected in EXPECTED.items() if "bpp" in expected]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a shipped preset needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def cat(size):
    """scikit-image's photo of a cat, Chelsea."""
    return center_crop(Image.fromarray(data.chelsea()), size)[None]


def test_what_is_shipped():
    assert sorted(EXPECTED) == WITH_WEIGHTS
    assert "bmshj2018-factorized-mse-5-photos" in COMPRESSORS
    # The best of them, by the validation photos.
    best = max(CLASSIFIERS, key=lambda name: json.loads((WEIGHTS / name / "report.json").read_text())["top1"])
    assert NAMES["animals10"].directory.name == best


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name):
    model = CI2PViT.from_preset(name)
    assert model.class_names == EXPECTED[name]["class_names"]
    logits = keras.ops.convert_to_numpy(model(cat(evaluation_size(model))))[0]
    np.testing.assert_allclose(logits, EXPECTED[name]["scores"], atol=1e-3)
    assert model.class_names[logits.argmax()] == "cat"
    # Its compressor is a preset of ours too, the one that decodes its latents.
    assert open_preset(name).metadata["compressor"] in WITH_WEIGHTS


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_holds_its_compressor(name):
    """Not one that is rounded anew: latents of the one serve the other."""
    own = CI2PViT.from_preset(name).compressor
    compressor = Compressor.from_preset(open_preset(name).metadata["compressor"]).analysis
    assert own.weights_hash() == compressor.weights_hash()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressor(name):
    compressor = Compressor.from_preset(name)
    images = cat((256, 256))
    decoded = keras.ops.convert_to_numpy(compressor(images, training=False)["x_hat"]).clip(0, 255)
    psnr = 10 * np.log10(255**2 / np.square(decoded - images).mean())
    assert compressor.bits_per_pixel(images) == pytest.approx(EXPECTED[name]["bpp"], rel=1e-3)
    assert psnr == pytest.approx(EXPECTED[name]["psnr"], abs=0.02)


@pytest.mark.once
@pytest.mark.parametrize("name", COMPRESSORS)
def test_classifiers_tell_their_compressor(name, nano, tmp_path):
    compressor = Compressor.from_preset(name)
    assert compressor.origin == {"name": name, "sha256": NAMES[name].metadata["files"]["model.weights.h5"]}
    CI2PViT((64, 64, 3), compressor=compressor, **nano).save_to_preset(tmp_path / "preset")
    assert open_preset(tmp_path / "preset").metadata["compressor"] == name
    # A copy elsewhere is nobody's.
    shutil.copytree(NAMES[name].directory, tmp_path / name)
    assert Compressor.from_preset(tmp_path / name).origin is None


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_model_card(name):
    directory = open_preset(name).directory
    card = (directory / "README.md").read_text(encoding="utf-8")
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    measured = f"{100 * report['top1']:.2f} %" if "top1" in report else f"{report['psnr']:.2f}"
    for text in ('license: "apache-2.0"', measured, "keras-ci2p evaluate", "## Notes"):
        assert text in card
    links = [part.split(")")[0] for part in card.split("](")[1:]]
    assert all("://" in link or (directory / link).is_file() for link in links)
