"""Images that a model was trained on are known by their bytes, or by class and name."""

import hashlib
import io
import json

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import ImageManifest, scan_folder
from keras_ci2p.data.manifest import NAMES_FILE, hash_names
from keras_ci2p.data.overlap import (
    TRAIN_HASHES_FILE,
    carried_files,
    count_overlap,
    default_split,
    encode_hashes,
    encode_names,
    english_names,
    image_names,
)
from keras_ci2p.presets import Preset


def manifest_of(files, splits=(), class_names=("cat", "dog"), salt=""):
    """The class of each file is the one that stands in its path."""
    labels = tuple(next(i for i, name in enumerate(class_names) if name in file.split("/")) for file in files)
    digests = tuple(hashlib.sha256((salt + file).encode()).hexdigest() for file in files)
    return ImageManifest("photos", class_names, tuple(files), labels, digests, splits=splits)


def preset_of(directory, data, class_names=("cat", "dog"), names=True):
    """As `train` writes it, without weights."""
    directory.mkdir()
    (directory / TRAIN_HASHES_FILE).write_bytes(encode_hashes(data.split("train").hashes))
    (directory / NAMES_FILE).write_bytes(encode_names(data))
    (directory / "task.json").write_text(json.dumps({"config": {"class_names": class_names}}))
    listed = [TRAIN_HASHES_FILE, "task.json", *([NAMES_FILE] if names else [])]
    return Preset(directory, {"files": dict.fromkeys(listed, "")})


def test_names():
    manifest = manifest_of(["train/cat/1.jpg", "dog/more/a.b.webp", "val/dog/0000012"])
    assert image_names(manifest) == ["cat/1", "dog/a.b", None]
    italian = manifest_of(["gatto/1.jpeg", "Cane/2.png"], class_names=("Cane", "gatto"))
    assert image_names(italian) == ["cat/1", "dog/2"]
    # "cane" is a stick too.
    assert english_names(["cane", "umbrella"]) == ["cane", "umbrella"]
    expected = hashlib.sha256(b"cat/1").digest()[:8]
    assert hash_names(["cat/1"]).astype(">u8").tobytes() == expected


def test_names_of_both_splits_are_left_out():
    files = ["train/cat/1.jpg", "train/cat/2.jpg", "val/cat/2.jpg", "val/cat/3.jpg"]
    lists = np.load(io.BytesIO(encode_names(manifest_of(files, ("train", "train", "val", "val")))))
    assert lists["train"].tolist() == hash_names(["cat/1"]).tolist()
    assert lists["val"].tolist() == hash_names(["cat/3"]).tolist()
    assert encode_names(manifest_of(["cat/1.jpg", "cat/2.jpg"], ("train", "val"))) == encode_names(
        manifest_of(["gatto/2.png", "gatto/1.webp"], ("val", "train"), ("cane", "gatto"))
    )


def test_known_by_bytes_or_by_name(tmp_path):
    splits = ("train", "train", "val")
    data = manifest_of(["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"], splits)
    preset = preset_of(tmp_path / "preset", data)
    assert count_overlap(preset, data, "val") == (0, 0)
    assert count_overlap(preset, data, "train") == (2, 0) and count_overlap(preset, data, "all") == (2, 0)
    # Encoded anew, and split otherwise.
    anew = manifest_of(["cat/1.webp", "dog/2.webp", "cat/3.webp"], ("val", "train", "val"), salt="anew")
    assert count_overlap(preset, anew, "val") == (1, 1) and count_overlap(preset, anew, "all") == (2, 2)
    italian = manifest_of(["gatto/1.webp", "cane/2.webp"], ("val", "val"), ("cane", "gatto"), salt="anew")
    assert count_overlap(preset, italian, "val") == (2, 2)
    # The same bytes by another name, beside one that is known by its name.
    digests = (data.hashes[1], *anew.hashes[1:])
    mixed = ImageManifest("photos", anew.class_names, ("cat/9.jpg", *anew.files[1:]), anew.labels, digests)
    assert count_overlap(preset, mixed, "all") == (2, 1)


def test_names_that_tell_nothing(tmp_path):
    data = manifest_of(["cat/1.jpg", "dog/2.jpg", "cat/3.jpg"], ("train", "train", "val"))
    preset = preset_of(tmp_path / "preset", data)
    # Other classes.
    other = manifest_of(["cat/1.jpg", "dog/2.jpg"], ("val", "val"), ("cat", "dog", "eel"), salt="anew")
    assert count_overlap(preset, other, "val") == (0, 0)
    # Each split counts from 1.
    numbered = manifest_of(["train/cat/1.jpg", "val/cat/1.jpg"], ("train", "val"), salt="anew")
    assert count_overlap(preset, numbered, "val") == (0, 0)
    # A file that merely lies in the preset's directory is not the preset's own.
    unlisted = preset_of(tmp_path / "unlisted", data, names=False)
    anew = manifest_of(["cat/1.webp"], ("val",), salt="anew")
    assert count_overlap(unlisted, anew, "val") == (0, 0) and count_overlap(preset, anew, "val") == (1, 1)
    assert list(carried_files(preset)) == [TRAIN_HASHES_FILE, NAMES_FILE] and list(carried_files(unlisted)) == [
        TRAIN_HASHES_FILE
    ]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_a_folder_encoded_anew(tmp_path, suffix):
    """By its contents it is split otherwise: most of its validation images were trained on."""
    original = write_photos(tmp_path / "photos", ("cat", "dog"), 20)
    preset = preset_of(tmp_path / "preset", scan_folder(original))
    for path in sorted(original.glob("*/*.png")):
        Image.open(path).convert("RGB").save(path.with_suffix(f".{suffix}"))
        path.unlink()
    anew = scan_folder(original)
    trained = sum(np.isin(hash_names(image_names(anew.split("val"))), np.load(preset.directory / NAMES_FILE)["train"]))
    assert trained > 0 and count_overlap(preset, anew, "val") == (trained, trained)
    assert count_overlap(preset, anew, "all") == (32, 32)


def test_the_split_to_evaluate_where_none_is_asked_for(tmp_path):
    """All of a folder never trained on; validation of what was trained on, and of data that are split themselves."""
    files = ["cat/1.jpg", "dog/2.jpg", "cat/3.jpg", "dog/4.jpg"]
    data = manifest_of(files, ("train", "train", "val", "val"))
    preset = preset_of(tmp_path / "preset", data)
    assert default_split(preset, manifest_of(files)) == "val"
    assert default_split(preset, manifest_of(["cat/1.webp", "dog/9.webp"], salt="anew")) == "val", "known by its name"
    other = ["cat/7.jpg", "dog/8.jpg", "cat/9.jpg"]
    assert default_split(preset, manifest_of(other)) == "all"
    assert default_split(preset, manifest_of(other, ("train", "train", "val"))) == "val"
