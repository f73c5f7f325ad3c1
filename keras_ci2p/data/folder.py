"""A folder with one subfolder per class: its photos, checked, hashed and split."""

import collections
import hashlib
import io
import itertools
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from keras_ci2p.data.decode import load_image
from keras_ci2p.data.split import validation_mask

SPLITS = ("train", "val", "all")
_PIECE = 32


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
    """

    root: Path
    class_names: tuple
    files: tuple
    labels: tuple
    digests: tuple
    skipped: tuple = ()

    _columns = ("files", "labels", "digests")

    def __len__(self):
        return len(self.files)

    @property
    def sha256(self):
        """Hash of the contents: class names and photos, whatever the files are called and wherever they lie."""
        lines = sorted(
            f"{self.class_names[label]}\t{digest}" for label, digest in zip(self.labels, self.digests, strict=True)
        )
        return hashlib.sha256("\n".join([*self.class_names, *lines]).encode()).hexdigest()

    def open(self, index):
        """The photo as an upright RGB `PIL.Image.Image`; OSError where it can no longer be read."""
        return load_image(self.root / self.files[index])

    def counts(self):
        """Number of photos by class name."""
        return {name: self.labels.count(i) for i, name in enumerate(self.class_names)}

    def split(self, name):
        """The manifest of one split: "train", "val" or "all".

        Raises:
            DataError: Unknown split, or no photo in it.
        """
        if name not in SPLITS:
            raise DataError(f"`split` must be one of {', '.join(SPLITS)}. Received: split={name!r}")
        mask = self._validation_mask()
        kept = [i for i, is_validation in enumerate(mask) if name == "all" or is_validation == (name == "val")]
        if not kept:
            raise DataError(f"The {name} split of {self.root} is empty: {len(self)} photos are too few to split.")
        return self.subset(kept)

    def subset(self, indices):
        """The manifest of these photos only, in this order."""
        return replace(self, **{name: tuple(getattr(self, name)[i] for i in indices) for name in self._columns})

    def _validation_mask(self):
        return validation_mask(self.digests, self.labels)


def scan_folder(root):
    """Reads, checks and hashes every photo below `root/<class>/`.

    Unreadable, truncated, empty and other files are left out and listed in one warning. Hidden files and folders are
    ignored.

    Args:
        root: Folder with one subfolder per class, in it pictures of any format that Pillow reads, at any depth.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, no or one class, a class without a readable photo.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    class_names = tuple(
        sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    )
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        raise DataError(f"{root} must hold one subfolder of photos for each of at least two classes; found {found}.")
    manifest = _checked(
        root, class_names, [(label, _visible_files(root / name)) for label, name in enumerate(class_names)]
    )
    empty = [name for name, count in manifest.counts().items() if not count]
    if empty:
        raise DataError(f"{root}: no readable photo in the class folder {', '.join(empty)}.")
    return manifest


def scan_pictures(root):
    """Reads, checks and hashes every picture below `root`, at whatever depth: for training without classes.

    What lies in a subfolder of `root` counts as its class all the same, so that a folder of classes is split as by
    `scan_folder`; files in `root` itself are of the class ".".

    Args:
        root: Path of the folder.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, or no readable picture in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    by_class = {}
    for path in _visible_files(root):
        parts = path.relative_to(root).parts
        by_class.setdefault(parts[0] if len(parts) > 1 else ".", []).append(path)
    class_names = tuple(sorted(by_class))
    manifest = _checked(root, class_names, [(label, by_class[name]) for label, name in enumerate(class_names)])
    if not len(manifest):
        raise DataError(f"{root} holds no readable picture.")
    return manifest


def _checked(root, class_names, paths_by_label):
    """The manifest of the readable pictures; the others are listed in one warning."""
    candidates = [(path, label) for label, paths in paths_by_label for path in paths]
    checked = in_threads(_check_file, (path for path, _ in candidates))
    good, skipped = [], []
    for (path, label), (digest, problem) in zip(candidates, checked, strict=True):
        relative = path.relative_to(root).as_posix()
        if problem:
            skipped.append((relative, problem))
        else:
            good.append((relative, label, digest))
    warn_of_skipped(root, skipped)
    files, labels, digests = zip(*good, strict=True) if good else ((), (), ())
    return ImageManifest(root, class_names, files, labels, digests, tuple(skipped))


def _visible_files(folder):
    for directory, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(directory, name)


def in_threads(check, items):
    """Yields `check(item)` of each item, in order; several are at work at a time.

    Python's warnings are off meanwhile: what Pillow warns of is no reason to leave a picture out.
    """
    workers = os.cpu_count() or 1
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


def _check_file(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        return None, str(error)
    return check_picture(content)


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
