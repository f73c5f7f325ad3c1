"""Finds the images of Animals-10 in Kaggle's archive or a folder, and splits them by lists of names."""

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from keras_ci2p.data.layouts import SPLIT_FOLDERS, is_visible
from keras_ci2p.data.manifest import (
    NAMES_FILE,
    DataError,
    check_image,
    hash_names,
    in_threads,
    warn_of_skipped,
)
from keras_ci2p.presets import named_preset
from keras_ci2p.utils import atomic_directory, is_empty, progress, user_path

KAGGLE = "alessiocorrado99/animals10"
PAGE = f"https://www.kaggle.com/datasets/{KAGGLE}"
ARCHIVES = ("animals10.zip", "archive.zip")

# English name: Italian name, which is the folder's in the archive, and number of images published there.
CLASSES = {
    "butterfly": ("farfalla", 2112),
    "cat": ("gatto", 1668),
    "chicken": ("gallina", 3098),
    "cow": ("mucca", 1866),
    "dog": ("cane", 4863),
    "elephant": ("elefante", 1446),
    "horse": ("cavallo", 2623),
    "sheep": ("pecora", 1820),
    "spider": ("ragno", 4821),
    "squirrel": ("scoiattolo", 1862),
}
PUBLISHED = 26_179
# Number and English name of a class by either of its names.
LABELS = {name: label for label, (english, (italian, _)) in enumerate(CLASSES.items()) for name in (english, italian)}
ENGLISH = {name: list(CLASSES)[label] for name, label in LABELS.items()}

HOW_TO_GET = f"""\
Animals-10 (licence GPL-2) is on Kaggle: {PAGE}
Download its archive there in a browser, then: keras-ci2p data animals10 --from archive.zip
A folder that it was unpacked to will do as well."""

# An image of Animals-10 has some 25 kB; what unpacks to more than this is no image.
_MAX_BYTES = 64 << 20
_MAX_DEPTH = 3


class DamagedArchive(DataError):
    """A ZIP archive that cannot be opened."""


def find_class_folders(source):
    """Finds the ten class folders, named in English or Italian, wherever they are in `source`.

    Args:
        source: ZIP archive, or folder that holds the class folders or such an archive.

    Returns:
        List of `(pathlib.Path or zipfile.Path, label)`, by label.

    Raises:
        DataError: There is no such file, it is damaged, or it does not hold the ten.
    """
    source = user_path(source)
    if not source.exists():
        raise DataError(f"There is no file or folder {source}.")
    best = _find_below(source if source.is_dir() else _open_archive(source))
    for archive in (source / name for name in ARCHIVES if len(best) < len(CLASSES)):
        if archive.is_file():
            best = max(best, _find_below(_open_archive(archive)), key=len)
    if len(best) < len(CLASSES):
        missing = [f"{english} ({CLASSES[english][0]})" for label, english in enumerate(CLASSES) if label not in best]
        raise DataError(
            f"{source} is not Animals-10: it must hold one folder of images for each of the ten classes, named in "
            f"Italian or English. Missing: {', '.join(missing)}."
        )
    return [(folder, label) for label in sorted(best) for folder in best[label]]


def _open_archive(path):
    try:
        return zipfile.Path(path)
    except zipfile.BadZipFile as error:
        raise DamagedArchive(f"{path} is no ZIP archive, or damaged ({error}). Download it again.") from error


def _find_below(root):
    """Returns `{label: [folders]}` of the folder at or below `root`, highest first, with the most classes in it.

    Folders of splits that lie side by side, such as train and val, are taken together.
    """
    best, level = {}, [root]
    for _ in range(_MAX_DEPTH + 1):
        below = [_visible(folder) for folder in level]
        splits = {}
        for folder, entries in zip(level, below, strict=True):
            found = splits.setdefault(str(folder.parent), {}) if folder.name.lower() in SPLIT_FOLDERS else {}
            for entry in entries:
                if entry.name.lower() in LABELS and entry.is_dir():
                    found.setdefault(LABELS[entry.name.lower()], []).append(entry)
            best = max(best, found, key=len)
        if len(best) == len(CLASSES):
            break
        level = [entry for entries in below for entry in entries if entry.is_dir()]
    return best


def _visible(folder):
    return sorted((entry for entry in folder.iterdir() if is_visible(entry.name)), key=lambda entry: entry.name)


def files_below(folder, name):
    """Yields `(name, path)` of all visible files at any depth, in the order of `scan_folder`."""
    subfolders = []
    for entry in _visible(folder):
        if entry.is_dir():
            subfolders.append(entry)
        else:
            yield f"{name}/{entry.name}", entry
    for subfolder in subfolders:
        yield from files_below(subfolder, f"{name}/{subfolder.name}")


def find_images(source):
    """Finds every file of the ten classes.

    Args:
        source: As in `find_class_folders`; None for a download by kagglehub, made now or before.

    Returns:
        List of `(name, path, label)`; a name begins with that of its class folder, as in "gatto/1.jpeg".

    Raises:
        DataError: No such file, no Animals-10, no kagglehub or no download.
    """
    folders = find_class_folders(_download() if source is None else source)
    return [(name, path, label) for folder, label in folders for name, path in files_below(folder, folder.name)]


def check_file(path):
    """Decodes and hashes a file or a member of an archive; returns what `check_image` does."""
    try:
        return check_image(read_file(path))
    except OSError as error:
        return None, str(error), None


def read_file(path):
    """Reads the bytes of a file or of a member of an archive; nothing is unpacked to the disk."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError:
        raise
    except Exception as error:
        # zipfile raises BadZipFile, zlib.error, EOFError, RuntimeError (encrypted), NotImplementedError and more.
        raise OSError(f"cannot be unpacked: {error}") from error
    if len(content) > _MAX_BYTES:
        raise OSError(f"larger than {_MAX_BYTES >> 20} MB")
    return content


def _download():
    """Returns the folder of kagglehub's copy, downloaded now or before."""
    try:
        import kagglehub
    except ImportError as error:
        raise DataError(f"{HOW_TO_GET}\nOr let it be downloaded: pip install kagglehub") from error
    try:
        return kagglehub.dataset_download(KAGGLE)
    except Exception as error:
        # kagglehub lets through what requests, urllib3 and Kaggle's client raise.
        raise DataError(f"kagglehub could not download Animals-10: {error}\n{HOW_TO_GET}") from error


PRESET = "animals10"
# Of all images; where the lists know fewer, the files were named anew.
_LEAST_KNOWN_SHARE = 0.5


def read_lists():
    """Reads the names of the splits: `{"train": names, "val": names}`, each a sorted uint64 array of `hash_names`.

    Raises:
        DataError: The preset that holds them is not there.
    """
    directory = named_preset(PRESET)
    if directory is None or not (directory / NAMES_FILE).is_file():
        raise DataError(
            f"The lists of Animals-10 are missing: the file {NAMES_FILE} of the preset {PRESET}. Install keras_ci2p "
            "again, or give a folder that is split already to `train`."
        )
    with np.load(directory / NAMES_FILE, allow_pickle=False) as lists:
        return {split: lists[split] for split in ("train", "val")}


def listed_splits(images):
    """Returns the split of each image: "train", "val", or "test" if it is in neither list: nobody was trained on it.

    Args:
        images: `(name of the file, English name of the class)` of each.

    Returns:
        List of strings; None where the lists know fewer than half of the names, so that they are not Animals-10's.
    """
    hashes = _hashes(images)
    lists = read_lists()
    splits = np.full(len(hashes), "test", dtype="<U5")
    for split, names in lists.items():
        splits[np.isin(hashes, names)] = split
    return splits.tolist() if (splits != "test").mean() >= _LEAST_KNOWN_SHARE else None


@dataclass(frozen=True)
class Layout:
    """Describes what `lay_out` has written.

    Attributes:
        counts: `{split: {class: number}}` of the images.
        missing: `{split: number}` of the names in the lists that no readable image has.
        skipped: `(name, reason)` of the files left out.
    """

    counts: dict
    missing: dict
    skipped: tuple


def lay_out(source, out):
    """Writes the images of Animals-10 as `out/{train,val,test}/CLASS/NAME`, split by the lists, their bytes unchanged.

    The classes have English names; `test` holds the images that are in neither list. Images of one class whose names
    differ by the suffix alone are in one split. Files that are no readable images are left out and listed in one
    warning. All is written aside and renamed, so that an interruption leaves nothing.

    Args:
        source: Kaggle's archive, or a folder with the ten classes in Italian or English; None for a download by
            kagglehub.
        out: Directory to write; it must not exist, or be empty.

    Returns:
        `Layout`.

    Raises:
        FileExistsError: `out` is there and not empty.
        DataError: No Animals-10; other names than the lists'; a class without an image for training or validation.
    """
    out = user_path(out)
    if out.exists() and not (out.is_dir() and is_empty(out)):
        raise FileExistsError(f"{out} exists and is not empty; choose another directory.")
    leftovers = sorted(map(str, out.parent.glob(f"{out.name}.partial-*")))
    if leftovers:
        warnings.warn(f"Of a copy that was killed, or is still running: {', '.join(leftovers)}", stacklevel=2)
    images = find_images(source)
    classes = [list(CLASSES)[label] for _, _, label in images]
    named = [(name, class_name) for (name, _, _), class_name in zip(images, classes, strict=True)]
    splits = listed_splits(named)
    if splits is None:
        raise DataError(
            f"Of the {len(images):,} files of {source}, fewer than half have names that the lists of Animals-10 know. "
            "Give Kaggle's archive as it is, or give this folder itself to `train`."
        )
    with atomic_directory(out) as temporary:
        targets, skipped = {}, []
        for (name, path, _), class_name, split in zip(images, classes, splits, strict=True):
            target = temporary / split / class_name / PurePath(name).relative_to(PurePath(name).parts[0])
            if target in targets:
                skipped.append((name, "another file of this class has the same name"))
            else:
                targets[target] = name, path, class_name, split
        copied = in_threads(_copy, ((path, target) for target, (_, path, _, _) in targets.items()))
        written = []
        for problem, (name, _, *place) in zip(progress(copied, len(targets), "Copying"), targets.values(), strict=True):
            if problem:
                skipped.append((name, problem))
            else:
                written.append((name, *place))
        warn_of_skipped("Animals-10", skipped)
        counts = {split: dict.fromkeys(CLASSES, 0) for split in ("train", "val", "test")}
        for _, class_name, split in written:
            counts[split][class_name] += 1
        empty = [f"{split}/{name}" for split in ("train", "val") for name in CLASSES if not counts[split][name]]
        if empty:
            raise DataError(f"{source} has no readable image for {', '.join(empty)} of the lists of Animals-10.")
        there = _hashes((name, class_name) for name, class_name, _ in written)
    missing = {split: len(np.setdiff1d(names, there)) for split, names in read_lists().items()}
    return Layout(counts, missing, tuple(skipped))


def _hashes(images):
    return hash_names(f"{class_name}/{PurePath(name).stem}" for name, class_name in images)


def _copy(paths):
    """Writes the image at the first path to the second; why not, if it is none."""
    source, target = paths
    try:
        content = read_file(source)
    except OSError as error:
        return str(error)
    _, problem, _ = check_image(content)
    if not problem:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return problem
