import shutil

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import DataError, ImageManifest, scan_folder, validation_mask


def test_scan(photos):
    manifest = scan_folder(photos)
    assert manifest.class_names == ("bird", "cat", "dog")
    assert manifest.counts() == {"bird": 10, "cat": 10, "dog": 10}
    assert manifest.files[10] == "cat/000.png" and manifest.labels[10] == 1
    assert not manifest.skipped


def test_files_that_are_no_pictures_are_skipped_and_listed(photos):
    (photos / "cat" / "notes.txt").write_text("not a picture")
    (photos / "cat" / "empty.jpg").touch()
    whole = (photos / "cat" / "000.png").read_bytes()
    (photos / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype("uint8"))
    large.save(photos / "dog" / "cut.jpg")
    content = (photos / "dog" / "cut.jpg").read_bytes()
    (photos / "dog" / "cut.jpg").write_bytes(content[: len(content) * 3 // 4])
    (photos / ".hidden").mkdir()
    (photos / "cat" / ".DS_Store").write_text("hidden")
    with pytest.warns(UserWarning, match="skipped 4 files") as caught:
        manifest = scan_folder(photos)
    assert [path for path, _ in manifest.skipped] == ["cat/empty.jpg", "cat/notes.txt", "dog/cut.jpg", "dog/cut.png"]
    assert "empty.jpg: empty file" in str(caught[0].message)
    assert len(manifest) == 30


def test_nested_folders_count(photos):
    (photos / "cat" / "more").mkdir()
    shutil.move(photos / "cat" / "003.png", photos / "cat" / "more")
    assert "cat/more/003.png" in scan_folder(photos).files


@pytest.mark.parametrize(
    ("classes", "count", "message"),
    [((), 0, "found none"), (("cat",), 3, "only 'cat'"), (("cat", "dog"), 0, "no readable image in .* cat, dog")],
)
def test_unusable_folders(tmp_path, classes, count, message):
    root = tmp_path / "photos"
    root.mkdir()
    write_photos(root, classes, count)
    with pytest.raises(DataError, match=message):
        scan_folder(root)
    with pytest.raises(DataError, match="no folder"):
        scan_folder(tmp_path / "absent")


def test_split_takes_the_first_fifth_by_hash(photos):
    manifest = scan_folder(photos)
    for label in range(3):
        digests = sorted(d for d, one in zip(manifest.hashes, manifest.labels, strict=True) if one == label)
        validation = manifest.split("val")
        chosen = sorted(d for d, one in zip(validation.hashes, validation.labels, strict=True) if one == label)
        assert chosen == digests[:2]
    train, val = manifest.split("train"), manifest.split("val")
    assert len(train) == 24 and len(val) == 6
    assert not set(train.hashes) & set(val.hashes)
    assert manifest.split("all").files == manifest.files
    with pytest.raises(DataError, match="train, val, test, all"):
        manifest.split("held out")
    with pytest.raises(DataError, match=r"no image of the split test; it has train \(24\), val \(6\)"):
        manifest.split("test")


def test_split_does_not_depend_on_names_and_places(photos, tmp_path):
    before = scan_folder(photos)
    for i, path in enumerate(sorted((photos / "cat").iterdir())):
        path.rename(photos / "cat" / f"renamed-{9 - i}.png")
    photos.rename(tmp_path / "elsewhere")
    after = scan_folder(tmp_path / "elsewhere")
    assert after.sha256 == before.sha256
    assert set(after.split("val").hashes) == set(before.split("val").hashes)
    (tmp_path / "elsewhere" / "cat" / "renamed-0.png").unlink()
    assert scan_folder(tmp_path / "elsewhere").sha256 != before.sha256


def test_copies_never_straddle_the_split(photos):
    """Every photo copied into its own class and into another one."""
    for path in sorted(photos.glob("*/*.png")):
        shutil.copy(path, path.with_name("copy-" + path.name))
        if path.parent.name == "cat":
            shutil.copy(path, photos / "dog" / ("cat-" + path.name))
    manifest = scan_folder(photos)
    train, val = manifest.split("train"), manifest.split("val")
    assert not set(train.hashes) & set(val.hashes)
    assert len(train) + len(val) == 70


def test_rounding_of_the_fifth():
    assert [sum(validation_mask([f"{i:02}" for i in range(n)], [0] * n)) for n in (1, 2, 3, 5, 8, 31)] == [
        0,
        0,
        1,
        1,
        2,
        6,
    ]


def test_a_split_without_photos(tmp_path):
    manifest = scan_folder(write_photos(tmp_path / "few", ("cat", "dog"), 2))
    with pytest.raises(DataError, match="too few"):
        manifest.split("val")


@pytest.mark.parametrize("few", [1, 2])
def test_classes_without_validation_images(photos, few):
    for path in sorted((photos / "cat").iterdir())[few:]:
        path.unlink()
    with pytest.warns(UserWarning, match="1 class has no image for validation.*: cat. A fifth"):
        manifest = scan_folder(photos)
    assert "cat" not in {manifest.class_names[label] for label in manifest.split("val").labels}


def test_classes_of_copies(photos):
    """All images with the same bytes are on the side of the one that is for validation."""
    paths = sorted((photos / "cat").iterdir())
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    with pytest.warns(UserWarning, match="1 class has no image to train on.*: cat. A fifth .* with copies") as caught:
        manifest = scan_folder(photos)
    assert len(caught) == 1 and manifest.split("train").counts() == {"bird": 8, "cat": 0, "dog": 8}
    # Split by folders, the same is told.
    for name in ("bird", "cat", "dog"):
        for i, path in enumerate(sorted((photos / name).iterdir())):
            split = photos / "split" / ("val" if i < 2 or name == "cat" else "train") / name
            split.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, split)
    (photos / "split" / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="no readable image in the class folder train/cat"):
        scan_folder(photos / "split")
    # Copies of an image of another class are on its side too.
    for name in ("bird", "dog"):
        for path in (photos / name).iterdir():
            shutil.copy(paths[0], path)
    shutil.rmtree(photos / "split")
    with pytest.raises(DataError, match="train split of .* is empty: its 30 images are all copies of those for valid"):
        scan_folder(photos).split("train")


def test_counting_looks_at_each_label_once():
    """Not once for each class, which took 34 s for ImageNet."""

    class Labels(tuple):
        looks = 0

        def __iter__(self):
            Labels.looks += len(self)
            return super().__iter__()

        def count(self, value):
            Labels.looks += len(self)
            return super().count(value)

    names = tuple(f"{i:04}" for i in range(1000))
    labels = Labels(i % 1000 for i in range(3000))
    counts = ImageManifest("images", names, ("",) * 3000, labels, ("0",) * 3000).counts()
    assert counts == dict.fromkeys(names, 3) and 0 < Labels.looks <= 3000
