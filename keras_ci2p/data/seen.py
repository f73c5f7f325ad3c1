"""Which images a model has been trained on, small enough to ship with its weights: by their bytes and their names."""

import hashlib
import io
from pathlib import PurePath

import numpy as np

from keras_ci2p.data.animals10 import ENGLISH

SEEN_FILE = "train_photos.npy"
# Arrays "train" and "val" of `hash_names`.
NAMES_FILE = "split_names.npz"


def fingerprints(digests):
    """Sorted uint64 array: the first 8 bytes of each hexadecimal SHA-256."""
    return np.unique(_first_bytes(digests))


def encode(digests):
    """The bytes of `SEEN_FILE`."""
    content = io.BytesIO()
    np.save(content, fingerprints(digests), allow_pickle=False)
    return content.getvalue()


def image_names(data):
    """The name of each image as it is known in other copies of a data set, such as "cat/1" of "gatto/1.jpeg".

    That is the class and the name of the file without its suffix, since images are encoded anew and moved. Classes of
    Animals-10 are told in English. Files without a suffix have no name here: numbers are what TFDS calls the images of
    sets that name none.

    Args:
        data: `ImageManifest`.

    Returns:
        List of strings, None for an image without a name.
    """
    classes = english_names(data.class_names)
    paths = map(PurePath, data.files)
    return [
        f"{classes[label]}/{path.stem}" if path.suffix else None for path, label in zip(paths, data.labels, strict=True)
    ]


def english_names(class_names):
    """The classes of Animals-10 in English, if all are of Animals-10; else as they are."""
    english = [ENGLISH.get(name.lower()) for name in class_names]
    return list(class_names) if None in english else english


def hash_names(names):
    """uint64 array, in order: the first 8 bytes of the SHA-256 of each of `image_names`."""
    return _first_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest() for name in names)


def encode_names(data):
    """The bytes of `NAMES_FILE`, 8 for each image.

    Names that occur in both splits are left out: where each split counts its images from 1, a name tells nothing.

    Args:
        data: `ImageManifest` of all splits, or `LatentCache`.
    """
    train, val = (
        hash_names(name for name in image_names(data.split(split)) if name is not None) for split in ("train", "val")
    )
    content = io.BytesIO()
    np.savez(content, train=np.setdiff1d(train, val), val=np.setdiff1d(val, train))
    return content.getvalue()


def carried_files(preset):
    """What a preset knows of its training images, for another preset of the same weights.

    Args:
        preset: `Preset`.

    Returns:
        Dict of file name to bytes, as `save_to_preset` takes it.
    """
    paths = [preset.directory / name for name in (SEEN_FILE, NAMES_FILE)]
    return {path.name: path.read_bytes() for path in paths if path.name in preset.metadata["files"]}


def count_overlap(preset, data, split):
    """How many images of a split the weights of a preset were trained on.

    An image is known by its bytes, or by its name (`image_names`) where the classes are the preset's. A name that
    stands in several splits of `data` does not count.

    Args:
        preset: `Preset`.
        data: `ImageManifest` of all splits.
        split: "train", "val", "test" or "all".

    Returns:
        `(known, by_name)`: the number of images, and how many of them are known by their name alone.
    """
    by_bytes = by_name = np.zeros(len(data), bool)
    if SEEN_FILE in preset.metadata["files"]:
        trained = np.load(preset.directory / SEEN_FILE, allow_pickle=False)
        by_bytes = np.isin(_first_bytes(data.digests), trained)
    class_names = preset.task().get("class_names") or ()
    same_classes = sorted(english_names(class_names)) == sorted(english_names(data.class_names))
    if NAMES_FILE in preset.metadata["files"] and same_classes:
        with np.load(preset.directory / NAMES_FILE, allow_pickle=False) as names:
            by_name = np.isin(hash_names(_names_of_one_split(data)), names["train"])
    chosen = np.array([split in ("all", own) for own in data.image_splits()], bool)
    return int((chosen & (by_bytes | by_name)).sum()), int((chosen & by_name & ~by_bytes).sum())


def _names_of_one_split(data):
    """`image_names`; empty where there is none, or several splits have it."""
    names, splits = image_names(data), {}
    for name, split in zip(names, data.image_splits(), strict=True):
        splits.setdefault(name, set()).add(split)
    return [name if name and len(splits[name]) == 1 else "" for name in names]


def _first_bytes(digests):
    return np.array([int(digest[:16], 16) for digest in digests], dtype="uint64")
