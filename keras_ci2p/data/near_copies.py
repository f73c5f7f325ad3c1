"""Near-copies: images that are in another split too, scaled, encoded anew, recoloured or mirrored."""

from dataclasses import replace

import numpy as np
from PIL import Image

from keras_ci2p.data.folder import DataError, in_threads

# Of 64 bits. Of the 2,217 validation images of Animals-10 as `keras-ci2p data animals10 --out` splits it, 170 are at
# most so far from a training image, and all but 3 of those pairs are copies to the eye; of the 10 pairs at distance 5
# six are, of the 23 at distance 8 three.
MAX_DISTANCE = 4
_ROWS, _COLUMNS = 8, 9
# Validation images that are compared at a time: with 20,000 training images 40 MB.
_BLOCK = 256


def without_near_copies(manifest, split="val", max_distance=MAX_DISTANCE):
    """Leaves out the images of a split that have a near-copy among the training images.

    Images are alike where their difference hashes, or that of the mirrored one, differ in few bits: whether brightness
    rises from each cell of an 8 x 9 grid to its right neighbour. Copies with a frame, a cut edge or a turned picture
    are not found. Every image of both splits is decoded once.

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
    """The difference hashes of images and of their mirror images.

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
    """uint64 `(images,)` of uint8 `(images, 8, 9)`."""
    rises = grids[:, :, 1:] > grids[:, :, :-1]
    return np.packbits(rises.reshape(len(grids), -1), axis=1).view(">u8")[:, 0].astype("uint64")
