"""Finds images that a model was trained on, by hash or name, and near-copies of training images."""

import io
from dataclasses import replace
from pathlib import PurePath

import numpy as np
from PIL import Image

from keras_ci2p.data.animals10 import ENGLISH
from keras_ci2p.data.manifest import NAMES_FILE, DataError, first_bytes, hash_names, in_threads

TRAIN_HASHES_FILE = "train_photos.npy"


def encode_hashes(hashes):
    """Encodes the contents of `TRAIN_HASHES_FILE`: the sorted `first_bytes` of hexadecimal SHA-256s, as `.npy`."""
    content = io.BytesIO()
    np.save(content, np.unique(first_bytes(hashes)), allow_pickle=False)
    return content.getvalue()


def image_names(data):
    """Returns the name of each image that all copies of a data set share, such as "cat/1" of "gatto/1.jpeg".

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
    """Returns class names in English if all are of Animals-10; else as they are."""
    english = [ENGLISH.get(name.lower()) for name in class_names]
    return list(class_names) if None in english else english


def encode_names(data):
    """Encodes the contents of `NAMES_FILE`, 8 bytes for each image.

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
    """Reads the training images' hashes and names of a preset, for another preset of the same weights.

    Args:
        preset: `Preset`.

    Returns:
        Dict of file name to bytes, as `save_to_preset` takes it.
    """
    paths = [preset.directory / name for name in (TRAIN_HASHES_FILE, NAMES_FILE)]
    return {path.name: path.read_bytes() for path in paths if path.name in preset.metadata["files"]}


def count_overlap(preset, data, split):
    """Counts the images of a split that a preset was trained on.

    They are known by their hash, or by their name (`image_names`) where the classes are the preset's. A name that
    stands in several splits of `data` does not count.

    Args:
        preset: `Preset`.
        data: `ImageManifest` of all splits.
        split: "train", "val", "test" or "all".

    Returns:
        `(known, by_name)`: the number of images, and how many of them are known by their name alone.
    """
    by_hash = by_name = np.zeros(len(data), bool)
    if TRAIN_HASHES_FILE in preset.metadata["files"]:
        trained = np.load(preset.directory / TRAIN_HASHES_FILE, allow_pickle=False)
        by_hash = np.isin(first_bytes(data.hashes), trained)
    class_names = preset.task().get("class_names") or ()
    same_classes = sorted(english_names(class_names)) == sorted(english_names(data.class_names))
    if NAMES_FILE in preset.metadata["files"] and same_classes:
        with np.load(preset.directory / NAMES_FILE, allow_pickle=False) as names:
            by_name = np.isin(hash_names(_names_of_one_split(data)), names["train"])
    chosen = np.array([split in ("all", own) for own in data.image_splits()], bool)
    return int((chosen & (by_hash | by_name)).sum()), int((chosen & by_name & ~by_hash).sum())


def default_split(preset, data):
    """Chooses the split to evaluate a preset on where none is asked for.

    Args:
        preset: `Preset`.
        data: `ImageManifest` of all splits.

    Returns:
        "val" of data that are split themselves, of data that the preset was trained on, and where it does not know its
        training images; "all" of a folder that it was never trained on, since its validation split would be a fifth
        for no reason.
    """
    is_known = TRAIN_HASHES_FILE in preset.metadata["files"]
    return "val" if data.splits or not is_known or count_overlap(preset, data, "all")[0] else "all"


def _names_of_one_split(data):
    """Returns `image_names`; empty where there is none, or several splits have it."""
    names, splits = image_names(data), {}
    for name, split in zip(names, data.image_splits(), strict=True):
        splits.setdefault(name, set()).add(split)
    return [name if name and len(splits[name]) == 1 else "" for name in names]


# Of 64 bits. Of the 2,217 validation images of Animals-10 as `keras-ci2p data animals10 --out` splits it, 170 are at
# most so far from a training image, and all but 3 of those pairs are copies to the eye; of the 10 pairs at distance 5
# six are, of the 23 at distance 8 three.
MAX_DISTANCE = 4
_ROWS, _COLUMNS = 8, 9
# Validation images that are compared at a time: with 20,000 training images 40 MB.
_BLOCK = 256


def without_near_copies(manifest, split="val", max_distance=MAX_DISTANCE):
    """Leaves out the images of a split that have a near-copy among the training images.

    Images are near-copies where their difference hashes, or that of the mirrored one, differ in few bits: whether
    brightness rises from each cell of an 8 x 9 grid to its right neighbour. Copies with a frame, a cut edge or a
    rotation are not found. Every image of both splits is decoded once.

    Args:
        manifest: `ImageManifest` of all splits.
        split: "val" or "test".
        max_distance: Number of the 64 bits in which near-copies may differ.

    Returns:
        `(manifest, count)`: the manifest of all other images, each in the split that it was in, and the number of
        images that were left out.

    Raises:
        DataError: No images of one of the splits, or none are left.
        ValueError: Another split.
    """
    if split not in ("val", "test"):
        raise ValueError(f"Copies of training images are left out of val or test. Received: split={split!r}")
    images, train = manifest.split(split), manifest.split("train")
    for part in (images, train):
        part.check_pixels("The search for near-copies (--without-copies)")
    known, _, is_known = difference_hashes(train)
    hashes, mirrored, is_readable = difference_hashes(images)
    known = known[is_known]
    copied = np.zeros(len(images), bool)
    for first in range(0, len(images), _BLOCK):
        block = slice(first, first + _BLOCK)
        for own in (hashes, mirrored):
            distances = np.bitwise_count(own[block, None] ^ known)
            copied[block] |= (distances <= max_distance).any(axis=1)
    copied &= is_readable
    if copied.all():
        raise DataError(f"All {len(images)} images of the split {split} of {manifest.root} have copies in training.")
    # What is left would be split in another way.
    splits = manifest.image_splits()
    places = [i for i, own in enumerate(splits) if own == split]
    left_out = {places[i] for i in np.flatnonzero(copied)}
    kept = [i for i in range(len(manifest)) if i not in left_out]
    return replace(manifest, splits=splits).subset(kept), len(left_out)


def difference_hashes(manifest):
    """Computes the difference hashes of images and of their mirror images.

    Args:
        manifest: `ImageManifest`.

    Returns:
        `(hashes, mirrored, is_readable)`: two uint64 arrays and one of bool, `(images,)` in the manifest's order; an
        image that can no longer be read has the hashes 0.
    """

    def cells(number):
        try:
            image = manifest.open(number).convert("L")
        except OSError:
            return None
        return np.asarray(image.resize((_COLUMNS, _ROWS), Image.Resampling.LANCZOS))

    found = list(in_threads(cells, range(len(manifest))))
    is_readable = np.array([grid is not None for grid in found], bool)
    empty = np.zeros((_ROWS, _COLUMNS), "uint8")
    grids = np.stack([empty if grid is None else grid for grid in found])
    return _bits(grids), _bits(grids[:, :, ::-1]), is_readable


def _bits(grids):
    """Packs the comparisons of neighbours in uint8 `(images, 8, 9)`: uint64 `(images,)`."""
    rises = grids[:, :, 1:] > grids[:, :, :-1]
    return np.packbits(rises.reshape(len(grids), -1), axis=1).view(">u8")[:, 0].astype("uint64")
