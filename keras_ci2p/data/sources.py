"""Opens any kind of data set: the only file that knows all kinds."""

import collections
import hashlib
import itertools
import os
import warnings
from dataclasses import replace

from keras_ci2p.codec.file_format import read_compressed
from keras_ci2p.codec.rans import CodecError
from keras_ci2p.data import layouts
from keras_ci2p.data.latent_cache import is_latent_cache
from keras_ci2p.data.manifest import (
    SPLITS,
    DataError,
    ImageManifest,
    check_files,
    check_image,
    index_path,
    is_compressed,
    validation_mask,
    warn_of_missing_images,
    warn_of_notes,
    warn_of_skipped,
)
from keras_ci2p.data.tfds import PREFIX, open_tfds
from keras_ci2p.utils import PathLike, user_path


def open_data(source: ImageManifest | PathLike, data_dir: str | None = None, rescan: bool = False) -> ImageManifest:
    """Opens images with classes, of any kind of data set.

    Args:
        source: Folder with one subfolder per class, or with such folders train, val and test (`scan_folder`);
            `tfds:NAME[/CONFIG][:VERSION]`, a prepared image classification set of TFDS (extra `tfds`); or a manifest,
            which is returned as it is.
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.
        rescan: Whether to read every file of a folder again, also where its size and times are as they were when the
            folder was last opened.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: Data that cannot be used as they are.
        ImportError: The extra is not installed.

    Examples:
        >>> keras_ci2p.data.open_data("photos").sizes()
        {'train': 24, 'val': 6}
    """
    if rescan:
        forget(source)
    return _open(source, data_dir, scan_folder)


def forget(source):
    """Makes the next opening of a folder read every file again; ValueError for other kinds of data."""
    if isinstance(source, ImageManifest) or str(source).startswith(PREFIX):
        raise ValueError(f"Only a folder can be read again (rescan). Received: source={str(source)[:60]}")
    index_path(user_path(source)).unlink(missing_ok=True)


def scan_images(source: ImageManifest | PathLike) -> ImageManifest:
    """Opens images for training without classes, of any kind of data set.

    All images below a folder count, at whatever depth. What lies in a subfolder counts as its class all the same, so
    that a folder of classes is split as by `scan_folder`; files in the folder itself are of the class ".". Where all
    subfolders bear names of `SPLIT_FOLDERS`, they are the splits, with classes in them or not, and files in the folder
    itself are skipped.

    Args:
        source: Folder, `tfds:NAME[/CONFIG][:VERSION]`, or a manifest, which is returned as it is.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, or no readable image in it.
        ImportError: The extra `tfds` is needed and not installed.

    Examples:
        >>> len(keras_ci2p.data.scan_images("photos"))
        30
    """
    return _open(source, None, _scan_images_below)


def _open(source, data_dir, scan):
    if isinstance(source, ImageManifest):
        return source
    if str(source).startswith(PREFIX):
        return open_tfds(str(source).removeprefix(PREFIX), data_dir)
    return scan(source)


def scan_folder(root: PathLike) -> ImageManifest:
    """Decodes and hashes every image below `root/<class>/`, in one of the layouts below.

    Files ending in .ci2p count as images; they are hashed, and of them only the header is checked.

    - `CLASS/...`: one subfolder for each class, in it images of any format that Pillow reads, at any depth.
    - `SPLIT/CLASS/...`: all subfolders bear names of splits (`split_of`) and hold the subfolders of the classes.
      Without validation images, a fifth of train is taken by `validation_mask`, with a warning that says so.
    - `CLASS/SPLIT/...`: all that the subfolders of the classes hold are folders of splits.
    - labels.csv or metadata.csv beside the images, with a column of files and one of classes (`labelled_files`).

    A folder that holds nothing but one folder of these is taken for that one. Unreadable, truncated, empty and other
    files are left out and listed in one warning, images outside of the classes too. Hidden files and folders, and those
    that systems put there, are ignored; links are followed. Images with the same bytes in several splits, and classes
    without images for training or validation, are told in warnings.

    Args:
        root: Folder.

    Returns:
        `ImageManifest` of all splits.

    Raises:
        DataError: No such folder, no or one class, a class without a readable image, in train or val; folders of splits
            that have not the same classes, have none, or stand beside others.

    Examples:
        >>> keras_ci2p.data.scan_folder("photos").counts()
        {'bird': 10, 'cat': 10, 'dog': 10}
    """
    root = _existing_folder(root)
    places, split_names, skipped = layouts.labelled_places(root) or layouts.class_places(root)
    class_names = tuple(sorted({name for _, name, _ in places}))
    if len(class_names) < 2:
        found = f"only {class_names[0]!r}" if class_names else "none"
        raise DataError(
            f"{root} must hold one subfolder of images for each of at least two classes; found {found}."
            f"{layouts.count_files(root)} The classes can also stand in a table, {' or '.join(layouts.TABLES)}, with "
            "the columns file_name and label."
        )
    _check_names(root, class_names)
    _check_same_classes(root, places, split_names)
    label_of = {name: label for label, name in enumerate(class_names)}
    candidates = [
        (str(path), label_of[name], split) for place, name, split in places for path in layouts.visible_files(place)
    ]
    manifest = _checked(root, class_names, candidates, skipped)
    filled = set(zip(manifest.labels, manifest.splits or [None] * len(manifest), strict=True))
    wanted = {(label_of[name], split): place for place, name, split in places if split != "test"}
    empty = [place for key, place in wanted.items() if key not in filled]
    if empty or not len(manifest):
        names = ", ".join(sorted(place.relative_to(root).as_posix() for place in empty))
        raise DataError(f"{root}: no readable image in the class folder {names}.")
    manifest = _complete_split(manifest, split_names)
    warn_of_missing_images(manifest)
    return manifest


def _scan_images_below(root):
    root = _existing_folder(root)
    folder = layouts.unwrapped(root)
    split_folders = layouts.find_splits(folder, of_classes=False)
    if not split_folders:
        folder = root
    by_class = {}
    for split, top in (split_folders or {None: root}).items():
        for path in layouts.visible_files(top):
            parts = path.relative_to(top).parts
            by_class.setdefault(parts[0] if len(parts) > 1 else ".", []).append((str(path), split))
    class_names = tuple(sorted(by_class))
    _check_names(root, class_names)
    candidates = [(path, label, split) for label, name in enumerate(class_names) for path, split in by_class[name]]
    outside = [
        (entry.name, "in the folder of no split") for entry in layouts.visible_entries(folder) if not entry.is_dir()
    ]
    manifest = _checked(root, class_names, candidates, outside if split_folders else ())
    if not len(manifest):
        raise DataError(f"{root} holds no readable image.")
    return _complete_split(manifest, {split: folder.name for split, folder in split_folders.items()})


def check_exists(source):
    """Raises DataError where `source` is a folder that is not there; reads nothing else."""
    if str(source).startswith(PREFIX) or user_path(source).is_dir():
        return
    if user_path(source).is_file():
        is_archive = user_path(source).suffix.lower() in _ARCHIVES
        what = "an archive. Unpack it" if is_archive else "a file. Put the images into a folder"
        raise DataError(f"{source} is {what}, and give the folder.")
    raise DataError(f"There is no folder {source}.")


def first_compressed(source):
    """Returns the path of a `.ci2p` file in a folder, at any depth, or None; reads no file."""
    folder = None if isinstance(source, ImageManifest) or str(source).startswith(PREFIX) else user_path(source)
    if folder is None or not folder.is_dir():
        return None
    return next(filter(is_compressed, layouts.visible_files(folder)), None)


def _existing_folder(root):
    root = user_path(root)
    check_exists(root)
    if is_latent_cache(root):
        raise DataError(
            f"{root} is a latent cache: it holds precomputed latents, and here images are wanted. Give the folder that "
            "it was made of; the cache itself is for training (`keras-ci2p train`, `latent_folder`)."
        )
    return root


_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def _check_names(root, names):
    """Raises DataError for a name that no text file could hold: of an archive that is older than Unicode."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{root}: the name of the folder {os.fsencode(name)!r} is not UTF-8, so that it can be no class's "
                "name. Rename it; `convmv -r -f latin1 -t utf8 --notest FOLDER` does so with all names in a folder."
            ) from error


def _check_same_classes(root, places, split_names):
    """Raises DataError where train and val have not the same classes, or test has others."""
    names = {split: {name for _, name, own in places if own == split} for split in split_names}
    problems = [
        f"{split_names[other]} lacks {', '.join(sorted(names[split] - names[other]))}"
        for split in names
        for other in names
        if other != "test" and names[split] - names[other]
    ]
    if problems:
        raise DataError(
            f"The splits of {root} have not the same classes: {'; '.join(problems)}. Each class needs images in train "
            "and in val, and test may have no others."
        )


def _checked(root, class_names, candidates, skipped=()):
    """Returns the manifest of the readable images, by class and split; the others are listed in one warning.

    Args:
        candidates: List of `(path, label, split or None)` of each file, the path as a string: of a million files Path
            objects take a gigabyte. Emptied.
        skipped: `(name, reason)` of files that are none.
    """
    # Stable: within a class and a split the files stay in the order of their names.
    candidates.sort(key=lambda candidate: (candidate[1], SPLITS.index(candidate[2] or "all")))
    # As `relative_to` and `as_posix`, which take longer than all the rest.
    start = len(str(root / "x")) - 1
    names = [path[start:].replace(os.sep, "/") for path, _, _ in candidates]
    labels, splits = [label for _, label, _ in candidates], [split for _, _, split in candidates]
    # The whole paths are not needed beside the names.
    candidates.clear()
    checked = check_files(root, names, _check_file, lambda error: (None, str(error), None))
    skipped = [*skipped, *((name, problem) for name, (_, problem, _) in zip(names, checked, strict=True) if problem)]
    notes = [(name, note) for name, (_, _, note) in zip(names, checked, strict=True) if note]
    warn_of_skipped(root, skipped)
    warn_of_notes(root, notes)
    good = [not problem for _, problem, _ in checked]
    files, labels, splits = (tuple(itertools.compress(column, good)) for column in (names, labels, splits))
    hashes = tuple(sha256 for sha256, problem, _ in checked if not problem)
    return ImageManifest(root, class_names, files, labels, hashes, tuple(skipped), () if None in splits else splits)


def _check_file(name, content):
    """Does `check_image`; of a `.ci2p` file, by its name, checks the header, since its compressor alone knows more."""
    if not is_compressed(name):
        return check_image(content)
    try:
        read_compressed(content)
    except CodecError as error:
        return None, str(error), None
    return hashlib.sha256(content).hexdigest(), None, None


def _complete_split(manifest, split_names):
    """Takes validation images from train where a split folder has none; warns of copies in two splits."""
    if "train" in split_names and "val" not in split_names:
        train = [i for i, split in enumerate(manifest.splits) if split == "train"]
        chosen = validation_mask([manifest.hashes[i] for i in train], [manifest.labels[i] for i in train])
        splits = list(manifest.splits)
        for i, is_validation in zip(train, chosen, strict=True):
            splits[i] = "val" if is_validation else "train"
        # Train alone is a folder as if it were not split.
        manifest = replace(manifest, splits=tuple(splits) if "test" in split_names else ())
        warnings.warn(
            f"{manifest.root} has no folder for validation: a fifth of {split_names['train']} is kept for it, "
            f"{sum(chosen):,} of {len(train):,} images, chosen by their contents.",
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
