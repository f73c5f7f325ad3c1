"""Images that another split holds too, scaled, encoded anew or mirrored."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from keras_ci2p.data import DataError, scan_folder
from keras_ci2p.data.overlap import difference_hashes, without_near_copies


def scene(seed, size=(160, 120)):
    """A picture of smooth shapes, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (9, 12, 3), "uint8")).resize(size, Image.Resampling.BICUBIC)


def write_scenes(root, numbers):
    """`{(split, class): numbers of scenes}`, as PNG files called by their numbers."""
    for (split, name), some in numbers.items():
        (root / split / name).mkdir(parents=True)
        for number in some:
            scene(number).save(root / split / name / f"{number:03}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    """Of each class 4 training and 3 validation images, without copies."""
    numbers = {}
    for label, name in enumerate(("ant", "bee")):
        numbers["train", name] = range(10 * label, 10 * label + 4)
        numbers["val", name] = range(10 * label + 4, 10 * label + 7)
    return write_scenes(tmp_path / "photos", numbers)


def test_copies_are_found(photos):
    assert without_near_copies(scan_folder(photos))[1] == 0
    scene(0).resize((97, 73)).save(photos / "val" / "ant" / "small.jpg", quality=60)
    ImageOps.mirror(scene(1)).save(photos / "val" / "ant" / "mirrored.webp", quality=70)
    # Whatever class it is said to be.
    scene(2).point(lambda value: 0.8 * value + 20).save(photos / "val" / "bee" / "pale.png")
    ImageOps.mirror(scene(11).resize((400, 300))).save(photos / "val" / "bee" / "large.jpg", quality=85)
    manifest = scan_folder(photos)
    kept, count = without_near_copies(manifest)
    assert count == 4
    expected = [file for file in manifest.files if file.endswith("png") and "pale" not in file]
    assert list(kept.files) == expected and kept.sizes() == {"train": 8, "val": 6}
    # A copy of a validation image harms nobody.
    scene(4).save(photos / "val" / "bee" / "twice.webp")
    assert without_near_copies(scan_folder(photos))[1] == 4


def test_the_distance(photos):
    Image.blend(scene(0), scene(30), 0.3).save(photos / "val" / "ant" / "alike.png")
    manifest = scan_folder(photos)
    (hashed, *_), (like, *_) = (
        difference_hashes(manifest.subset([i])) for i in (0, manifest.files.index("val/ant/alike.png"))
    )
    distance = (int(hashed[0]) ^ int(like[0])).bit_count()
    assert 4 < distance < 20
    assert without_near_copies(manifest, max_distance=distance - 1)[1] == 0
    assert without_near_copies(manifest, max_distance=distance)[1] == 1


def test_what_is_split_by_contents_stays_split(tmp_path):
    for name, first in (("ant", 0), ("bee", 20)):
        (tmp_path / name).mkdir()
        for number in range(first, first + 15):
            scene(number).save(tmp_path / name / f"{number:03}.png")
    manifest = scan_folder(tmp_path)
    # Their contents tell for which split they are, mostly for training.
    for file in manifest.split("val").files:
        Image.open(tmp_path / file).resize((80, 60)).save(tmp_path / "ant" / f"copy_{file[-7:]}")
    before = scan_folder(tmp_path)
    kept, count = without_near_copies(before)
    assert kept.split("train").files == before.split("train").files
    assert len(kept.split("val")) == len(before.split("val")) - count and count > 0


def test_images_that_vanish(photos):
    scene(0).resize((97, 73)).save(photos / "val" / "ant" / "copy.jpg")
    # A flat picture's hash is 0, as that of nothing.
    Image.new("RGB", (50, 50)).save(photos / "train" / "ant" / "flat.png")
    manifest = scan_folder(photos)
    (photos / "val" / "bee" / "014.png").unlink()
    (photos / "train" / "ant" / "000.png").unlink()
    kept, count = without_near_copies(manifest)
    assert count == 0 and len(kept) == len(manifest)


def test_errors(photos):
    with pytest.raises(ValueError, match="val or test.*'all'"):
        without_near_copies(scan_folder(photos), "all")
    with pytest.raises(DataError, match="no image of the split test"):
        without_near_copies(scan_folder(photos), "test")
    for name in ("ant", "bee"):
        for path in sorted((photos / "val" / name).iterdir()):
            Image.open(path).resize((50, 40)).save(photos / "train" / name / f"of_{path.name}")
    with pytest.raises(DataError, match="All 6 images"):
        without_near_copies(scan_folder(photos))
