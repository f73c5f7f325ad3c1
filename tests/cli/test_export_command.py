"""Exporting and quantising on the command line."""

import keras
import numpy as np
import pytest
from test_cli import failed

from keras_ci2p import ViT
from keras_ci2p.cli import main
from keras_ci2p.export import FORMATS, open_exported, open_network
from keras_ci2p.export.formats import read_litert
from keras_ci2p.presets import open_preset

BACKEND = keras.backend.backend()
# One that this backend writes itself: another process takes long.
FORMAT = "litert" if BACKEND == "tensorflow" else "onnx"


@pytest.fixture
def preset(tmp_path, nano):
    metadata = {"compressor": "none", "license": "MIT"}
    ViT((32, 32, 3), 3, **nano).save_to_preset(tmp_path / "preset", metadata=metadata, storage="float16")
    return tmp_path / "preset"


@pytest.mark.once
def test_export(preset, tmp_path, capsys, rng):
    path = tmp_path / f"model{FORMATS[FORMAT].suffix}"
    assert main(["export", str(preset), str(path), "--format", FORMAT, "--image-size", "48"]) == 0
    output = capsys.readouterr().out
    assert "images: float32 (batch, 48, 48, 3), RGB in 0..255" in output
    assert f"written by {'torch' if FORMAT == 'onnx' else 'tensorflow'}" in output
    assert ("since jax cannot" in output) == (BACKEND == "jax")
    assert f"{path.stat().st_size:,} bytes" in output

    images = rng.uniform(0, 255, (2, 48, 48, 3)).astype("float32")
    expected = ViT.from_preset(preset, image_shape=(48, 48, 3)).predict(images, verbose=0)
    np.testing.assert_allclose(open_exported(path, FORMAT)(images), expected, atol=1e-5)

    entries = read_litert(path) if FORMAT == "litert" else open_network(path).metadata
    assert (entries["license"], entries["image_size"], entries["output"]) == ("MIT", [48, 48], "logits")
    # Of the preset only a name that the package knows, not the user's directory; nor names that there are not.
    assert not entries.keys() & {"name", "class_names"}

    before = path.read_bytes()
    assert "--overwrite" in failed(capsys, "export", str(preset), str(path), "--format", FORMAT)
    assert path.read_bytes() == before


@pytest.mark.once
def test_export_int8(photos, tmp_path, nano, capsys):
    names = ["bird", "cat", "dog"]
    ViT((32, 32, 3), 3, class_names=names, **nano).save_to_preset(tmp_path / "preset")
    command = ["export", str(tmp_path / "preset"), str(tmp_path / "model.onnx"), "--format", "onnx"]
    assert main([*command, "--int8", "--data", str(photos)]) == 0
    said = capsys.readouterr().out
    assert "8 bits, ranges by " in said and "of 6 validation images: " in said
    assert open_network(tmp_path / "model.onnx").metadata["int8"]["photos"] == 6


def test_int8_is_refused_before_anything_is_read(tmp_path, capsys):
    command = ["export", "absent", str(tmp_path / "model.onnx"), "--format"]
    assert "--int8 and --data DATA go together" in failed(capsys, *command, "onnx", "--int8")
    assert "--int8 and --data DATA go together" in failed(capsys, *command, "onnx", "--data", "photos")
    assert "--int8 is for --format onnx and openvino" in failed(capsys, *command, "torch", "--int8", "--data", "photos")


@pytest.mark.once
def test_quantize(preset, tmp_path, capsys, rng):
    dest = tmp_path / "int8"
    assert main(["quantize", str(preset), str(dest)]) == 0
    output = capsys.readouterr().out
    assert "quantised: 8 products" in output
    model = ViT.from_preset(preset)
    model.quantize("int8")
    images = rng.uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    np.testing.assert_array_equal(ViT.from_preset(dest).predict(images, verbose=0), expected)
    assert open_preset(dest).metadata["compressor"] == "none"
    assert open_preset(dest).storage == "float16"
    assert "quantised already" in failed(capsys, "quantize", str(dest), str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    assert "no preset" in failed(capsys, "quantize", str(preset), str(tmp_path / "mine"))
