"""Lists the images of a data set: files, labels, hashes, splits; and keeps what a folder's files were found to be."""

import collections
import functools
import hashlib
import io
import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from PIL import Image

from keras_ci2p.codec.file_format import SUFFIX
from keras_ci2p.data.transforms import decode_image, register_heic
from keras_ci2p.utils import atomic_file, cache_directory, clean_up, listed, num_cpus, progress, wrong_choice
from keras_ci2p.version import __version__

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


# To be raised where the same file is told of in another way.
_INDEX_FORMAT = 3
# Nanoseconds within which two changes may bear the same time: 2 s on FAT, 10 ms on most others.
_GRANULARITY = 2 * 10**9
# Seconds after which a check that goes on keeps what it has found.
_KEEP_EVERY = 60
# Days after which an index that nobody uses is deleted.
_UNUSED = 180
# State of a file that cannot be looked at.
_ABSENT = (-1, 0, 0)
_LAST_TIME = 2**63 - 1


def check_files(root, names, check, unreadable):
    """Checks those files of a folder that have changed since they were last checked; of the others its index tells.

    A file is unchanged while its size and the times of its last change (mtime and ctime, in nanoseconds) are. As in
    git's index, one that was changed a moment before it was read is not relied on: a later change could bear the same
    times.

    The index is a file in `folders` in $KERAS_CI2P_CACHE, else in `~/.cache/keras_ci2p`. It is written whole or not at
    all, by the last of several processes; a damaged one, or one of other versions of Pillow or of this package, counts
    as none. What was found before an interruption is kept. A folder that was moved has no index in its new place.

    Args:
        root: The folder.
        names: List of the files, relative to `root`, with "/".
        check: Function of the name and the bytes of a file, called in threads; returns a tuple of a hexadecimal
            SHA-256, or None, and of what JSON can hold, mostly None.
        unreadable: Function of the OSError with which a file could not be read; returns such a tuple, which no index
            keeps.

    Returns:
        List of what `check` tells, or told, of each file.
    """
    prefix, path = os.path.join(root, ""), index_path(root)
    index = _read_index(path)
    states = itertools.chain.from_iterable(_file_state(prefix + name) for name in names)
    states = np.fromiter(states, "int64", 3 * len(names)).reshape(-1, 3)
    rows = index.rows_of(names)
    is_known = rows >= 0
    is_known[is_known] = (index.states[rows[is_known]] == states[is_known]).all(axis=1)
    results = [None] * len(names)
    for i, result in zip(np.flatnonzero(is_known).tolist(), index.results(rows[is_known]), strict=True):
        results[i] = result
    changed = np.flatnonzero(~is_known).tolist()

    def look(i):
        file, now = prefix + names[i], time.time_ns()
        states[i] = before = _file_state(file)
        try:
            with open(file, "rb") as opened:
                result = check(names[i], opened.read())
        except OSError as error:
            return unreadable(error), False
        return result, before == _file_state(file) and now - max(before[1:]) > _GRANULARITY

    kept, new = time.monotonic(), 0
    try:
        looked_at = progress(in_threads(look, changed), len(changed), f"Reading {root}")
        for i, (result, is_final) in zip(changed, looked_at, strict=True):
            results[i], is_known[i] = result, is_final
            new += is_final
            if new and time.monotonic() - kept > _KEEP_EVERY:
                _write_index(path, prefix, index, names, states, results, is_known)
                kept, new = time.monotonic(), 0
    finally:
        if new:
            _write_index(path, prefix, index, names, states, results, is_known)
    return results


def index_path(root):
    """Where the index of a folder is, whether or not there is one."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return cache_directory() / "folders" / f"{name}.npz"


def _file_state(file):
    try:
        found = os.stat(file)
    except OSError:
        return _ABSENT
    return found.st_size, min(found.st_mtime_ns, _LAST_TIME), min(found.st_ctime_ns, _LAST_TIME)


class _Index(NamedTuple):
    """What is known of a folder's files.

    Attributes:
        stored_names: The names, as the index holds them: of a million, texts are wanted only for a moment.
        states: int64 `(files, 3)`: size, mtime, ctime.
        hashes: uint8 `(files, 32)`.
        width: Length of the tuples.
        others: Dict of rows to the tuples that hold something else than a hash.
    """

    stored_names: bytes
    states: np.ndarray
    hashes: np.ndarray
    width: int
    others: dict

    def names(self):
        """The names by row."""
        return os.fsdecode(self.stored_names).split("\0") if self.stored_names else []

    def rows_of(self, names):
        """int64 array of the rows of these names, -1 where there is none."""
        row_of = {name: row for row, name in enumerate(self.names())}
        return np.fromiter((row_of.get(name, -1) for name in names), "int64", len(names))

    def results(self, rows):
        """Yields the tuples of these rows."""
        rest = (None,) * (self.width - 1)
        for row in rows.tolist():
            yield self.others.get(row) or (self.hashes[row].tobytes().hex(), *rest)


_NO_INDEX = _Index(b"", np.empty((0, 3), "int64"), np.empty((0, 32), "uint8"), 1, {})


def _read_index(path):
    try:
        # Each array has a checksum, which is compared.
        with np.load(path, allow_pickle=False) as stored:
            told = json.loads(stored["texts"].tobytes())
            names, states, hashes = stored["names"].tobytes(), stored["states"], stored["hashes"]
        if told["made_by"] != _made_by() or not names.count(b"\0") + bool(names) == len(states) == len(hashes):
            return _NO_INDEX
        if os.access(path, os.W_OK):
            # When it was last used.
            os.utime(path)
        others = {row: tuple(result) for row, result in told["others"]}
        return _Index(names, states, hashes, told["width"], others)
    except Exception:
        # Whatever is wrong with it, the files themselves can be read.
        return _NO_INDEX


def _write_index(path, prefix, index, names, states, results, is_known):
    """Writes what is known of `names`, and of other files of the folder that are still there."""
    chosen = np.flatnonzero(is_known).tolist()
    listed = set(names)
    others = [(name, row) for row, name in enumerate(index.names()) if name not in listed]
    others = [(name, row) for name, row in others if os.path.lexists(prefix + name)]
    rows = np.array([row for _, row in others], "int64")
    known = [*(names[i] for i in chosen), *(name for name, _ in others)]
    found = [results[i] for i in chosen] + list(index.results(rows))
    unusual = [[row, result] for row, result in enumerate(found) if result[0] is None or any(result[1:])]
    hashes = bytes.fromhex("".join(result[0] or "0" * 64 for result in found))
    told = {"made_by": _made_by(), "width": max(map(len, found)), "others": unusual}
    try:
        with atomic_file(path) as temporary:
            np.savez(
                temporary,
                texts=np.frombuffer(json.dumps(told).encode(), "uint8"),
                names=np.frombuffer(os.fsencode("\0".join(known)), "uint8"),
                states=np.concatenate([states[chosen], index.states[rows]]),
                hashes=np.frombuffer(hashes, "uint8").reshape(-1, 32),
            )
        clean_up(path.parent)
        for other in path.parent.glob("*.npz"):
            if time.time() - other.stat().st_mtime > 24 * 3600 * _UNUSED:
                other.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"What was found in {prefix} cannot be kept in {path.parent}; it will be read again each time: {error}",
            stacklevel=2,
        )


def _made_by():
    """What a file is told of depends on, besides the file."""
    Image.init()
    register_heic()
    return [_INDEX_FORMAT, __version__, Image.__version__, Image.MAX_IMAGE_PIXELS, sorted(Image.OPEN)]
