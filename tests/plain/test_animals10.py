"""Animals-10 by the lists of names: as a folder, and as a set of TFDS."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import DataError, open_data, scan_folder
from keras_ci2p.data import animals10 as animals10_lists
from keras_ci2p.data.animals10 import CLASSES, ENGLISH, lay_out, listed_splits, read_lists
from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import encode_names
from keras_ci2p.data.tfds import open_tfds, prepare_tfds

ITALIAN = [italian for italian, _ in CLASSES.values()]


@pytest.fixture
def animals(tmp_path):
    """A folder as Kaggle's: of each class the photos 000 to 004."""
    return write_photos(tmp_path / "raw-img", ITALIAN, 5)


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """Lists in place of those that are shipped: in each class 000, 001 and 005 are for training, 002 for validation."""
    root = tmp_path / "listed"
    for split, numbers in (("train", ("000", "001", "005")), ("val", ("002",))):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                pixels = np.full((8, 8, 3), len(list(root.rglob("*.webp"))), "uint8")
                Image.fromarray(pixels).save(root / split / name / f"{number}.webp", lossless=True)
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / NAMES_FILE).write_bytes(encode_names(scan_folder(root)))
    shutil.rmtree(root)
    monkeypatch.setattr(animals10_lists, "named_preset", lambda name: tmp_path / "preset")


def pack(folder, archive):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, Path("raw-img", path.relative_to(folder)))
    return archive


def test_the_lists_that_are_shipped():
    lists = read_lists()
    assert {split: len(names) for split, names in lists.items()} == {"train": 20_865, "val": 2_217}
    assert not np.intersect1d(lists["train"], lists["val"]).size
    photos = [("train/cat/1.webp", "cat"), ("gatto/1.jpeg", "cat"), ("gatto/no such name.jpeg", "cat")]
    assert listed_splits(photos) == ["train", "train", "test"]
    assert listed_splits(photos[2:]) is None


def check_layout(out, source):
    manifest = scan_folder(out)
    assert manifest.class_names == tuple(CLASSES) and manifest.sizes() == {"train": 20, "val": 10, "test": 20}
    split_of = {"000": "train", "001": "train", "002": "val", "003": "test", "004": "test"}
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert len(files) == 50
    for path in files:
        split, english, name = path.relative_to(out).parts
        assert split == split_of[name[:3]]
        assert path.read_bytes() == (source / CLASSES[english][0] / name).read_bytes()


@pytest.mark.parametrize("kind", ["archive", "Italian", "English"])
def test_lay_out(animals, lists, tmp_path, kind):
    source = shutil.copytree(animals, tmp_path / "source")
    if kind == "archive":
        source = pack(source, tmp_path / "archive.zip")
    elif kind == "English":
        for italian in ITALIAN:
            (source / italian).rename(source / ENGLISH[italian])
    layout = lay_out(source, tmp_path / "out")
    check_layout(tmp_path / "out", animals)
    assert layout.counts == {
        "train": dict.fromkeys(CLASSES, 2),
        "val": dict.fromkeys(CLASSES, 1),
        "test": dict.fromkeys(CLASSES, 2),
    }
    assert layout.missing == {"train": 10, "val": 0} and not layout.skipped


def test_what_is_laid_out_can_be_laid_out_again(animals, lists, tmp_path):
    lay_out(animals, tmp_path / "out")
    lay_out(tmp_path / "out", tmp_path / "again")
    check_layout(tmp_path / "again", animals)


def test_files_that_are_left_out(animals, lists, tmp_path):
    (animals / "gatto" / "005.png").write_bytes(b"no picture")
    (animals / "gatto" / "006.png").touch()
    # One name with two suffixes, and one in two folders.
    Image.new("RGB", (9, 9)).save(animals / "gatto" / "002.jpg")
    (animals / "cat").mkdir()
    Image.new("RGB", (9, 9)).save(animals / "cat" / "001.png")
    with pytest.warns(UserWarning, match="Animals-10: skipped 3 files(.|\n)*005.png: no image"):
        layout = lay_out(animals, tmp_path / "out")
    assert dict(layout.skipped) == {
        "gatto/001.png": "another file of this class has the same name",
        "gatto/005.png": "no image",
        "gatto/006.png": "empty file",
    }
    assert layout.counts["val"]["cat"] == 2 and (tmp_path / "out" / "val" / "cat" / "002.jpg").is_file()
    assert layout.missing == {"train": 10, "val": 0}


def test_test_may_lack_classes(animals, lists, tmp_path):
    for italian in ITALIAN[1:]:
        for number in (3, 4):
            (animals / italian / f"00{number}.png").unlink()
    lay_out(animals, tmp_path / "out")
    assert scan_folder(tmp_path / "out").sizes() == {"train": 20, "val": 10, "test": 2}


def test_refusals_leave_nothing(animals, lists, tmp_path, monkeypatch):
    out = tmp_path / "new" / "out"
    (animals / "gatto" / "002.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no readable image for val/cat of the lists"):
        lay_out(animals, out)
    with pytest.raises(FileExistsError, match="not empty"):
        lay_out(animals, animals)
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError, match="is not Animals-10"):
        lay_out(tmp_path / "few", out)
    renamed = shutil.copytree(animals, tmp_path / "renamed")
    for path in sorted(renamed.glob("*/*.png")):
        path.rename(path.with_name("my-" + path.name))
    with pytest.raises(DataError, match="fewer than half have names that the lists"):
        lay_out(renamed, out)

    def interrupted(content):
        raise KeyboardInterrupt

    monkeypatch.setattr(animals10_lists, "check_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lay_out(animals, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())
    (tmp_path / "new" / "out.partial-12345678").mkdir(parents=True)
    with pytest.warns(UserWarning, match="killed, or is still running.*12345678"), pytest.raises(KeyboardInterrupt):
        lay_out(animals, out)


def test_lists_that_are_missing(animals, tmp_path, monkeypatch):
    monkeypatch.setattr(animals10_lists, "named_preset", lambda name: None)
    with pytest.raises(DataError, match="lists of Animals-10 are missing"):
        lay_out(animals, tmp_path / "out")


def test_the_set_of_tfds_is_split_by_the_lists(animals, lists, tmp_path):
    prepare_tfds("animals10", animals, tmp_path / "tfds")
    photos = open_tfds("animals10", tmp_path / "tfds")
    assert photos.sizes() == {"train": 20, "val": 10, "test": 20}
    assert {file.split("/")[1] for file in photos.split("val").files} == {"002.png"}
    assert {file.split("/")[1] for file in photos.split("test").files} == {"003.png", "004.png"}
    content, label, name = photos.records[photos.split("test").positions[7]]
    assert content == (animals / name).read_bytes() and list(CLASSES)[label] == ENGLISH[name.split("/")[0]]
    # The same data as the folder, for runs and reports.
    lay_out(animals, tmp_path / "out")
    folder = open_data(tmp_path / "out")
    assert folder.sha256 == photos.sha256
    for split in ("train", "val", "test"):
        assert folder.split(split).hashes == photos.split(split).hashes
