"""The images of a data set: files, labels, hashes, splits."""

import collections
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
    """A data set that cannot be used as it is."""


@dataclass(frozen=True)
class ImageManifest:
    """The readable photos of a folder, sorted by class and name.

    Attributes:
        root: The folder.
        class_names: Names of the subfolders, sorted; a photo's label is an index into them.
        files: Paths relative to `root`.
        labels: Label of each photo.
        digests: Hexadecimal SHA-256 of each photo's bytes.
        skipped: `(relative path, reason)` of each file that is no readable picture.
        splits: "train", "val" or "test" for each image, as the data set itself is split; empty where
            `keras_ci2p.data.validation_mask` splits it.
    """

    root: Path
    class_names: tuple
    files: tuple
    labels: tuple
    digests: tuple
    skipped: tuple = ()
    splits: tuple = ()

    _columns = ("files", "labels", "digests", "splits")

    def __len__(self):
        return len(self.files)

    @property
    def sha256(self):
        """Hash of the contents: class names and photos, whatever the files are called and wherever they lie.

        A data set's own split is covered too, unless it is the one that `validation_mask` would have made.
        """
        columns = [[self.class_names[label] for label in self.labels], self.digests]
        # What is left of a data set when one split is taken out has no split to tell of.
        if len(set(self.splits)) > 1 and ("test" in self.splits or not self.is_split_by_contents):
            columns.append(self.splits)
        lines = sorted(map("\t".join, zip(*columns, strict=True)))
        return hashlib.sha256("\n".join([*self.class_names, *lines]).encode()).hexdigest()

    @property
    def is_split_by_contents(self):
        """Whether "val" is what `validation_mask` takes from all that is not "test"."""
        images = zip(self.image_splits(), self.digests, self.labels, strict=True)
        images = [image for image in images if image[0] != "test"]
        chosen = validation_mask([digest for _, digest, _ in images], [label for _, _, label in images])
        return chosen == [split == "val" for split, _, _ in images]

    def open(self, index):
        """The photo as an upright RGB `PIL.Image.Image`; OSError where it can no longer be read."""
        return load_image(self.root / self.files[index])

    def counts(self):
        """Number of photos by class name."""
        counts = collections.Counter(self.labels)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def sizes(self):
        """Number of images by split, of "train", "val" and "test" those that have any."""
        counts = collections.Counter(self.image_splits())
        return {name: counts[name] for name in SPLITS if name in counts}

    def image_splits(self):
        """The split of each image: "train", "val" or "test"."""
        if self.splits:
            return self.splits
        return tuple("val" if chosen else "train" for chosen in validation_mask(self.digests, self.labels))

    def split(self, name):
        """The manifest of one split: "train", "val", "test" or "all".

        Raises:
            DataError: Unknown split, or no photo in it.
        """
        if name not in SPLITS:
            raise DataError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={name!r}")
        kept = [i for i, split in enumerate(self.image_splits()) if name in ("all", split)]
        if kept:
            return self.subset(kept)
        if not self.splits and name != "test":
            raise DataError(f"The {name} split of {self.root} is empty: {len(self)} photos are too few to split.")
        there = ", ".join(f"{split} ({count})" for split, count in self.sizes().items())
        raise DataError(
            f"{self.root} has no image of the split {name}; it has {there}. Choose one of these, or all; in a folder, "
            f"what lies in {name}/CLASS is that split."
        )

    def subset(self, indices):
        """The manifest of these photos only, in this order."""
        columns = {name: getattr(self, name) for name in self._columns}
        return replace(
            self, **{name: tuple(column[i] for i in indices) for name, column in columns.items() if len(column)}
        )


def summarize(data):
    """One line on the classes of a data set, with their numbers of training images, and on its splits.

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
    """Yields `check(item)` of each item, in order; several are at work at a time.

    Python's warnings are off meanwhile: what Pillow warns of is no reason to leave a picture out.
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


def check_picture(content):
    """`(SHA-256, None)` of the bytes of a readable picture, `(None, reason)` of anything else."""
    if not content:
        return None, "empty file"
    try:
        _decode_cheaply(content)
    except MemoryError:
        return None, "too large"
    except OSError as error:
        return None, "no picture" if "cannot identify" in str(error) else str(error)
    return hashlib.sha256(content).hexdigest(), None


def _decode_cheaply(content):
    """Decodes all of a picture; of a JPEG only an eighth of the pixels, though every byte."""
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
    """One warning that lists the first of the skipped files, `(name, reason)`."""
    if not skipped:
        return
    lines = [f"  {path}: {reason}" for path, reason in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more")
    count = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
    warnings.warn(f"{root}: skipped {count} that are no readable pictures:\n" + "\n".join(lines), stacklevel=3)


VALIDATION_SHARE = 0.2


def validation_mask(digests, labels):
    """Which photos belong to the validation split.

    In each class the photos are sorted by the SHA-256 of their bytes, and the first `round(0.2 n)` of the `n` are
    validation: no seed, no dependence on names. Byte-identical copies of a validation photo, in any class, are
    validation too.

    Args:
        digests: Hexadecimal SHA-256 of each file.
        labels: Class of each file.

    Returns:
        List of bool, True for validation.
    """
    by_class = {}
    for digest, label in zip(digests, labels, strict=True):
        by_class.setdefault(label, []).append(digest)
    validation = set()
    for members in by_class.values():
        validation.update(sorted(members)[: round(VALIDATION_SHARE * len(members))])
    return [digest in validation for digest in digests]


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
    """uint64 array, in order: the first 8 bytes of the SHA-256 of each of `image_names`."""
    return _first_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest() for name in names)


def _first_bytes(digests):
    return np.array([int(digest[:16], 16) for digest in digests], dtype="uint64")
