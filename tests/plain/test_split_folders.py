"""Folders that are split already."""

import shutil

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import DataError, ImageManifest, image_folder, open_data, scan_folder
from keras_ci2p.data.latent_cache import _read_images
from keras_ci2p.data.latent_cache import write_images as write_columns
from keras_ci2p.data.manifest import summarize
from keras_ci2p.data.sources import scan_images
from keras_ci2p.training.evaluation import held_out

CLASSES = ("ant", "bee", "cow")


def write_split(root, classes=CLASSES, **counts):
    """`root/SPLIT/CLASS/000.png` and so on: no two pictures of different splits are alike."""
    for number, (split, count) in enumerate(counts.items()):
        write_photos(root / split, classes, count, size=(48 + number, 40))
    return root


@pytest.fixture
def no_warning(recwarn):
    yield
    assert not [str(warning.message) for warning in recwarn if warning.category is UserWarning]


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Validation"), ("TRAIN", "valid")])
def test_train_and_val(tmp_path, names, no_warning):
    train, val = names
    root = write_split(tmp_path / "animals", **{train: 8, val: 2})
    (root / ".cache").mkdir()
    (root / train / ".hidden").mkdir()
    (root / train / "ant" / ".DS_Store").write_text("hidden")
    (root / "README.txt").write_text("of no split")
    manifest = scan_folder(root)
    assert manifest.class_names == CLASSES and manifest.sizes() == {"train": 24, "val": 6}
    assert manifest.counts() == dict.fromkeys(CLASSES, 10)
    assert summarize(manifest) == "3 classes: ant 8, bee 8, cow 8; 24 train, 6 val"
    for split, folder in (("train", train), ("val", val)):
        part = manifest.split(split)
        assert {file.split("/")[0] for file in part.files} == {folder}
        assert [part.class_names[label] for label in part.labels] == [file.split("/")[1] for file in part.files]
        assert part.open(0).size == Image.open(root / part.files[0]).size
        # Taken out once, it stays what it is.
        assert part.split(split) == part
    assert manifest.split("all") == manifest
    with pytest.raises(DataError, match=r"no image of the split test; it has train \(24\), val \(6\)"):
        manifest.split("test")


def test_what_is_taken_as_data_is_what_lies_in_the_folders(tmp_path, no_warning):
    root = write_split(tmp_path / "animals", train=8, val=2, test=3)
    for split, count in (("train", 24), ("val", 6), ("test", 9), ("all", 39)):
        data = image_folder(root, image_size=32, batch_size=4, split=split)
        assert len(data.manifest) == count and data.class_names == CLASSES
    widths = {split: open_data(root).split(split).open(0).width for split in ("train", "val", "test")}
    assert widths == {"train": 48, "val": 49, "test": 50}


@pytest.mark.parametrize("test", [0, 3])
def test_a_fifth_of_train_is_kept_where_val_is_missing(tmp_path, test):
    root = write_split(tmp_path / "animals", **{"Train": 10, **({"test": test} if test else {})})
    with pytest.warns(UserWarning, match="no folder for validation: a fifth of Train is kept for it, 6 of 30 images"):
        manifest = scan_folder(root)
    expected = scan_folder(root / "Train")
    for split in ("train", "val"):
        assert manifest.split(split).hashes == expected.split(split).hashes
    assert manifest.is_split_by_contents
    if test:
        assert {file.split("/")[0] for file in manifest.split("test").files} == {"test"}
        assert manifest.sizes() == {"train": 24, "val": 6, "test": 9}
        assert manifest.sha256 != expected.sha256
    else:
        # The same data as the folder within it.
        assert manifest.sha256 == expected.sha256


def test_a_class_that_is_called_as_a_split_is(tmp_path, no_warning):
    root = write_photos(tmp_path / "vehicles", ("bus", "car", "train"))
    (root / "train" / "steam").mkdir()
    shutil.move(root / "train" / "000.png", root / "train" / "steam")
    manifest = scan_folder(root)
    assert manifest.class_names == ("bus", "car", "train") and not manifest.splits and len(manifest) == 30
    assert manifest.sizes() == {"train": 24, "val": 6}


def test_classes_on_one_side_only(tmp_path):
    root = write_split(tmp_path / "animals", train=3, val=2, test=2)
    shutil.rmtree(root / "test" / "cow")
    assert scan_folder(root).split("test").counts() == {"ant": 2, "bee": 2, "cow": 0}
    shutil.rmtree(root / "val" / "bee")
    with pytest.raises(DataError, match="have not the same classes: val lacks bee; val lacks bee. Each"):
        scan_folder(root)
    (root / "val" / "bee").mkdir()
    with pytest.raises(DataError, match="no readable image in the class folder val/bee"):
        scan_folder(root)
    shutil.copytree(root / "train" / "bee", root / "val" / "bee", dirs_exist_ok=True)
    (root / "test" / "ant").rename(root / "test" / "eel")
    with pytest.raises(DataError, match="train lacks eel; val lacks eel"):
        scan_folder(root)


def test_folders_that_are_half_split(tmp_path):
    root = write_split(tmp_path / "animals", train=3, val=2)
    (root / "test").mkdir()
    Image.new("RGB", (8, 8)).save(root / "test" / "1.png")
    with pytest.raises(DataError, match="folders of splits, but test holds no subfolders"):
        scan_folder(root)
    shutil.rmtree(root / "test")
    (root / "valid").mkdir()
    with pytest.raises(DataError, match="several folders for the split val: val and valid"):
        scan_folder(root)


def test_one_class(tmp_path):
    with pytest.raises(DataError, match="at least two classes; found only 'ant'"):
        scan_folder(write_split(tmp_path / "animals", ("ant",), train=3, val=2))


def test_copies_on_both_sides_are_counted(tmp_path):
    root = write_split(tmp_path / "animals", train=4, val=2, test=2)
    for i in range(2):
        shutil.copy(root / "train" / "ant" / f"00{i}.png", root / "val" / "bee" / f"copy{i}.png")
    # Twice on one side is no harm.
    shutil.copy(root / "train" / "ant" / "003.png", root / "train" / "ant" / "copy.png")
    with pytest.warns(UserWarning, match="2 images are in more than one of train, val, test, with the same bytes"):
        manifest = scan_folder(root)
    assert manifest.sizes() == {"train": 13, "val": 8, "test": 6}


def test_the_hash_covers_the_split(tmp_path):
    root = write_split(tmp_path / "animals", train=8, val=2)
    before = scan_folder(root)
    for i in range(2):
        (root / "val" / "ant" / f"00{i}.png").rename(root / "val" / "ant" / f"renamed{i}.png")
    assert scan_folder(root).sha256 == before.sha256
    # One split alone has none to tell of: its hash is that of the folder in it, so that `publish` knows either.
    assert before.split("train").sha256 == scan_folder(root / "train").sha256
    (root / "train" / "ant" / "000.png").rename(root / "val" / "ant" / "moved.png")
    after = scan_folder(root)
    assert sorted(after.hashes) == sorted(before.hashes) and after.sha256 != before.sha256


def manifest_of(root="photos", **columns):
    digests = tuple(f"{i:064x}" for i in range(10))
    return ImageManifest(root, ("ant", "bee"), tuple(f"{i}.png" for i in range(10)), (0, 1) * 5, digests, **columns)


def test_hashes_of_folders_that_are_not_split_stay():
    """Runs and latent caches have recorded them."""
    expected = "a6b18a98657a2d0f9076e2faa8b86afa89534cffa99f724c094901300b46518a"
    assert manifest_of().sha256 == expected
    # Split as such a folder would have been, by whatever means.
    by_contents = tuple("val" if i < 2 else "train" for i in range(10))
    assert manifest_of(splits=by_contents).sha256 == expected and manifest_of(splits=by_contents).is_split_by_contents
    for other in (by_contents[::-1], (*by_contents[:9], "test")):
        assert manifest_of(splits=other).sha256 != expected
    alone = manifest_of(splits=("train",) * 10)
    assert alone.sha256 == expected and not alone.is_split_by_contents


def test_latent_caches_keep_split_manifests(tmp_path):
    root = write_split(tmp_path / "animals", train=8, val=2)
    photos = scan_folder(root)
    splits = {name: photos.split(name) for name in ("train", "val")}
    write_columns(tmp_path / "photos.npz", splits)
    read = _read_images(tmp_path / "photos.npz", {"root": str(root), "class_names": list(CLASSES)})
    for name, manifest in splits.items():
        assert read[name].files == manifest.files and read[name].sha256 == manifest.sha256
        assert np.array_equal(read[name].open(0), manifest.open(0))


def test_summary_of_many_classes():
    names = tuple(f"class{i:04}" for i in range(1000))
    labels = tuple(i // 5 for i in range(5000)) + (0,) * 5
    digests = tuple(f"{i:064x}" for i in range(5005))
    manifest = ImageManifest("photos", names, tuple(map(str, range(5005))), labels, digests)
    assert summarize(manifest) == (
        "1,000 classes of 4 to 8 images: class0000 8, class0001 4, class0002 4 and 997 more; 4,004 train, 1,001 val"
    )


class TestPictures:
    """For training without classes."""

    def test_split_folders_with_classes(self, tmp_path, no_warning):
        root = write_split(tmp_path / "animals", train=8, val=2)
        manifest = scan_images(root)
        assert manifest.sizes() == {"train": 24, "val": 6} and manifest.class_names == CLASSES
        assert manifest.sha256 == scan_folder(root).sha256
        assert {file.split("/")[0] for file in held_out(manifest, "val").files} == {"val"}

    def test_split_folders_without_classes(self, tmp_path):
        root = write_photos(tmp_path / "scans", ("Test", "Train", "Valid"), 5)
        Image.new("RGB", (8, 8)).save(root / "outside.png")
        with pytest.warns(UserWarning, match="outside.png: in the folder of no split"):
            manifest = scan_images(root)
        assert manifest.sizes() == {"train": 5, "val": 5, "test": 5} and manifest.class_names == (".",)
        assert {file.split("/")[0] for file in manifest.split("test").files} == {"Test"}

    def test_train_and_something_else(self, tmp_path, no_warning):
        root = write_photos(tmp_path / "scans", ("train", "more"), 5)
        manifest = scan_images(root)
        assert not manifest.splits and manifest.sizes() == {"train": 8, "val": 2}
