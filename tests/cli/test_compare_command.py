"""`keras-ci2p compare`, with a process for each backend."""

import importlib.util
import json
import subprocess

import pytest
from conftest import NANO
from PIL import Image

from keras_ci2p.cli import main
from keras_ci2p.names import VARIANTS

# It runs all backends by itself.
pytestmark = pytest.mark.once


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """Runs the command with a small model; its exit code."""
    monkeypatch.setitem(VARIANTS, "nano", {**NANO, "num_layers": 1})
    # Two threads that wait for each other are slow where others compute too.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = ["--model", "vit", "--variant", "nano", "--image-size", "32", "--batch-size", "2", "--steps", "3"]
    return lambda *arguments: main(["compare", *small, "--out", str(tmp_path / "out"), *map(str, arguments)])


def test_backends_agree(compare, photos, tmp_path, capsys):
    assert compare("--data", photos) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert report["reference"] == "torch" and list(report["backends"]) == ["torch", "jax", "tensorflow"]
    assert len(report["backends"]["torch"]["logits"][0]) == 3
    for backend in ("jax", "tensorflow"):
        row = report["backends"][backend]
        assert 0 < row["logits_difference"] < 1e-5 and row["losses_difference"] < 1e-4
        assert row["backend"] == backend and f"\n{backend} " in printed
        assert row["first_step"] > row["step"]["median"] > 0
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert min(picture.size) > 300


def test_failures_have_reasons(compare, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else found(name))
    assert compare("--backends", "jax", "torch", "--dtype", "float99") == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["jax", "no", "result:", "not", "installed"]
    assert lines[-1].startswith("torch ") and "float99" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_interrupted(compare, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    assert compare() == 130
    assert "Nothing is written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
