import shutil
import sys

import pytest
from conftest import write_photos

from keras_ci2p.cli import main
from keras_ci2p.data.animals10 import CLASSES


@pytest.fixture
def animals(tmp_path):
    return write_photos(tmp_path / "raw-img", [italian for italian, _ in CLASSES.values()], 5)


def test_data(animals, tmp_path, capsys):
    command = ["data", "animals10", "--data-dir", str(tmp_path / "sets")]
    assert main([*command, "--from", str(animals)]) == 0
    out = capsys.readouterr().out
    assert f"prepared: {tmp_path / 'sets' / 'animals10' / '1.1.0'}\n" in out
    assert "\nbutterfly  farfalla         5      2,112\n" in out
    assert "\nall                        50     26,179\n26,129 photos fewer than the published 26,179" in out
    assert "50 photos of 10 classes: 40 for training, 10 for validation\n" in out
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
