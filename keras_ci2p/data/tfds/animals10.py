"""Animals-10 as a TFDS set. Importing this module makes `tfds.builder("animals10")` known."""

import zipfile
from pathlib import Path

import tensorflow_datasets as tfds

from keras_ci2p.data.folder import DataError, check_picture, in_threads, warn_of_skipped
from keras_ci2p.data.split import validation_mask
from keras_ci2p.data.tfds.progress import progress
from keras_ci2p.data.tfds.sets import UNREADABLE

KAGGLE = "alessiocorrado99/animals10"
PAGE = f"https://www.kaggle.com/datasets/{KAGGLE}"
ARCHIVES = ("animals10.zip", "archive.zip")

# English name: Italian name, which is the folder's in the archive, and number of photos published there.
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
_LABELS = {name: label for label, (english, (italian, _)) in enumerate(CLASSES.items()) for name in (english, italian)}

HOW_TO_GET = f"""\
Animals-10 (licence GPL-2) is on Kaggle: {PAGE}
Download its archive there in a browser, then: keras-ci2p data animals10 --from archive.zip
A folder that it was unpacked to will do as well."""

# A photo of Animals-10 has some 25 kB; what unpacks to more than this is no photo.
_MAX_BYTES = 64 << 20
_MAX_DEPTH = 3


class DamagedArchive(DataError):
    """A ZIP archive that cannot be opened."""


class Animals10(tfds.core.GeneratorBasedBuilder):
    """Photos of ten kinds of animals, from Kaggle's archive as it is or from a folder.

    The files' bytes are stored unchanged. The splits `train` and `validation` are those of
    `keras_ci2p.data.validation_mask`, since the paper's (section 4.1) are not published. Files that are no readable
    pictures are left out and listed in `info.metadata["unreadable_files"]`.

    Attributes:
        source: Archive or folder to prepare from; None for TFDS's `manual_dir`, and where that does not hold
            Animals-10, a download by kagglehub.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    `manual_dir` holds the archive of {PAGE} ({" or ".join(ARCHIVES)}), or its folder `raw-img`.
    """

    source = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photos of ten kinds of animals, found by Google and checked by people.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=PAGE,
            license="GPL-2.0",
            metadata=tfds.core.MetadataDict(
                {
                    "italian_names": {english: italian for english, (italian, _) in CLASSES.items()},
                    "published_photos": {english: count for english, (_, count) in CLASSES.items()},
                    UNREADABLE: [],
                }
            ),
        )

    def _split_generators(self, dl_manager):
        folders = find_class_folders(self.source) if self.source else _without_source(dl_manager)
        found = [(name, path, label) for folder, label in folders for name, path in _files(folder, folder.name)]
        checked = progress(in_threads(_check, (path for _, path, _ in found)), len(found), "Checking")
        photos, digests, unreadable = [], [], []
        for photo, (digest, problem) in zip(found, checked, strict=True):
            if problem:
                unreadable.append((photo[0], problem))
            else:
                photos.append(photo)
                digests.append(digest)
        warn_of_skipped("Animals-10", unreadable)
        self.info.metadata[UNREADABLE] = unreadable
        labels = [label for _, _, label in photos]
        empty = [name for label, name in enumerate(CLASSES) if label not in set(labels)]
        if empty:
            raise DataError(f"Animals-10: no readable photo of the class {', '.join(empty)}.")
        splits = {"train": [], "validation": []}
        for photo, in_validation in zip(photos, validation_mask(digests, labels), strict=True):
            splits["validation" if in_validation else "train"].append(photo)
        if not splits["validation"]:
            raise DataError(f"Animals-10: {len(photos)} photos are too few to split.")
        return {name: self._generate_examples(part) for name, part in splits.items()}

    def _generate_examples(self, photos):
        for name, path, label in photos:
            yield name, {"image": _read(path), "label": label, "file_name": name}


def find_class_folders(source):
    """`(folder, label)` of the ten class folders, named in English or Italian, wherever they are in `source`.

    Args:
        source: ZIP archive, or folder that holds the class folders or such an archive.

    Returns:
        List of `(pathlib.Path or zipfile.Path, label)`, by label.

    Raises:
        DataError: There is no such file, it is damaged, or it does not hold the ten.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"There is no file or folder {source}.")
    best = _find_below(source if source.is_dir() else _open_archive(source))
    for archive in (source / name for name in ARCHIVES if len(best) < len(CLASSES)):
        if archive.is_file():
            best = max(best, _find_below(_open_archive(archive)), key=len)
    if len(best) < len(CLASSES):
        missing = [f"{english} ({CLASSES[english][0]})" for label, english in enumerate(CLASSES) if label not in best]
        raise DataError(
            f"{source} is not Animals-10: it must hold one folder of photos for each of the ten classes, named in "
            f"Italian or English. Missing: {', '.join(missing)}."
        )
    return [(folder, label) for label in sorted(best) for folder in best[label]]


def _open_archive(path):
    try:
        return zipfile.Path(path)
    except zipfile.BadZipFile as error:
        raise DamagedArchive(f"{path} is no ZIP archive, or damaged ({error}). Download it again.") from error


def _find_below(root):
    """`{label: [folders]}` of the folder at or below `root`, highest first, with the most classes in it."""
    best, level = {}, [root]
    for _ in range(_MAX_DEPTH + 1):
        below = [_visible(folder) for folder in level]
        for entries in below:
            found = {}
            for entry in entries:
                if entry.name.lower() in _LABELS and entry.is_dir():
                    found.setdefault(_LABELS[entry.name.lower()], []).append(entry)
            best = max(best, found, key=len)
        if len(best) == len(CLASSES):
            break
        level = [entry for entries in below for entry in entries if entry.is_dir()]
    return best


def _visible(folder):
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _files(folder, name):
    """`(name, path)` of all visible files at any depth, in the order of `scan_folder`."""
    subfolders = []
    for entry in _visible(folder):
        if entry.is_dir():
            subfolders.append(entry)
        else:
            yield f"{name}/{entry.name}", entry
    for subfolder in subfolders:
        yield from _files(subfolder, f"{name}/{subfolder.name}")


def _check(path):
    try:
        return check_picture(_read(path))
    except OSError as error:
        return None, str(error)


def _read(path):
    """The bytes of a file or of a member of an archive; nothing is unpacked to the disk."""
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


def _without_source(dl_manager):
    try:
        manual_dir = dl_manager.manual_dir
    except AssertionError:
        # TFDS's word for a missing or empty one.
        manual_dir = None
    if manual_dir is not None:
        try:
            return find_class_folders(manual_dir)
        except DamagedArchive:
            raise
        except DataError:
            # It is for all sets, and holds others.
            pass
    return find_class_folders(_download())


def _download():
    """The folder of kagglehub's copy, downloaded now or before."""
    try:
        import kagglehub
    except ImportError as error:
        raise DataError(f"{HOW_TO_GET}\nOr let it be downloaded: pip install kagglehub") from error
    try:
        return kagglehub.dataset_download(KAGGLE)
    except Exception as error:
        # kagglehub lets through what requests, urllib3 and Kaggle's client raise.
        raise DataError(f"kagglehub could not download Animals-10: {error}\n{HOW_TO_GET}") from error
