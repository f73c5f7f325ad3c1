"""A folder with one subfolder per class, or with one per split that holds these: its photos, checked, hashed, split."""

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

SPLITS = ("train", "val", "test", "all")
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


def scan_folder(root):
    """Reads, checks and hashes every photo below `root/<class>/`, or below `root/<split>/<class>/`.

    Unreadable, truncated, empty and other files are left out and listed in one warning. Hidden files and folders are
    ignored.

    The folder counts as split where all its subfolders bear names of `SPLIT_FOLDERS` and hold subfolders: these are the
    classes. Without validation images, a fifth of train is taken by `validation_mask`, with a warning that says so.
    Images with the same bytes in several splits are counted in a warning.

    Args:
        root: Folder with one subfolder per class, in it pictures of any format that Pillow reads, at any depth; or
            folder with such a folder for each of train, val (or valid, validation) and test, or for some of them.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, no or one class, a class without a readable photo, in any of the splits; folders of
            splits that have not the same classes, or have none.
    """
    root = _existing_folder(root)
    split_folders = _class_split_folders(root)
    folders = {split: _visible_folders(folder) for split, folder in (split_folders or {None: root}).items()}
    class_names = tuple(sorted({folder.name for split in folders.values() for folder in split}))
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        raise DataError(f"{root} must hold one subfolder of photos for each of at least two classes; found {found}.")
    _check_same_classes(root, folders)
    label_of = {name: label for label, name in enumerate(class_names)}
    places = [(folder, label_of[folder.name], split) for split, some in folders.items() for folder in some]
    manifest = _checked(
        root, class_names, [(path, label, split) for folder, label, split in places for path in _visible_files(folder)]
    )
    filled = set(zip(manifest.labels, manifest.splits or [None] * len(manifest), strict=True))
    empty = [folder for folder, *place in places if tuple(place) not in filled]
    if empty:
        names = ", ".join(sorted(folder.relative_to(root).as_posix() for folder in empty))
        raise DataError(f"{root}: no readable photo in the class folder {names}.")
    return _complete_split(manifest, split_folders)


def scan_pictures(root):
    """Reads, checks and hashes every picture below `root`, at whatever depth: for training without classes.

    What lies in a subfolder of `root` counts as its class all the same, so that a folder of classes is split as by
    `scan_folder`; files in `root` itself are of the class ".". Where all subfolders bear names of `SPLIT_FOLDERS`, they
    are the splits, with classes in them or not, and files in `root` itself are skipped.

    Args:
        root: Path of the folder.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, or no readable picture in it.
    """
    root = _existing_folder(root)
    split_folders = _split_folders(root)
    by_class = {}
    for split, folder in (split_folders or {None: root}).items():
        for path in _visible_files(folder):
            parts = path.relative_to(folder).parts
            by_class.setdefault(parts[0] if len(parts) > 1 else ".", []).append((path, split))
    class_names = tuple(sorted(by_class))
    candidates = [(path, label, split) for label, name in enumerate(class_names) for path, split in by_class[name]]
    outside = [entry.name for entry in _visible(root) if split_folders and entry.is_file()]
    manifest = _checked(root, class_names, candidates, [(name, "in the folder of no split") for name in outside])
    if not len(manifest):
        raise DataError(f"{root} holds no readable picture.")
    return _complete_split(manifest, split_folders)


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


def _existing_folder(root):
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    return root


def _visible_folders(folder):
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _visible(folder):
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _split_folders(root):
    """`{split: folder}` of a folder all of whose subfolders bear names of splits; empty for any other."""
    folders = _visible_folders(root)
    names = [SPLIT_FOLDERS.get(folder.name.lower()) for folder in folders]
    if None in names:
        return {}
    for name in names:
        if names.count(name) > 1:
            several = " and ".join(folder.name for folder in folders if SPLIT_FOLDERS[folder.name.lower()] == name)
            raise DataError(f"{root} has several folders for the split {name}: {several}. Keep one of them.")
    found = dict(zip(names, folders, strict=True))
    return {split: found[split] for split in SPLITS if split in found}


def _class_split_folders(root):
    """`_split_folders` of a folder of classes; empty where the subfolders are classes themselves."""
    folders = _split_folders(root)
    flat = [folder.name for folder in folders.values() if not _visible_folders(folder)]
    if len(flat) == len(folders):
        return {}
    if flat:
        raise DataError(
            f"{root} has folders of splits, but {', '.join(flat)} holds no subfolders. Each must hold one subfolder of "
            "images per class; put what is without classes elsewhere."
        )
    return folders


def _check_same_classes(root, folders):
    """Raises DataError where train and val have not the same classes, or test has others."""
    names = {split: {folder.name for folder in some} for split, some in folders.items()}
    others = [split for split in names if split != "test"]
    problems = [
        f"{folders[other][0].parent.name} lacks {', '.join(sorted(names[split] - names[other]))}"
        for split in names
        for other in others
        if names[split] - names[other]
    ]
    if problems:
        raise DataError(
            f"The splits of {root} have not the same classes: {'; '.join(problems)}. Each class needs a "
            "folder in train and in val, and test may have no others."
        )


def _checked(root, class_names, candidates, skipped=()):
    """The manifest of the readable pictures, by class and split; the others are listed in one warning.

    Args:
        candidates: `(path, label, split or None)` of each file.
        skipped: `(name, reason)` of files that are none.
    """
    # Stable: within a class and a split the files stay in the order of their names.
    candidates = sorted(candidates, key=lambda candidate: (candidate[1], SPLITS.index(candidate[2] or "all")))
    checked = in_threads(_check_file, (path for path, _, _ in candidates))
    good, skipped = [], list(skipped)
    for (path, label, split), (digest, problem) in zip(candidates, checked, strict=True):
        relative = path.relative_to(root).as_posix()
        if problem:
            skipped.append((relative, problem))
        else:
            good.append((relative, label, digest, split))
    warn_of_skipped(root, skipped)
    files, labels, digests, splits = zip(*good, strict=True) if good else ((), (), (), ())
    return ImageManifest(root, class_names, files, labels, digests, tuple(skipped), () if None in splits else splits)


def _complete_split(manifest, split_folders):
    """The manifest with validation images, where it is split but has none of these; warns of copies in two splits."""
    if "train" in split_folders and "val" not in split_folders:
        train = [i for i, split in enumerate(manifest.splits) if split == "train"]
        chosen = validation_mask([manifest.digests[i] for i in train], [manifest.labels[i] for i in train])
        splits = list(manifest.splits)
        for i, is_validation in zip(train, chosen, strict=True):
            splits[i] = "val" if is_validation else "train"
        # Train alone is a folder as if it were not split.
        manifest = replace(manifest, splits=tuple(splits) if "test" in split_folders else ())
        name = split_folders["train"].name
        warnings.warn(
            f"{manifest.root} has no folder for validation: a fifth of {name} is kept for it, {sum(chosen):,} of "
            f"{len(train):,} images, chosen by their contents.",
            stacklevel=3,
        )
    splits_of = collections.defaultdict(set)
    for digest, split in zip(manifest.digests, manifest.splits, strict=False):
        splits_of[digest].add(split)
    straddling = sum(len(splits) > 1 for splits in splits_of.values())
    if straddling:
        count = "1 image is" if straddling == 1 else f"{straddling:,} images are"
        warnings.warn(
            f"{manifest.root}: {count} in more than one of {', '.join(manifest.sizes())}, with the same bytes: what is "
            "measured on them is too good.",
            stacklevel=3,
        )
    return manifest


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
