"""Lists the images of a data set: files, labels, hashes, splits."""

import collections
import functools
import hashlib
import io
import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from keras_ci2p.data.transforms import load_image
from keras_ci2p.utils import num_cpus

SPLITS = ("train", "val", "test", "all")
_PIECE = 32
# Data sets of more are summarized by the first three.
_MOST_CLASSES = 20


class DataError(ValueError):
    """Raised for data that cannot be used as they are."""


@dataclass(frozen=True)
class ImageManifest:
    """Lists the readable images of a folder, sorted by class and name.

    Attributes:
        root: The folder.
        class_names: Names of the subfolders, sorted; an image's label is an index into them.
        files: Paths relative to `root`.
        labels: Label of each image.
        hashes: Hexadecimal SHA-256 of each image's bytes.
        skipped: `(relative path, reason)` of each file that is no readable image.
        splits: "train", "val" or "test" for each image, as the data set itself is split; empty where
            `keras_ci2p.data.validation_mask` splits it.
    """

    root: Path
    class_names: tuple
    files: tuple
    labels: tuple
    hashes: tuple
    skipped: tuple = ()
    splits: tuple = ()

    _columns = ("files", "labels", "hashes", "splits")

    def __len__(self):
        return len(self.files)

    @functools.cached_property
    def sha256(self):
        """Hash of the contents: class names and images, whatever the files are called and wherever they lie.

        A data set's own split is covered too, unless it is the one that `validation_mask` would have made.
        """
        columns = [[self.class_names[label] for label in self.labels], self.hashes]
        # What is left of a data set when one split is taken out has no split to tell of.
        if len(set(self.splits)) > 1 and ("test" in self.splits or not self.is_split_by_contents):
            columns.append(self.splits)
        lines = sorted(map("\t".join, zip(*columns, strict=True)))
        return hashlib.sha256("\n".join([*self.class_names, *lines]).encode()).hexdigest()

    @property
    def is_split_by_contents(self):
        """Whether "val" is what `validation_mask` takes from all that is not "test"."""
        images = zip(self.image_splits(), self.hashes, self.labels, strict=True)
        images = [image for image in images if image[0] != "test"]
        chosen = validation_mask([sha256 for _, sha256, _ in images], [label for _, _, label in images])
        return chosen == [split == "val" for split, _, _ in images]

    @property
    def digests(self):
        """Former name of `hashes`."""
        warnings.warn("`digests` is now called `hashes`.", DeprecationWarning, stacklevel=2)
        return self.hashes

    def open(self, index):
        """Decodes an image to an upright RGB `PIL.Image.Image`; OSError where it can no longer be read."""
        return load_image(self.root / self.files[index])

    def counts(self):
        """Returns the number of images by class name."""
        counts = collections.Counter(self.labels)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def sizes(self):
        """Returns the number of images by split, of "train", "val" and "test" those that have any."""
        counts = collections.Counter(self.image_splits())
        return {name: counts[name] for name in SPLITS if name in counts}

    def image_splits(self):
        """Returns the split of each image: "train", "val" or "test"."""
        return self.splits or self._splits_by_contents

    @functools.cached_property
    def _splits_by_contents(self):
        return tuple("val" if chosen else "train" for chosen in validation_mask(self.hashes, self.labels))

    def split(self, name):
        """Returns the manifest of one split: "train", "val", "test" or "all".

        Raises:
            DataError: Unknown split, or no image in it.
        """
        if name not in SPLITS:
            raise DataError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={name!r}")
        kept = [i for i, split in enumerate(self.image_splits()) if name in ("all", split)]
        if kept:
            return self.subset(kept)
        if not self.splits and name != "test":
            raise DataError(f"The {name} split of {self.root} is empty: {len(self)} images are too few to split.")
        there = ", ".join(f"{split} ({count})" for split, count in self.sizes().items())
        raise DataError(
            f"{self.root} has no image of the split {name}; it has {there}. Choose one of these, or all; in a folder, "
            f"what lies in {name}/CLASS is that split."
        )

    def subset(self, indices):
        """Returns the manifest of these images only, in this order."""
        columns = {name: getattr(self, name) for name in self._columns}
        return replace(
            self, **{name: tuple(column[i] for i in indices) for name, column in columns.items() if len(column)}
        )


def summarize(data):
    """Summarizes a data set in one line: its classes with their numbers of training images, and its splits.

    Args:
        data: `ImageManifest` of all splits, or `LatentCache`.

    Returns:
        For example "3 classes: ant 8, bee 8, cow 8; 24 train, 6 val".
    """
    counts = data.split("train").counts()
    shown = list(counts.items())
    title, rest = f"{len(counts):,} classes", ""
    if len(counts) > _MOST_CLASSES:
        title += f" of {min(counts.values()):,} to {max(counts.values()):,} images"
        shown, rest = shown[:3], f" and {len(counts) - 3:,} more"
    classes = ", ".join(f"{name} {count:,}" for name, count in shown)
    splits = ", ".join(f"{count:,} {name}" for name, count in data.sizes().items())
    return f"{title}: {classes}{rest}; {splits}"


def in_threads(check, items):
    """Yields `check(item)` of each item, in order, computed in one thread per CPU.

    Python's warnings are off meanwhile: what Pillow warns of is no reason to leave an image out.
    """
    workers = num_cpus()
    items = iter(items)
    running = collections.deque()
    # Filters are global: once for all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        # Large pieces, few of them waiting: Ctrl-C within `submit` can leave one of its locks held for ever.
        while piece := list(itertools.islice(items, _PIECE)):
            running.append(pool.submit(lambda piece: [check(item) for item in piece], piece))
            if len(running) > 2 * workers:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def check_image(content):
    """Decodes and hashes an image.

    Args:
        content: Bytes of a file.

    Returns:
        `(SHA-256, None)` of a readable image, `(None, reason)` of anything else.
    """
    if not content:
        return None, "empty file"
    try:
        _decode_cheaply(content)
    except MemoryError:
        return None, "too large"
    except OSError as error:
        return None, "no image" if "cannot identify" in str(error) else str(error)
    return hashlib.sha256(content).hexdigest(), None


def _decode_cheaply(content):
    """Decodes an image; of a JPEG only an eighth of the pixels, though every byte."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG":
                image.draft("L", (image.width // 8, image.height // 8))
                image.load()
                return
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    load_image(io.BytesIO(content))


def warn_of_skipped(root, skipped, most=10):
    """Warns once of skipped files, `(name, reason)`, and lists the first of them."""
    if not skipped:
        return
    lines = [f"  {path}: {reason}" for path, reason in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more")
    count = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
    warnings.warn(f"{root}: skipped {count} that are no readable images:\n" + "\n".join(lines), stacklevel=3)


def warn_of_missing_validation(manifest):
    """Warns once of the classes that have training images, but none for validation."""
    splits = {"train": set(), "val": set(), "test": set()}
    for label, split in zip(manifest.labels, manifest.image_splits(), strict=True):
        splits[split].add(label)
    names = [manifest.class_names[label] for label in sorted(splits["train"] - splits["val"])]
    if not names or not splits["val"]:
        # Without any, the split says so itself once it is asked for.
        return
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    count = "1 class has" if len(names) == 1 else f"{len(names):,} classes have"
    why = "" if manifest.splits else " A fifth is taken of each class, rounded: none of one or two images."
    warnings.warn(
        f"{manifest.root}: {count} no image for validation, so that no result tells of them: {shown}.{why}",
        stacklevel=3,
    )


VALIDATION_SHARE = 0.2


def validation_mask(hashes, labels):
    """Chooses the images of the validation split.

    In each class the images are sorted by the SHA-256 of their bytes, and the first `round(0.2 n)` of the `n` are
    validation: no seed, no dependence on names. Byte-identical copies of a validation image, in any class, are
    validation too.

    Args:
        hashes: Hexadecimal SHA-256 of each file.
        labels: Class of each file.

    Returns:
        List of bool, True for validation.
    """
    by_class = {}
    for sha256, label in zip(hashes, labels, strict=True):
        by_class.setdefault(label, []).append(sha256)
    validation = set()
    for members in by_class.values():
        validation.update(sorted(members)[: round(VALIDATION_SHARE * len(members))])
    return [sha256 in validation for sha256 in hashes]


# What the folders of a data set that is split already are called, in capitals or not.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


# Arrays "train" and "val" of `hash_names`.
NAMES_FILE = "split_names.npz"


def hash_names(names):
    """Hashes `image_names`, in order: uint64 array of the first 8 bytes of each one's SHA-256."""
    return first_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest() for name in names)


def first_bytes(hashes):
    """Returns the first 8 bytes of each hexadecimal SHA-256: uint64 array, in order."""
    return np.array([int(sha256[:16], 16) for sha256 in hashes], dtype="uint64")
