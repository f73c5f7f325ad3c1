"""Which photos of Animals-10 are for training and for validation: lists of names, and folders laid out by them.

The paper's split is not published. Ours is a file of the preset "animals10", `split_names.npz`, with the hashed names
of training and validation photos. `keras_ci2p.data.seen.encode_names(scan_folder(DATA))` makes it of a folder that is
split already; `train` writes such a file beside the weights of every model.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from keras_ci2p import files
from keras_ci2p.data.animals10 import CLASSES, find_photos, read_photo
from keras_ci2p.data.folder import DataError, check_picture, in_threads, warn_of_skipped
from keras_ci2p.data.seen import NAMES_FILE, hash_names
from keras_ci2p.data.tfds.progress import progress
from keras_ci2p.presets.locations import named_preset

PRESET = "animals10"
# Of all photos; where the lists know fewer, the files were named anew.
_LEAST_KNOWN = 0.5


def read_lists():
    """`{"train": names, "val": names}`, each a sorted uint64 array of `hash_names`.

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


def listed_splits(photos):
    """The split of each photo: "train", "val", or "test" if it is in neither list, since nobody was trained on it.

    Args:
        photos: `(name of the file, English name of the class)` of each.

    Returns:
        List of strings; None where the lists know fewer than half of the names, so that they are not Animals-10's.
    """
    hashes = _hashes(photos)
    lists = read_lists()
    splits = np.full(len(hashes), "test", dtype="<U5")
    for split, names in lists.items():
        splits[np.isin(hashes, names)] = split
    return splits.tolist() if (splits != "test").mean() >= _LEAST_KNOWN else None


@dataclass(frozen=True)
class Layout:
    """What `lay_out` has written.

    Attributes:
        counts: `{split: {class: number}}` of the photos.
        missing: `{split: number}` of the names in the lists that no readable photo has.
        skipped: `(name, reason)` of the files left out.
    """

    counts: dict
    missing: dict
    skipped: tuple


def lay_out(source, out):
    """Writes the photos of Animals-10 as `out/{train,val,test}/CLASS/NAME`, split by the lists, their bytes unchanged.

    The classes have English names; `test` holds the photos that are in neither list. Photos of one class whose names
    differ by the suffix alone are in one split. Files that are no readable pictures are left out and listed in one
    warning. All is written aside and renamed, so that an interruption leaves nothing.

    Args:
        source: Kaggle's archive, or a folder with the ten classes in Italian or English; None for a download by
            kagglehub.
        out: Directory to write; it must not exist, or be empty.

    Returns:
        `Layout`.

    Raises:
        FileExistsError: `out` is there and not empty.
        DataError: No Animals-10; other names than the lists'; a class without a photo for training or validation.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; choose another directory.")
    leftovers = sorted(map(str, out.parent.glob(f"{out.name}.partial-*")))
    if leftovers:
        warnings.warn(f"Of a copy that was killed, or is still running: {', '.join(leftovers)}", stacklevel=2)
    photos = find_photos(source)
    classes = [list(CLASSES)[label] for _, _, label in photos]
    named = [(name, class_name) for (name, _, _), class_name in zip(photos, classes, strict=True)]
    splits = listed_splits(named)
    if splits is None:
        raise DataError(
            f"Of the {len(photos):,} files of {source}, fewer than half have names that the lists of Animals-10 know. "
            "Give Kaggle's archive as it is, or give this folder itself to `train`."
        )
    with files.atomic_directory(out) as temporary:
        targets, skipped = {}, []
        for (name, path, _), class_name, split in zip(photos, classes, splits, strict=True):
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
            raise DataError(f"{source} has no readable photo for {', '.join(empty)} of the lists of Animals-10.")
        there = _hashes((name, class_name) for name, class_name, _ in written)
    missing = {split: len(np.setdiff1d(names, there)) for split, names in read_lists().items()}
    return Layout(counts, missing, tuple(skipped))


def _hashes(photos):
    return hash_names(f"{class_name}/{PurePath(name).stem}" for name, class_name in photos)


def _copy(paths):
    """Writes the picture at the first path to the second; why not, if it is none."""
    source, target = paths
    try:
        content = read_photo(source)
    except OSError as error:
        return str(error)
    _, problem = check_picture(content)
    if not problem:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return problem
