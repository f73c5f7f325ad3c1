"""Ways to lay out a data set: read as it is meant, or refused with a sentence."""

import hashlib
import json
import os
import shutil
import zipfile

import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.codec import CompressedImage
from keras_ci2p.data import DataError, scan_folder
from keras_ci2p.data.animals10 import files_below
from keras_ci2p.data.layouts import is_visible, split_of
from keras_ci2p.data.sources import scan_images
from keras_ci2p.utils import write_json

ANIMALS = ("ant", "bee")
COUNTS = {"train": 4, "val": 2, "test": 1}
# What systems and programs put into folders.
CLUTTER = ("__MACOSX", "@eaDir", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information", ".cache")
CLUTTER += ("#snapshot", "~snapshot", "@Recycle", "@Recently-Snapshot")


def write_layout(root, place):
    """Images at `root/place` with {split}, {animal} and {file} filled in; no two of them are alike."""
    number = 0
    for split, count in COUNTS.items():
        for animal in ANIMALS:
            for i in range(count):
                number += 1
                path = root / place.format(split=split, animal=animal, file=f"{split}{i}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return root


def write_table(path, rows, delimiter=",", encoding="utf-8"):
    path.write_text("\n".join(delimiter.join(row) for row in rows) + "\n", encoding=encoding)


@pytest.fixture
def quiet(recwarn):
    yield
    assert not [str(warning.message) for warning in recwarn if warning.category is UserWarning]


@pytest.mark.parametrize(
    "place",
    [
        "{split}/{animal}/{file}",
        "animals/{split}/{animal}/{file}",
        "a/b/{split}/{animal}/{file}",
        # As on Kaggle.
        "seg_{split}/seg_{split}/{animal}/{file}",
        "{split}_set/{split}_set/{animal}/{file}",
        "{split}2017/images/{animal}/{file}",
        "{animal}/{split}/{file}",
        "animals/{animal}/{split}/more/{file}",
    ],
)
def test_splits_are_found_wherever_they_are(tmp_path, place, quiet):
    manifest = scan_folder(write_layout(tmp_path / "root", place))
    assert manifest.class_names == ANIMALS
    assert manifest.sizes() == {split: 2 * count for split, count in COUNTS.items()}
    for split in COUNTS:
        assert {file.rpartition("/")[2][: len(split)] for file in manifest.split(split).files} == {split}
    first = manifest.split("train")
    assert [first.class_names[label] in file for file, label in zip(first.files, first.labels, strict=True)] == [
        True
    ] * 8


@pytest.mark.parametrize(
    "place", ["{animal}/{file}", "animals/{animal}/{file}", "animals/images/{animal}/{split}.d/{file}"]
)
def test_folders_that_are_not_split(tmp_path, place, quiet):
    manifest = scan_folder(write_layout(tmp_path / "root", place))
    assert manifest.class_names == ANIMALS and not manifest.splits and len(manifest) == 14


@pytest.mark.parametrize(
    "place", ["{animal}/{file}", "animals/{split}/{animal}/{file}", "{animal}/{split}/more/{file}", "{split}-{file}"]
)
def test_compressed_files_are_laid_out_as_images(tmp_path, place, quiet):
    """Also where a table names the images that they were made of."""
    root = write_layout(tmp_path / "root", place)
    files = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    if place == "{split}-{file}":
        root = write_layout(tmp_path / "table", "{animal}-{file}")
        files = sorted(path.relative_to(root) for path in root.rglob("*.png"))
        rows = [(str(path), str(path)[:3], path.stem[4:].rstrip("0123")) for path in files]
        write_table(root / "labels.csv", [("file_name", "label", "split"), *rows])
    before = scan_folder(root)
    for i, path in enumerate(files):
        compressed_file(root / path.with_suffix(".ci2p"), name=f"{i}")
        (root / path).unlink()
    after = scan_folder(root)
    assert [file.replace(".ci2p", ".png") for file in after.files] == list(before.files)
    assert after.labels == before.labels and after.splits == before.splits
    assert after.compressed == list(range(14)) and not before.compressed
    first = (root / after.files[0]).read_bytes()
    assert after.hashes[0] == hashlib.sha256(first).hexdigest() and after.read(0) == first
    before.check_pixels("This")
    with pytest.raises(DataError, match=r"This needs pixels, and 14 of the 14 files.*first is .*`latent_folder`"):
        after.check_pixels("This")


def compressed_file(path, name=""):
    """A file whose header is right; of what, nothing but a compressor knows."""
    path.write_bytes(CompressedImage(name, "0" * 16, 0, 48, 32, (0,), (bytes(8),)).to_bytes())


def test_damaged_headers_of_compressed_files_are_told(tmp_path):
    root = write_layout(tmp_path / "root", "{animal}/{file}")
    for name in ("cut", "flipped", "whole"):
        compressed_file(root / "ant" / f"{name}.ci2p")
    content = (root / "ant" / "whole.ci2p").read_bytes()
    (root / "ant" / "cut.ci2p").write_bytes(content[:20])
    (root / "ant" / "flipped.ci2p").write_bytes(content[:6] + b"x" + content[7:])
    (root / "bee" / "photo.ci2p").write_bytes((root / "bee" / "train0.png").read_bytes())
    # What Pillow makes nothing of, whatever it holds.
    (root / "bee" / "other.jpg").write_bytes(content)
    with pytest.warns(UserWarning, match="skipped 4 files"):
        manifest = scan_folder(root)
    reasons = dict(manifest.skipped)
    assert "cut off in its header" in reasons["ant/cut.ci2p"] and "checksum is wrong" in reasons["ant/flipped.ci2p"]
    assert "does not begin with CI2P" in reasons["bee/photo.ci2p"] and reasons["bee/other.jpg"] == "no image"
    assert len(manifest) == 15 and len(manifest.compressed) == 1


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["train/{animal}/{file}", "holdout/{animal}/{file}"], r"folders of splits \(train\) beside holdout"),
        (["seg_train/a/{animal}/{file}", "seg_test/a/{animal}/{file}", "seg_pred/a/{file}"], "beside seg_pred. Put"),
        (["train/{animal}/{file}", "val/{animal}/{file}", "annotations/{file}"], "beside annotations"),
        (["train/{file}", "test/{file}"], "folders of splits, but test, train holds no subfolders.*labels.csv"),
        (["train/{file}", "test/{file}", "sample/{file}"], r"\(test, train\) beside sample"),
        (
            ["train/{animal}/{file}", "val/{animal}/{file}", "valid/{animal}/{file}"],
            "several .* split val: val and valid",
        ),
        (["train_1/{animal}/{file}", "train_2/{animal}/{file}"], "several folders for the split train: train_1 and"),
        (["ant/train/{file}", "ant/val/{file}", "bee/{file}"], "splits, but bee holds something else. Each class"),
        (["ant/train/{file}", "ant/val/{file}", "ant/{file}", "bee/train/{file}", "bee/val/{file}"], "ant holds somet"),
        (["ant/train/{file}", "ant/val/{file}", "bee/train/{file}"], "not the same classes: val lacks bee"),
        (["{file}"], "found none. The folder itself holds files: 7 .png. The classes can also stand in a table,"),
        (["animals/{file}"], "found only 'animals'"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, places, message):
    for place in places:
        write_layout(tmp_path / "root", place)
    with pytest.raises(DataError, match=message):
        scan_folder(tmp_path / "root")


@pytest.mark.parametrize(
    "places",
    [
        ["bus/{file}", "train/steam/{file}"],
        ["freight train/{file}", "passenger train/{file}"],
        ["test tube/{file}", "train station/{file}"],
        ["toys/train/{file}", "vehicles/{file}"],
        ["bus/old/{file}", "bus/new/{file}", "train/{file}"],
        # Not numbered, and numbered without the same within.
        ["summer/ant/{file}", "summer/bee/{file}", "winter/ant/{file}", "winter/bee/{file}"],
        ["class 1/front/{file}", "class 1/back/{file}", "class 2/{file}"],
    ],
)
def test_classes_whose_names_have_a_word_of_splits(tmp_path, places, quiet):
    for i, place in enumerate(places):
        write_photos(tmp_path / str(i), ("x",), 5, size=(8, 8 + i))
        shutil.copytree(tmp_path / str(i) / "x", (tmp_path / "root" / place).parent, dirs_exist_ok=True)
    manifest = scan_folder(tmp_path / "root")
    assert manifest.class_names == tuple(sorted({place.split("/")[0] for place in places})) and not manifest.splits


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["fold_1/{animal}/{file}", "fold_2/{animal}/{file}"], "fold_1, fold_2 are .* not what fold_1 holds, ant, bee"),
        (["Part 1/{animal}/{file}", "Part 2/{animal}/{file}"], "Part 1, Part 2 are read as the classes"),
        (["train/{animal}/{file}", "unlabeled/{file}"], "train, unlabeled are .* not what train holds, ant, bee"),
    ],
)
def test_folders_that_may_hold_the_classes_are_told(tmp_path, places, message):
    for place in places:
        write_layout(tmp_path / "root", place)
    with pytest.warns(UserWarning, match=message):
        manifest = scan_folder(tmp_path / "root")
    assert manifest.class_names == tuple(sorted(place.split("/")[0] for place in places))


def test_words_of_splits():
    names = {"Train": "train", "seg_val": "val", "test2017": "test", "DEV-set": "val", "trains": None, "ant": None}
    assert {name: split_of(name) for name in names} == names
    assert split_of("train_val") is None


def test_images_outside_of_the_classes_are_told(tmp_path):
    root = write_layout(tmp_path / "root", "{split}/{animal}/{file}")
    Image.new("RGB", (8, 8)).save(root / "train" / "loose.png")
    Image.new("RGB", (8, 8)).save(root / "loose.jpg")
    (root / "README.txt").write_text("no image")
    with pytest.warns(UserWarning, match="skipped 2 files") as caught:
        manifest = scan_folder(root)
    assert manifest.skipped == (
        ("loose.jpg", "in the folder of no class"),
        ("train/loose.png", "in the folder of no class"),
    )
    assert len(caught) == 1 and len(manifest) == 14


@pytest.mark.parametrize("scan", [scan_folder, scan_images])
def test_what_systems_put_there_is_ignored(tmp_path, scan, quiet):
    root = write_layout(tmp_path / "root", "{split}/{animal}/{file}")
    expected = scan(root)
    for folder in (root, root / "train", root / "train" / "ant"):
        for name in CLUTTER:
            (folder / name).mkdir()
            Image.new("RGB", (8, 8), "white").save(folder / name / "ant.png")
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
            (folder / name).write_text("clutter")
    assert scan(root) == expected


def test_animals10_ignores_the_same(tmp_path):
    write_photos(tmp_path, ("cane", *CLUTTER), 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(tmp_path.glob("*/*.png")):
            archive.write(path, path.relative_to(tmp_path))
    for root in (tmp_path, zipfile.Path(tmp_path / "a.zip")):
        assert [name for name, _ in files_below(root, "x")] in (["x/a.zip", "x/cane/000.png"], ["x/cane/000.png"])
    assert not any(map(is_visible, CLUTTER)) and is_visible("lost")


@pytest.mark.parametrize("scan", [scan_folder, scan_images])
def test_linked_folders_are_followed(photos, tmp_path, scan):
    before = scan(photos)
    (tmp_path / "store").mkdir()
    shutil.move(photos / "cat", tmp_path / "store" / "cat")
    (photos / "cat").symlink_to(tmp_path / "store" / "cat")
    (tmp_path / "store" / "dog").mkdir()
    for path in sorted((photos / "dog").iterdir())[5:]:
        shutil.move(path, tmp_path / "store" / "dog")
    (photos / "dog" / "more").symlink_to(tmp_path / "store" / "dog")
    # Round in a circle, or up to all.
    for place, target in (
        ("cat", tmp_path / "store" / "cat"),
        ("dog", photos),
        ("bird", tmp_path),
        ("dog/more", photos),
    ):
        (photos / place / "loop").symlink_to(target)
    (photos / "bird" / "gone.png").symlink_to(tmp_path / "absent.png")
    with pytest.warns(UserWarning, match="bird/gone.png: .*No such file"):
        manifest = scan(photos)
    assert manifest.sha256 == before.sha256


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "photos.ZIP"])
@pytest.mark.parametrize("scan", [scan_folder, scan_images])
def test_archives_are_to_be_unpacked(tmp_path, name, scan):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=f"{name} is an archive. Unpack it, and give the folder"):
        scan(tmp_path / name)
    with pytest.raises(DataError, match="found none. The folder itself holds files: 1 "):
        scan_folder(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    with pytest.raises(DataError, match="cat.png is a file. Put"):
        scan(tmp_path / "cat.png")


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
@pytest.mark.parametrize("scan", [scan_folder, scan_images])
def test_names_in_latin_1(photos, scan):
    expected = scan(photos)
    # Of files and of folders within a class they do not matter.
    os.rename(photos / "cat" / "000.png", os.fsencode(photos / "cat") + b"/caf\xe9.png")
    os.mkdir(os.fsencode(photos / "dog") + b"/\xfcber")
    os.rename(photos / "dog" / "001.png", os.fsencode(photos / "dog") + b"/\xfcber/1.png")
    manifest = scan(photos)
    assert manifest.sha256 == expected.sha256
    assert all(manifest.open(number).size == (48, 40) for number in range(30))
    # As in the report of `evaluate --worst`.
    write_json(photos.parent / "report.json", manifest.files)
    assert tuple(json.loads((photos.parent / "report.json").read_text(encoding="utf-8"))) == manifest.files
    os.rename(photos / "bird", os.fsencode(photos) + b"/b\xe4r")
    with pytest.raises(DataError, match=r"the folder b'b\\xe4r' is not UTF-8.*Rename it"):
        scan(photos)


class TestTables:
    @pytest.mark.parametrize("name", ["labels.csv", "metadata.csv"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_files_and_classes(self, photos, tmp_path, name, delimiter, quiet):
        """All images in one folder: named by their path, without their suffix, or by their name alone."""
        expected = scan_folder(photos)
        root = tmp_path / "flat"
        (root / "images").mkdir(parents=True)
        rows = [("File_Name", "Caption", "Label")]
        for i, path in enumerate(sorted(photos.glob("*/*.png"))):
            shutil.copy(path, root / "images" / f"{i:02}.png")
            rows.append(
                ((f"images/{i:02}.png", f"{i:02}", f"{i:02}.png", f".\\images\\{i:02}")[i % 4], "a b", path.parent.name)
            )
        write_table(root / name, rows, delimiter, encoding="utf-8-sig")
        manifest = scan_folder(root)
        assert manifest.sha256 == expected.sha256 and manifest.class_names == ("bird", "cat", "dog")
        assert manifest.files[0] == "images/00.png" and manifest.open(0).size == (48, 40)

    def test_splits(self, tmp_path, quiet):
        """In a column, in folders with one table, and in folders with one each, as Hugging Face has them."""
        sizes = {split: 2 * count for split, count in COUNTS.items()}
        root = write_layout(tmp_path / "root", "all/{animal}-{file}")
        names = sorted(path.name for path in root.glob("*/*.png"))
        rows = [(name, name[:3], name[4:-5].title()) for name in names]
        write_table(root / "labels.csv", [("image_id", "class", "split"), *rows])
        assert scan_folder(root).sizes() == sizes and scan_folder(root).class_names == ANIMALS
        one = write_layout(tmp_path / "one", "{split}_images/{animal}-{file}")
        write_table(one / "labels.csv", [("id", "breed"), *((name, name[:3]) for name in names)])
        assert scan_folder(one).sha256 == scan_folder(root).sha256 and scan_folder(one).sizes() == sizes
        each = write_layout(tmp_path / "each", "{split}/{animal}-{file}")
        for split in COUNTS:
            own = [(name, name[:3]) for name in names if split in name]
            write_table(each / split / "metadata.csv", [("file_name", "label"), *own])
        assert scan_folder(each).sha256 == scan_folder(root).sha256
        assert {file.split("/")[0] for file in scan_folder(each).split("val").files} == {"val"}

    def test_images_without_a_class(self, tmp_path):
        root = write_layout(tmp_path / "root", "{split}/{animal}-{file}")
        rows = [(path.stem, path.stem[:3]) for path in sorted((root / "train").iterdir())]
        write_table(root / "labels.csv", [("id", "breed"), *rows, ("absent", "ant"), ("ant-val0", "")])
        with pytest.warns(UserWarning) as caught:
            manifest = scan_folder(root)
        messages = "\n".join(str(warning.message) for warning in caught)
        assert "6 images that labels.csv does not name are left out" in messages
        assert "absent: no such file, or several, in labels.csv" in messages and "ant-val0: of no class" in messages
        assert "a fifth of train is kept for it, 2 of 8" in messages
        assert manifest.sizes() == {"train": 6, "val": 2}

    def test_tables_of_something_else(self, photos):
        """Captions, or the classes' numbers with their names."""
        expected = scan_folder(photos)
        write_table(photos / "metadata.csv", [("file_name", "text"), ("cat/000.png", "a cat")])
        write_table(photos / "labels.csv", [("ClassId", "Name"), ("0", "bird"), ("1", "cat"), ("2", "dog")])
        assert scan_folder(photos) == expected

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([("cat/000.png", "cat"), ("dog/000.png", "dog")], "must begin with a line of headings"),
            (
                [("file", "label"), ("cat/000.png", "cat"), ("cat/000", "dog")],
                "names cat/000 twice: as 'cat' and as 'dog'",
            ),
            ([("file", "label", "split"), ("cat/000.png", "cat", "third")], "must be train, val or test. .*'third'"),
            ([("file", "label", "split"), ("cat/000.png", "cat", "val"), ("cat/001.png", "dog", "")], "of all or none"),
            ([("file", "label"), ("cat/000.png", "cat")], "found only 'cat'"),
            ([("file", "label"), ("cat/000.png", "c\u00e4t")], "cannot be read as a table, CSV in UTF-8"),
        ],
    )
    def test_errors(self, photos, rows, message):
        write_table(photos / "labels.csv", rows, encoding="latin-1")
        with pytest.raises(DataError, match=message):
            scan_folder(photos)
