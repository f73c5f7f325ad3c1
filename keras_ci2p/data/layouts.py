"""Finds the images of each class in a folder, whichever way it is laid out: by folders, by splits, by a table."""

import collections
import csv
import os
import re
import warnings
from pathlib import Path, PurePath

from keras_ci2p.codec.file_format import SUFFIX
from keras_ci2p.data.manifest import SPLITS, DataError, is_compressed
from keras_ci2p.data.transforms import IMAGE_SUFFIXES
from keras_ci2p.utils import listed, user_path

# Of files that count as images before they are opened.
_SUFFIXES = (*IMAGE_SUFFIXES, SUFFIX)

# What the folders of a data set that is split already are called, in capitals or not.
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


def split_of(name):
    """Returns the split that a folder's name has as one of its words, as in "seg_train" and "Test set", or None."""
    splits = {SPLIT_FOLDERS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_FOLDERS}
    return splits.pop() if len(splits) == 1 else None


# What systems and programs put beside images, under names that are not hidden.
_NOT_DATA = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "desktop.ini",
    "thumbs.db",
}


def is_visible(name):
    """Whether a file or folder of this name counts as data: none that is hidden, or that a system has put there."""
    return not name.startswith(".") and name.lower() not in _NOT_DATA


def visible_entries(folder):
    """The visible entries of a folder, by name. Whether they are folders is known without looking at each."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if is_visible(entry.name)), key=lambda entry: entry.name)


def _folders(folder):
    return [Path(entry.path) for entry in visible_entries(folder) if entry.is_dir()]


def _images(folder):
    """Names of the files in a folder that are images by their suffixes."""
    names = [entry.name for entry in visible_entries(folder) if not entry.is_dir()]
    return [name for name in names if PurePath(name).suffix.lower() in _SUFFIXES]


def visible_files(path, above=()):
    """Yields the visible files below a folder, or the file itself: those of a folder before those of its subfolders.

    Links to folders are followed, except to those that they lie in.
    """
    path = user_path(path)
    if not path.is_dir():
        yield path
        return
    above = {*(above or {*path.resolve().parents, *path.absolute().parents}), path.resolve()}
    subfolders = []
    for entry in visible_entries(path):
        if entry.is_dir():
            subfolders.append(Path(entry.path))
        else:
            yield Path(entry.path)
    for subfolder in subfolders:
        if subfolder.resolve() not in above:
            yield from visible_files(subfolder, above)


def count_files(folder):
    """Returns a sentence that counts the files of a folder by suffix; empty where there are none."""
    files = [PurePath(entry.name) for entry in visible_entries(folder) if not entry.is_dir()]
    counts = collections.Counter(file.suffix or file.name for file in files).most_common(5)
    return f" The folder itself holds files: {', '.join(f'{count:,} {what}' for what, count in counts)}." * bool(counts)


def unwrapped(folder, of_split=False):
    """Returns the folder; but where it holds nothing but one folder of folders, as unpacked archives do, that one.

    Args:
        folder: Folder.
        of_split: Whether it is that of a split; else folders of splits are what is looked for.
    """
    while len(inner := _folders(folder)) == 1 and _folders(inner[0]) and not _images(folder):
        if not of_split and split_of(inner[0].name):
            break
        folder = inner[0]
    return folder


def class_places(root):
    """Finds the folders of the classes.

    Returns:
        List of `(folder, class, split or None)`, a dict of the folder's name for each split, empty where there are
        none, and `(name, reason)` of the images that lie outside of them.
    """
    top = unwrapped(root)
    split_folders = find_splits(top, of_classes=True)
    if split_folders:
        tops = {split: unwrapped(folder, of_split=True) for split, folder in split_folders.items()}
        places = [(folder, folder.name, split) for split, above in tops.items() for folder in _folders(above)]
        around = [top, *tops.values()]
    else:
        folders, around = _folders(top), [top]
        places = _splits_within(root, folders)
        if not places:
            _warn_of_folders_within(root, folders)
            places = [(folder, folder.name, None) for folder in folders]
    names = {split: folder.name for split, folder in split_folders.items()}
    names = names or {split: split for split in SPLITS if split in {split for _, _, split in places}}
    loose = [(folder / name).relative_to(root).as_posix() for folder in around for name in _images(folder)]
    return places, names, [(name, "in the folder of no class") for name in loose]


def find_splits(root, of_classes):
    """Returns `{split: folder}` of a folder whose subfolders are splits; empty where they are not.

    Args:
        root: Folder.
        of_classes: Whether each must hold subfolders.

    Raises:
        DataError: Some are and some are not: two or more of them bear the very names of splits, or one that a split is
            named in holds folders of the same names as another.
    """
    folders = _folders(root)
    splits = [split_of(folder.name) for folder in folders]
    if not any(splits):
        return {}
    inside = [{inner.name for inner in _folders(unwrapped(folder, of_split=True))} for folder in folders]
    several = [split for split, count in collections.Counter(splits).items() if split and count > 1]
    others = [folder.name for folder, split in zip(folders, splits, strict=True) if not split]
    flat = [folder.name for folder, names in zip(folders, inside, strict=True) if of_classes and not names]
    if not (several or others or flat):
        found = dict(zip(splits, folders, strict=True))
        return {split: found[split] for split in SPLITS if split in found}
    # As folders of classes are, one beside the other.
    is_alike = any(
        len(inside[i] & names) > 1 for i, split in enumerate(splits) if split for names in inside[:i] + inside[i + 1 :]
    )
    if sum(folder.name.lower() in SPLIT_FOLDERS for folder in folders) < 2 and not is_alike:
        return {}
    if several:
        names = " and ".join(folder.name for folder, split in zip(folders, splits, strict=True) if split == several[0])
        raise DataError(f"{root} has several folders for the split {several[0]}: {names}. Keep one of them.")
    if others:
        names = ", ".join(folder.name for folder, split in zip(folders, splits, strict=True) if split)
        raise DataError(
            f"{root} has folders of splits ({names}) beside {', '.join(others)}. Put what is no split elsewhere, or "
            "name it after one: train, val, test."
        )
    raise DataError(
        f"{root} has folders of splits, but {', '.join(flat)} holds no subfolders. Each must hold one subfolder of "
        f"images per class, or a table of them, {TABLES[0]}; put what is without classes elsewhere."
    )


def _splits_within(root, folders):
    """Returns `(folder, class, split)` of folders of splits within those of classes; empty where no class has several.

    Raises:
        DataError: Some classes have such folders, and others have something else.
    """
    inside = {folder: _folders(folder) for folder in folders}
    splits = {folder: [SPLIT_FOLDERS.get(inner.name.lower()) for inner in some] for folder, some in inside.items()}
    if all(len({*names} - {None}) < 2 for names in splits.values()):
        return []
    wrong = [
        folder.name
        for folder, names in splits.items()
        if not names or None in names or len({*names}) < len(names) or _images(folder)
    ]
    if wrong:
        raise DataError(
            f"{root} has classes that hold folders of splits, but {', '.join(wrong)} holds something else. Each class "
            "must hold its images in folders train, val and test, or none of them."
        )
    return [
        (inner, folder.name, split)
        for folder, some in inside.items()
        for inner, split in zip(some, splits[folder], strict=True)
    ]


def _warn_of_folders_within(root, folders):
    """Warns of folders that are read as classes where those within them may be: of folds, or of one split alone."""
    inside = {folder: {inner.name for inner in _folders(folder)} for folder in folders}
    counts = collections.Counter(name for names in inside.values() for name in names)
    are_numbered = len({re.sub(r"[\W\d_]", "", folder.name.lower()) for folder in folders}) == 1
    for folder, names in inside.items():
        is_fold = are_numbered and sum(counts[name] > 1 for name in names) > 1
        is_split = folder.name.lower() in SPLIT_FOLDERS and len(names) > 1 and not _images(folder)
        if is_fold or is_split:
            warnings.warn(
                f"{root}: {listed([folder.name for folder in folders])} are read as the classes, not what "
                f"{folder.name} holds, {listed(sorted(names))}. If these are the classes, give {folder}, or see the "
                "layouts in docs/data.md.",
                stacklevel=5,
            )
            return


def labelled_places(root):
    """As `class_places`, of what a table tells, the places being files; None without a table of files that are there.

    Images that it does not name are left out with a warning.
    """
    top = unwrapped(root)
    tables = [(folder / name, folder) for folder in (top, *_folders(top)) for name in TABLES]
    tables = [(path, folder) for path, folder in tables if path.is_file()]
    if not tables:
        return None
    files = list(visible_files(top))
    rows, missing = [], []
    for path, folder in tables:
        found, lost = labelled_files(path, [file for file in files if folder in file.parents])
        own = None if folder == top else split_of(folder.name)
        rows += [(file, label, split or own) for file, label, split in found]
        missing += lost if found else []
    if not rows:
        return None
    names, splits = " and ".join(str(path.relative_to(root)) for path, _ in tables), {split for _, _, split in rows}
    if splits == {None}:
        # Where the table does not say, the folders may.
        by_folder = [split_of(str(file.parent.relative_to(top)).split(os.sep)[0]) for file, _, _ in rows]
        if None not in by_folder:
            rows = [(file, label, split) for (file, label, _), split in zip(rows, by_folder, strict=True)]
            splits = set(by_folder)
    named = collections.Counter(file for file, _, _ in rows)
    for file, _, split in rows:
        if named[file] > 1 or (split is None and len(splits) > 1):
            raise DataError(
                f"{root}: {names} must name each image once, and tell the split of all or none. See {file}."
            )
    others = sum(file not in named and file.suffix.lower() in _SUFFIXES for file in files)
    if others:
        warnings.warn(f"{root}: {others:,} images that {names} does not name are left out.", stacklevel=4)
    return rows, {split: split for split in SPLITS if split in splits}, missing


TABLES = ("labels.csv", "metadata.csv")
# What the columns are called, in capitals or not. A labels.csv of two columns has files and classes, whatever they are.
_FILES = ("file_name", "filename", "file", "image", "image_name", "image_id", "image_path", "path", "id")
_CLASSES = ("label", "labels", "class", "class_name", "category")
_SPLITS = ("split", "subset")


def labelled_files(table, files):
    """Reads a table of files and classes: CSV in UTF-8 with a line of headings; commas, semicolons or tabs separate.

    A row names its file by the path from the table's folder, with or without the suffix; or by its name alone, wherever
    it lies below that folder, if no other has that name. An image that is not there may lie there as a .ci2p file.

    Args:
        table: `pathlib.Path` of a file named as one of `TABLES`.
        files: `pathlib.Path` of all files that it may name.

    Returns:
        List of `(file, class, split or None)`, in the files' order; and `(file as named, reason)` of the rows that were
        left out. Both empty for a table that is none of files and classes: whose columns are others, or of whose files
        none is there.

    Raises:
        DataError: Not readable as such a table; two classes of one file; a split of an unknown name.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            head = opened.readline()
            opened.seek(0)
            rows = list(csv.reader(opened, delimiter=max(",;\t", key=head.count)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table, CSV in UTF-8: {error}") from error
    columns = _find_columns(table, rows)
    places = _Places(table.parent, files)
    if columns is None or not any(places.find(row[columns[0]]) for row in rows[1:] if len(row) > columns[0]):
        return [], []
    if places.find(rows[0][columns[0]]):
        raise DataError(f"{table} must begin with a line of headings, such as file_name,label; it begins with a file.")
    return _read_rows(table, rows[1:], columns, places)


def _find_columns(table, rows):
    """Numbers of the columns of files, classes and splits, the last None without; None if it is no such table."""
    headings = [heading.strip().lower() for heading in rows[0]] if rows else []

    def first(names):
        return next((headings.index(name) for name in names if name in headings), None)

    columns = first(_FILES), first(_CLASSES)
    if table.name == "labels.csv" and len(headings) == 2:
        columns = (1, 0) if columns[1] == 0 else (0, 1)
    return None if None in columns else (*columns, first(_SPLITS))


def _read_rows(table, rows, columns, places):
    file_column, class_column, split_column = columns
    found, lost = {}, []
    for row in filter(any, rows):
        name, label, split = (
            row[i].strip() if i is not None and i < len(row) else "" for i in (file_column, class_column, split_column)
        )
        file = places.find(name)
        if file is None or not label:
            lost.append((name, f"{'of no class' if file else 'no such file, or several'}, in {table.name}"))
            continue
        if split and split.lower() not in SPLIT_FOLDERS:
            raise DataError(f"{table}: the split of {name} must be train, val or test. Received: {split!r}")
        value = label, SPLIT_FOLDERS.get(split.lower())
        if found.setdefault(file, value) != value:
            raise DataError(
                f"{table} names {name} twice: as {found[file][0]!r} and as {label!r}. An image has one class."
            )
    return [(file, *found[file]) for file in places.files if file in found], lost


class _Places:
    """Finds files by what a table calls them."""

    def __init__(self, folder, files):
        self.files = files
        self._paths = {file.relative_to(folder).as_posix(): file for file in files}
        self._others = collections.defaultdict(list)
        for path, file in self._paths.items():
            for key in {path.removesuffix(file.suffix), file.name, file.stem}:
                self._others[key].append(file)

    def find(self, name):
        """The file; None where there is none, or several."""
        name = name.strip().replace("\\", "/").removeprefix("./")
        found = self._find(name)
        stem, dot, suffix = name.rpartition(".")
        if found is None and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES:
            # An image that was compressed after the table was written.
            compressed = self._find(stem)
            found = compressed if compressed is not None and is_compressed(compressed) else None
        return found

    def _find(self, name):
        others = self._others.get(name, [])
        return self._paths.get(name) or (others[0] if len(others) == 1 else None)
