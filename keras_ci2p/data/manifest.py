"""Lists the images of a data set: files, labels, hashes, splits."""

import collections
import functools
import hashlib
import io
import itertools
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from keras_ci2p.codec.file_format import SUFFIX
from keras_ci2p.data.transforms import decode_image
from keras_ci2p.utils import listed, num_cpus, wrong_choice

SPLITS = ("train", "val", "test", "all")
_PIECE = 32
# Data sets of more are summarized by the first three.
_MOST_CLASSES = 20


class DataError(ValueError):
    """Raised for data that cannot be used as they are.

    Examples:
        >>> keras_ci2p.data.open_data("no_such_folder")
        Traceback (most recent call last):
            ...
        keras_ci2p.data.manifest.DataError: There is no folder no_such_folder.
    """


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

    Examples:
        >>> manifest = keras_ci2p.data.open_data("photos")
        >>> manifest.class_names, len(manifest.split("val"))
        (('bird', 'cat', 'dog'), 6)
    """

    root: Path
    class_names: tuple
    files: tuple
    labels: tuple
    hashes: tuple
    skipped: tuple = ()
    splits: tuple = ()

    _columns: ClassVar[tuple[str, ...]] = ("files", "labels", "hashes", "splits")

    def __len__(self) -> int:
        return len(self.files)

    @functools.cached_property
    def sha256(self) -> str:
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
    def is_split_by_contents(self) -> bool:
        """Whether "val" is what `validation_mask` takes from all that is not "test"."""
        images = zip(self.image_splits(), self.hashes, self.labels, strict=True)
        images = [image for image in images if image[0] != "test"]
        chosen = validation_mask([sha256 for _, sha256, _ in images], [label for _, _, label in images])
        return chosen == [split == "val" for split, _, _ in images]

    @property
    def digests(self) -> tuple[str, ...]:
        """Former name of `hashes`."""
        warnings.warn("`digests` is now called `hashes`.", DeprecationWarning, stacklevel=2)
        return self.hashes

    def open(self, index: int) -> Image.Image:
        """Decodes an image to an upright RGB `PIL.Image.Image`; OSError where it can no longer be read."""
        return decode_image(self.root / self.files[index])[0]

    def read(self, index: int) -> bytes:
        """Returns the bytes of a `.ci2p` file; OSError where it can no longer be read."""
        return (self.root / self.files[index]).read_bytes()

    @property
    def compressed(self) -> list[int]:
        """Indices of the `.ci2p` files, which hold latents, no pixels."""
        return [index for index, file in enumerate(self.files) if is_compressed(file)]

    def check_pixels(self, who: str) -> None:
        """Raises DataError where there are `.ci2p` files among the images.

        Args:
            who: What needs pixels, in words.
        """
        compressed = self.compressed
        if compressed:
            raise DataError(
                f"{who} needs pixels, and {len(compressed):,} of the {len(self):,} files of {self.root} are {SUFFIX} "
                f"files, which hold latents; the first is {self.files[compressed[0]]}. `latent_folder` loads them, and "
                "`train`, `cache`, `evaluate` and `predict` take them, without pixels; `keras-ci2p decompress` makes "
                "images of them."
            )

    def counts(self) -> dict[str, int]:
        """Returns the number of images by class name."""
        counts = collections.Counter(self.labels)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    def sizes(self) -> dict[str, int]:
        """Returns the number of images by split, of "train", "val" and "test" those that have any."""
        counts = collections.Counter(self.image_splits())
        return {name: counts[name] for name in SPLITS if name in counts}

    def image_splits(self) -> tuple[str, ...]:
        """Returns the split of each image: "train", "val" or "test"."""
        return self.splits or self._splits_by_contents

    @functools.cached_property
    def _splits_by_contents(self):
        return tuple("val" if chosen else "train" for chosen in validation_mask(self.hashes, self.labels))

    def split(self, name: str) -> Self:
        """Returns the manifest of one split: "train", "val", "test" or "all".

        Raises:
            DataError: Unknown split, or no image in it.
        """
        if name not in SPLITS:
            raise DataError(wrong_choice("split", name, SPLITS))
        kept = [i for i, split in enumerate(self.image_splits()) if name in ("all", split)]
        if kept:
            return self.subset(kept)
        if not self.splits and name != "test":
            why = "are too few to split" if name == "val" else "are all copies of those for validation"
            raise DataError(f"The {name} split of {self.root} is empty: its {len(self)} images {why}.")
        there = ", ".join(f"{split} ({count})" for split, count in self.sizes().items())
        raise DataError(
            f"{self.root} has no image of the split {name}; it has {there}. Choose one of these, or all; in a folder, "
            f"what lies in {name}/CLASS is that split."
        )

    def with_class_names(self, class_names: Sequence[str], class_map: dict[str, str] | None = None) -> Self:
        """Returns the same images with labels that count other class names.

        Args:
            class_names: Names of the classes, which may be more than there are images of.
            class_map: Dict of the classes' names here to those; None where they are called alike.

        Raises:
            DataError: A class that is not among `class_names`; names without places, or the same twice.
        """
        has_places = hasattr(class_names, "__getitem__") and not isinstance(class_names, (str, bytes, dict))
        if not has_places or len({*class_names}) != len(class_names):
            raise DataError(
                "`class_names` must be a list of texts that differ, in the order of the labels. "
                f"Received: class_names={class_names!r}"
            )
        names = [(class_map or {}).get(name, name) for name in self.class_names]
        position = {name: label for label, name in enumerate(class_names)}
        unknown = [name for name in names if name not in position]
        if unknown:
            raise DataError(
                f"{self.root} has classes that are not among those asked for: {', '.join(unknown)}. Asked for: "
                f"{', '.join(class_names)}."
            )
        # Classes that become one would be split anew.
        splits = self.splits if len({*names}) == len(names) else self.image_splits()
        labels = tuple(position[names[label]] for label in self.labels)
        return replace(self, class_names=tuple(class_names), labels=labels, splits=splits)

    def subset(self, indices: Iterable[int]) -> Self:
        """Returns the manifest of these images only, in this order."""
        columns = {name: getattr(self, name) for name in self._columns}
        kept: dict[str, Any] = {
            name: tuple(column[i] for i in indices) for name, column in columns.items() if len(column)
        }
        return replace(self, **kept)


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


def is_compressed(name):
    """Whether a file of this name is a `.ci2p` file, of a compressor."""
    return str(name).lower().endswith(SUFFIX)


def check_image(content):
    """Decodes and hashes an image.

    Args:
        content: Bytes of a file.

    Returns:
        `(SHA-256, None, note)` of a readable image, the note that of `decode_image`; `(None, reason, None)` of anything
        else.
    """
    if not content:
        return None, "empty file", None
    try:
        note = _decode_cheaply(content)
    except MemoryError:
        return None, "too large", None
    except OSError as error:
        return None, "no image" if "cannot identify" in str(error) else str(error), None
    return hashlib.sha256(content).hexdigest(), None, note


def _decode_cheaply(content):
    """Decodes an image, of a JPEG only an eighth of the pixels, though every byte; returns its note."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG":
                image.draft("L", (image.width // 8, image.height // 8))
                image.load()
                return None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass
    return decode_image(io.BytesIO(content))[1]


def warn_of_skipped(root, skipped, most=10):
    """Warns once of skipped files, `(name, reason)`, and lists the first of them."""
    if not skipped:
        return
    lines = [f"  {path}: {reason}" for path, reason in skipped[:most]]
    if len(skipped) > most:
        lines.append(f"  and {len(skipped) - most} more")
    count = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
    warnings.warn(f"{root}: skipped {count} that are no readable images:\n" + "\n".join(lines), stacklevel=3)


def warn_of_notes(root, notes):
    """Warns of what there is to say of images, `(name, note)`: once of each note, with the number of images."""
    for note, count in collections.Counter(note for _, note in notes).items():
        first = next(name for name, own in notes if own == note)
        images = "1 image" if count == 1 else f"{count:,} images"
        warnings.warn(f"{root}: {images}, the first is {first}, each of which {note}.", stacklevel=3)


def warn_of_missing_images(manifest):
    """Warns of the classes without images for validation, and of those without images to train on."""
    splits = {"train": set(), "val": set(), "test": set()}
    for label, split in zip(manifest.labels, manifest.image_splits(), strict=True):
        splits[split].add(label)
    for split, other, what, why in (
        ("val", "train", "for validation, so that no result tells of them", "none of one or two images"),
        ("train", "val", "to train on, so that no model learns them", "with copies, which are all of their images"),
    ):
        names = [manifest.class_names[label] for label in sorted(splits[other] - splits[split])]
        if not names or not splits[split]:
            # Without any of all classes, the split says so itself once it is asked for.
            continue
        count = "1 class has" if len(names) == 1 else f"{len(names):,} classes have"
        why = "" if manifest.splits else f" A fifth is taken of each class, rounded: {why}."
        warnings.warn(f"{manifest.root}: {count} no image {what}: {listed(names)}.{why}", stacklevel=3)


VALIDATION_SHARE = 0.2


def validation_mask(hashes: Sequence[str], labels: Sequence[int]) -> list[bool]:
    """Chooses the images of the validation split.

    In each class the images are sorted by the SHA-256 of their bytes, and the first `round(0.2 n)` of the `n` are
    validation: no seed, no dependence on names. Byte-identical copies of a validation image, in any class, are
    validation too.

    Args:
        hashes: Hexadecimal SHA-256 of each file.
        labels: Class of each file.

    Returns:
        List of bool, True for validation.

    Examples:
        >>> keras_ci2p.data.validation_mask(["05", "03", "01", "04", "02"], [0] * 5)
        [False, False, True, False, False]
    """
    by_class = {}
    for sha256, label in zip(hashes, labels, strict=True):
        by_class.setdefault(label, []).append(sha256)
    validation = set()
    for members in by_class.values():
        validation.update(sorted(members)[: round(VALIDATION_SHARE * len(members))])
    return [sha256 in validation for sha256 in hashes]


# Arrays "train" and "val" of `hash_names`.
NAMES_FILE = "split_names.npz"


def hash_names(names):
    """Hashes `image_names`, in order: uint64 array of the first 8 bytes of each one's SHA-256."""
    return first_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest() for name in names)


def first_bytes(hashes):
    """Returns the first 8 bytes of each hexadecimal SHA-256: uint64 array, in order."""
    return np.array([int(sha256[:16], 16) for sha256 in hashes], dtype="uint64")
