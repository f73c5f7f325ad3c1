"""The examples run as they are written, on tiny data."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NANO
from PIL import Image

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.data import image_folder
from keras_ci2p.names import VARIANTS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.once


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example in `tmp_path` and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, "nano", NANO)

    def run_example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


@pytest.fixture
def compressor(tmp_path):
    """A preset of a small one."""
    path = tmp_path / "compressor"
    Compressor("bmshj2018-factorized", quality=None, channels=(8, 12)).save_to_preset(path)
    return path


@pytest.fixture
def preset(tmp_path, compressor):
    """A preset of a classifier with that compressor."""
    path = tmp_path / "preset"
    names = ["bird", "cat", "dog"]
    analysis = Compressor.from_preset(compressor)
    model = CI2PViT((64, 64, 3), num_classes=3, class_names=names, compressor=analysis, **NANO)
    # Fresh heads answer nearly alike to everything.
    model.head.kernel.assign(100 * model.head.kernel)
    model.save_to_preset(path, metadata={"compressor": str(compressor)})
    return path


def check_picture(path):
    """It is a picture, and not an empty one."""
    with Image.open(path) as picture:
        assert min(picture.size) > 300
        assert np.asarray(picture.convert("L")).std() > 10


def test_animals10_teacher(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_CI2P_CACHE", str(tmp_path / "cache"))
    printed = run("animals10_teacher.py", "teacher.onnx", "--data", photos, "--image-size", 64)
    # By chance two of six would be right.
    assert re.search(r"^efficientnet-lite2, Apache-2.0: [56] of 6; \d+ images/s$", printed, re.MULTILINE)
    assert "features_16: (4, 4, 120)" in printed
    assert (tmp_path / "teacher.onnx").is_file()


def test_balance_classes(run, photos, preset):
    for i in range(4, 10):
        (photos / "dog" / f"{i:03d}.png").unlink()
    before = CI2PViT.from_preset(preset)
    printed = run("balance_classes.py", preset, photos)
    counts = list(map(int, re.findall(r"(\d+) photos, bias", printed)))
    assert counts[0] == counts[1] > 2 * counts[2] > 0
    after = CI2PViT.from_preset("balanced")
    assert after.class_names == before.class_names
    *others, bias = after.get_weights()
    for weight, expected in zip(others, before.get_weights(), strict=False):
        np.testing.assert_array_equal(weight, expected)
    assert abs(bias.sum()) < 1e-5 < np.abs(bias).max()
    batches = image_folder(photos, split="train", augment=False, image_size=64, batch_size=32)
    (images, labels), *_ = batches
    likely = np.exp(after.predict_on_batch(images).astype("float64"))
    likely /= likely.sum(axis=1, keepdims=True)
    means = [likely[labels[:, label] == 1].mean(axis=0) for label in range(3)]
    np.testing.assert_allclose(np.mean(means, axis=0), 1 / 3, atol=1e-4)


def test_train_animals10(run, photos, compressor, tmp_path):
    options = ["--minutes", 0.001, "--compressor", compressor, "--variant", "nano", "--image-size", 32, "--views", 2]
    with pytest.warns(UserWarning, match="longer than the 0.001 minutes"):
        printed = run("train_animals10.py", photos, "--out", "out", *options)
    assert "of 6 photos that it has not seen. Model: out/preset" in printed
    check_picture(tmp_path / "out" / "confusion.png")
    model = CI2PViT.from_preset(tmp_path / "out" / "preset")
    assert model.class_names == ["bird", "cat", "dog"] and model.compressor.latent_channels == 12
    metadata = json.loads((tmp_path / "out" / "preset" / "metadata.json").read_text())
    assert metadata["evaluation"]["images"] == 6
    # It was finished: nothing is trained, measured or encoded again.
    history = (tmp_path / "out" / "run" / "history.csv").read_bytes()
    assert "Measuring" not in run("train_animals10.py", photos, "--out", "out", *options)
    assert (tmp_path / "out" / "run" / "history.csv").read_bytes() == history


def test_finetune_your_folder(run, photos, preset, tmp_path):
    options = ["--epochs", 2, "--image-size", 32, "--batch-size", 8, "--out", "tuned"]
    printed = run("finetune_your_folder.py", photos, "--preset", preset, *options)
    assert "of the validation photos. Model: tuned" in printed
    before, after = CI2PViT.from_preset(preset), CI2PViT.from_preset(tmp_path / "tuned")
    assert after.image_shape == (32, 32, 3) and after.class_names == ["bird", "cat", "dog"]
    change = np.abs(after.get_layer("block_0").get_weights()[2] - before.get_layer("block_0").get_weights()[2]).max()
    assert 0 < change < 0.01, "it began with the preset's weights"
    np.testing.assert_array_equal(after.compressor.get_weights()[0], before.compressor.get_weights()[0])


def test_train_your_compressor(run, photos, tmp_path):
    options = ["--steps", 2, "--crop-size", 32, "--batch-size", 2, "--quality", 1]
    printed = run("train_your_compressor.py", photos, "--out", "compressor_run", *options)
    assert "step      2:" in printed and "dB at" in printed and "1,493,312 of the compressor frozen" in printed
    check_picture(tmp_path / "compressor_run" / "reconstructions.png")
    assert Compressor.from_preset(tmp_path / "compressor_run" / "best").quality == 1


def test_inspect_model(run, photos, preset, tmp_path):
    printed = run("inspect_model.py", preset, "--data", photos)
    assert "Picture: inspection.png" in printed and "No reconstruction" not in printed
    check_picture(tmp_path / "inspection.png")
    check_picture(tmp_path / "inspection_confusion.png")
    with Image.open(tmp_path / "inspection.png") as picture:
        width = picture.width
    printed = run(
        "inspect_model.py", preset, photos / "cat" / "000.png", "--compressor", "absent", "--out", "other.png"
    )
    assert "No reconstruction: Unknown preset 'absent'" in printed
    with Image.open(tmp_path / "other.png") as picture:
        assert picture.width < width, "one panel less"


def test_compare_backends(run, photos, preset):
    printed = run(
        "compare_backends.py", preset, photos / "cat" / "000.png", photos / "dog" / "000.png", "--batch-size", 2
    )
    rows = {line.split()[0]: line.split() for line in printed.splitlines()[-3:]}
    assert set(rows) == {"torch", "jax", "tensorflow"}
    assert float(rows["torch"][1]) == 0
    for backend in ("jax", "tensorflow"):
        assert 0 < float(rows[backend][1]) < 1e-4
        assert float(rows[backend][2]) > 0
        assert rows[backend][-1] == rows["torch"][-1] in ("bird", "cat", "dog")
