"""Opens any kind of data set: the only file that knows all kinds."""

import collections
import os
import warnings
from dataclasses import replace
from pathlib import Path

from keras_ci2p.data.latent_cache import is_latent_cache
from keras_ci2p.data.manifest import (
    SPLIT_FOLDERS,
    SPLITS,
    DataError,
    ImageManifest,
    check_image,
    in_threads,
    validation_mask,
    warn_of_missing_validation,
    warn_of_skipped,
)
from keras_ci2p.data.tfds import PREFIX, open_tfds


def open_data(source, data_dir=None):
    """Opens images with classes, of any kind of data set.

    Args:
        source: Folder with one subfolder per class, or with such folders train, val and test (`scan_folder`);
            "tfds:NAME[/CONFIG][:VERSION]", a prepared image classification set of TFDS (extra `tfds`); or a manifest,
            which is returned as it is.
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: Data that cannot be used as they are.
        ImportError: The extra is not installed.
    """
    return _open(source, data_dir, scan_folder)


def scan_images(source):
    """Opens images for training without classes, of any kind of data set.

    All images below a folder count, at whatever depth. What lies in a subfolder counts as its class all the same, so
    that a folder of classes is split as by `scan_folder`; files in the folder itself are of the class ".". Where all
    subfolders bear names of `SPLIT_FOLDERS`, they are the splits, with classes in them or not, and files in the folder
    itself are skipped.

    Args:
        source: Folder, "tfds:NAME[/CONFIG][:VERSION]", or a manifest, which is returned as it is.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, or no readable image in it.
        ImportError: The extra `tfds` is needed and not installed.
    """
    return _open(source, None, _scan_images_below)


def _open(source, data_dir, scan):
    if isinstance(source, ImageManifest):
        return source
    if str(source).startswith(PREFIX):
        return open_tfds(str(source).removeprefix(PREFIX), data_dir)
    return scan(source)


def scan_folder(root):
    """Decodes and hashes every image below `root/<class>/`, or below `root/<split>/<class>/`.

    Unreadable, truncated, empty and other files are left out and listed in one warning. Hidden files and folders are
    ignored.

    The folder counts as split where all its subfolders bear names of `SPLIT_FOLDERS` and hold subfolders: these are the
    classes. Without validation images, a fifth of train is taken by `validation_mask`, with a warning that says so.
    Images with the same bytes in several splits, and classes without validation images, are told in warnings.

    Args:
        root: Folder with one subfolder per class, in it images of any format that Pillow reads, at any depth; or
            folder with such a folder for each of train, val (or valid, validation) and test, or for some of them.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, no or one class, a class without a readable image, in any of the splits; folders of
            splits that have not the same classes, or have none.
    """
    root = _existing_folder(root)
    split_folders = _class_split_folders(root)
    folders = {split: _visible_folders(folder) for split, folder in (split_folders or {None: root}).items()}
    class_names = tuple(sorted({folder.name for split in folders.values() for folder in split}))
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        raise DataError(f"{root} must hold one subfolder of images for each of at least two classes; found {found}.")
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
        raise DataError(f"{root}: no readable image in the class folder {names}.")
    manifest = _complete_split(manifest, split_folders)
    warn_of_missing_validation(manifest)
    return manifest


def _scan_images_below(root):
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
        raise DataError(f"{root} holds no readable image.")
    return _complete_split(manifest, split_folders)


def _existing_folder(root):
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.")
    if is_latent_cache(root):
        raise DataError(
            f"{root} is a latent cache: it holds precomputed latents, and here images are wanted. Give the folder that "
            "it was made of; the cache itself is for training (`keras-ci2p train`, `latent_folder`)."
        )
    return root


def _visible_folders(folder):
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _visible(folder):
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _split_folders(root):
    """Returns `{split: folder}` of a folder all of whose subfolders bear names of splits; empty for any other."""
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
    """Returns `_split_folders` of a folder of classes; empty where the subfolders are classes themselves."""
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
    """Returns the manifest of the readable images, by class and split; the others are listed in one warning.

    Args:
        candidates: `(path, label, split or None)` of each file.
        skipped: `(name, reason)` of files that are none.
    """
    # Stable: within a class and a split the files stay in the order of their names.
    candidates = sorted(candidates, key=lambda candidate: (candidate[1], SPLITS.index(candidate[2] or "all")))
    checked = in_threads(_check_file, (path for path, _, _ in candidates))
    good, skipped = [], list(skipped)
    for (path, label, split), (sha256, problem) in zip(candidates, checked, strict=True):
        relative = path.relative_to(root).as_posix()
        if problem:
            skipped.append((relative, problem))
        else:
            good.append((relative, label, sha256, split))
    warn_of_skipped(root, skipped)
    files, labels, hashes, splits = zip(*good, strict=True) if good else ((), (), (), ())
    return ImageManifest(root, class_names, files, labels, hashes, tuple(skipped), () if None in splits else splits)


def _complete_split(manifest, split_folders):
    """Takes validation images from train where a split folder has none; warns of copies in two splits."""
    if "train" in split_folders and "val" not in split_folders:
        train = [i for i, split in enumerate(manifest.splits) if split == "train"]
        chosen = validation_mask([manifest.hashes[i] for i in train], [manifest.labels[i] for i in train])
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
    for sha256, split in zip(manifest.hashes, manifest.splits, strict=False):
        splits_of[sha256].add(split)
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


def _check_file(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        return None, str(error)
    return check_image(content)
