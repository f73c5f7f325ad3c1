import shutil
import sys
from dataclasses import replace

import pytest
from conftest import write_photos

from keras_ci2p.cli import main
from keras_ci2p.data import animals10 as animals10_lists
from keras_ci2p.data import scan_folder
from keras_ci2p.data.animals10 import CLASSES
from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import encode_names


@pytest.fixture
def animals(tmp_path):
    return write_photos(tmp_path / "raw-img", [italian for italian, _ in CLASSES.values()], 5)


def test_data(animals, tmp_path, capsys):
    command = ["data", "animals10", "--data-dir", str(tmp_path / "sets")]
    assert main([*command, "--from", str(animals)]) == 0
    out = capsys.readouterr().out
    assert f"prepared: {tmp_path / 'sets' / 'animals10' / '1.1.0'}\n" in out
    assert "\nbutterfly  farfalla         5      2,112\n" in out
    assert "\nall                        50     26,179\n26,129 images fewer than the published 26,179" in out
    assert "50 images of 10 classes: 40 for training, 10 for validation\n" in out
    assert f"next: TFDS_DATA_DIR={tmp_path / 'sets'} keras-ci2p train tfds:animals10 " in out

    shutil.rmtree(animals)
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "animals10 is prepared already: " in again and "40 for training" in again


def test_expected_failures_are_one_sentence(animals, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    command = ["data", "animals10", "--data-dir", str(tmp_path / "sets")]
    shutil.rmtree(animals / "cane")
    for arguments, message in (
        (command, "kaggle.com/datasets/alessiocorrado99/animals10"),
        ([*command, "--from", str(animals)], "Missing: dog (cane)."),
        ([*command, "--from", str(tmp_path / "absent.zip")], "no file or folder"),
        (["data", "no_such_set"], "TFDS has no set no_such_set"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error and error.count("keras-ci2p: error: ") == 1 and message in error


@pytest.fixture
def lists(animals, tmp_path, monkeypatch):
    """In each class 000 and 001 are listed for training, 002 and the absent 003 for validation; 004 is in no list."""
    listed = write_photos(tmp_path / "listed", tuple(CLASSES), 4)
    manifest = scan_folder(listed)
    splits = tuple("train" if file[-7:-4] in ("000", "001") else "val" for file in manifest.files)
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / NAMES_FILE).write_bytes(encode_names(replace(manifest, splits=splits)))
    shutil.rmtree(listed)
    for path in animals.glob("*/003.png"):
        path.unlink()
    monkeypatch.setattr(animals10_lists, "named_preset", lambda name: tmp_path / "preset")


def test_data_as_a_folder(animals, lists, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    (animals / "gatto" / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    command = ["data", "animals10", "--from", str(animals), "--out", str(out)]
    assert main(command) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["class", "train", "val", "test"]
    assert lines[2].split() == ["cat", "2", "1", "1"] and lines[11].split() == ["all", "20", "10", "10"]
    assert lines[12:] == [
        "train: 20 of the 20 listed names are there, 0 missing",
        "val: 10 of the 20 listed names are there, 10 missing",
        "test: 10 new images, in neither list",
        "left out: 1 file",
        f"written: {out}",
        f"next: keras-ci2p train {out} --out run",
    ]
    assert "gatto/notes.txt: no image" in captured.err
    assert scan_folder(out).sizes() == {"train": 20, "val": 10, "test": 10}
    assert main(command) == 2 and "exists and is not empty" in capsys.readouterr().err
    assert main(["data", "mnist", "--out", str(out)]) == 2 and "lays out animals10" in capsys.readouterr().err


def test_data_by_the_lists(animals, lists, tmp_path, capsys):
    """As a set of TFDS; one that an earlier version has prepared is told of, and stays beside the new one."""
    command = ["data", "animals10", "--data-dir", str(tmp_path / "sets")]
    assert main([*command, "--from", str(animals)]) == 0
    assert "40 images of 10 classes: 20 for training, 10 for validation, 10 for test\n" in capsys.readouterr().out
    current = tmp_path / "sets" / "animals10" / "1.1.0"
    old = current.rename(current.with_name("1.0.0"))
    info = (old / "dataset_info.json").read_text()
    (old / "dataset_info.json").write_text(info.replace('"version": "1.1.0"', '"version": "1.0.0"'))
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "animals10 has a newer version, 1.1.0" in out and f"prepared already: {old}" in out
    assert main([*command, "--from", str(animals)]) == 0
    assert f"prepared: {current}\n" in capsys.readouterr().out and old.is_dir()
