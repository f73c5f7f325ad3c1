"""A teacher on the command line: `cache --teacher`, `train --teacher`."""

import json

import pytest
from conftest import NANO
from test_cli import failed
from tiny_teacher import onnx_file

from keras_ci2p import Compressor
from keras_ci2p.cli import main
from keras_ci2p.data import open_cache
from keras_ci2p.names import VARIANTS

pytestmark = pytest.mark.once

NAMES = ["bird", "cat", "dog"]
TRAIN = ["--variant", "nano", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def nano_variant(monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", {**NANO, "num_layers": 1})


@pytest.fixture
def preset(tmp_path):
    Compressor("bmshj2018-factorized", quality=None, channels=(4, 6)).save_to_preset(tmp_path / "preset")
    return str(tmp_path / "preset")


@pytest.fixture
def silent(tmp_path):
    """A file that does not say which values it takes."""
    return str(onnx_file(tmp_path / "silent.onnx", metadata={"class_names": NAMES}, size=("rows", "columns")))


@pytest.fixture
def other(tmp_path):
    metadata = {"class_names": NAMES, "value_range": [0, 1], "name": "other"}
    return str(onnx_file(tmp_path / "other.onnx", metadata=metadata))


def test_latents(photos, preset, silent, other, tmp_path, capsys):
    out = str(tmp_path / "latents")
    teacher = ["--teacher", silent, "--teacher-range=-1,1", "--teacher-size", "48"]
    options = ["--compressor", preset, "--image-size", "64", "--views", "1", "--batch-size", "8"]
    assert main(["cache", str(photos), out, *options, *teacher]) == 0
    said = capsys.readouterr().out
    assert "Top-1 of the teacher: 100.00% of the validation photos. Kept of its feature maps: " in said
    assert "% of features_2" in said
    known = open_cache(out).teacher
    assert (known["name"], known["image_size"], known["value_range"]) == ("silent", [48, 48], [-1, 1])

    message = failed(capsys, "cache", str(photos), out, "--more-views", "2", "--teacher", silent, "--teacher-range=0,1")
    assert "takes images of any size" in message
    more = ["cache", str(photos), out, "--more-views", "2"]
    assert "teacher's image_size [48, 48], now [32, 32]" in failed(capsys, *more, *teacher[:3], "--teacher-size", "32")
    assert "now None" in failed(capsys, *more) and "now None" in failed(capsys, *more, "--teacher", "none")
    assert "Received also: --image-size" in failed(capsys, *more, *teacher, "--image-size", "64")
    assert main([*more, *teacher]) == 0
    assert "72 latents of 24 training images" in capsys.readouterr().out
    assert open_cache(out).views("train") == 3

    run = tmp_path / "run"
    message = failed(capsys, "train", out, "--out", str(run), "--teacher", other, *TRAIN)
    assert "holds the targets of another teacher: silent" in message
    message = failed(capsys, "train", out, "--out", str(run), *teacher, *TRAIN)
    assert "teacher_size goes with a teacher that is asked while training, not with a latent cache" in message
    learned = ["--set", "distill_features=4,4,16", "--set", "distill_alpha=0.5"]
    assert main(["train", out, "--out", str(run), "--teacher", silent, *learned, *TRAIN]) == 0
    assert "Learning from the teacher silent" in capsys.readouterr().out
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["recipe"]["distill_features"] == [4, 4, 16] and settings["teacher"] == silent
    assert "features_0_loss" in (run / "history.csv").read_text()


def test_photos(photos, other, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--model", "vit", "--image-size", "32", "--teacher", other, "--teacher-features", "", *TRAIN]
    assert main(["train", str(photos), "--out", str(run), *options]) == 0
    said = capsys.readouterr().out
    assert "Looking at the teacher other ..." in said and "Learning from the teacher other, top-1 100.00%" in said
    assert "from the labels alone" not in said
    assert json.loads((run / "run.json").read_text())["data"]["teacher"]["features"] == []
    for more, message in (
        (["--augment", "device"], "augmented on the host"),
        (["--workers", "1"], "threads of this process"),
        (["--teacher", str(tmp_path / "absent.onnx")], "There is no file"),
        (["--teacher-features", "nothing"], "no outputs nothing to take features of"),
        (["--teacher", "none", "--teacher-size", "64"], "teacher_size goes with a teacher"),
    ):
        assert message in failed(capsys, "train", str(photos), "--out", str(tmp_path / "no"), *options, *more)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--teacher-range=low,high",
            "must be two numbers LOW,HIGH, such as 0,1, or [[R,G,B],[R,G,B]]. Received: 'low,high'",
        ),
        ("--teacher-range=1", "must be two numbers LOW,HIGH, such as 0,1, or [[R,G,B],[R,G,B]]. Received: '1'"),
        ("--teacher-size=large", "must be an integer or none. Received: 'large'"),
        ("--matmul-precision=half", "invalid choice: 'half'"),
    ],
)
def test_arguments(option, message, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["train", "photos", option])
    assert raised.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " error: " in line]
    assert message in line
