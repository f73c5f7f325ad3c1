"""Prepares image classification sets of TensorFlow Datasets (TFDS), and reads them without TensorFlow."""

import contextlib
import functools
import importlib
import io
import json
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from keras_ci2p.data.manifest import (
    DataError,
    ImageManifest,
    check_image,
    in_threads,
    warn_of_missing_images,
    warn_of_skipped,
)
from keras_ci2p.data.transforms import decode_image
from keras_ci2p.utils import PathLike, atomic_file, progress, require, user_path

PREFIX = "tfds:"
FORMAT = "array_record"
# Sets whose builders are in this package; their metadata list `(name, reason)` of the files left out under this key.
OWN_SETS = {"animals10": "keras_ci2p.data.animals10_builder"}
UNREADABLE = "unreadable_files"
# Of TFDS's ten, each waiting twice as long as the one before, the last ones take minutes where there is no network.
_RETRIES = 5
_NAME = re.compile(r"(\w+)(/[\w.+-]+)?(:\d+\.(\d+|\*)\.(\d+|\*))?", re.ASCII)


def import_tfds():
    return require("tensorflow_datasets", extra="tfds")


def set_of(name):
    """Returns NAME of `NAME[/CONFIG][:VERSION]`; DataError for anything else, such as sets that run foreign code."""
    if match := _NAME.fullmatch(name):
        return match[1]
    raise DataError(f"A set of TFDS is named NAME[/CONFIG][:1.2.3]. Received: name={name!r}")


def prepared_directory(name, data_dir=None):
    """Finds the directory of a prepared set, `DATA_DIR/NAME/[CONFIG/]VERSION`; None where it is not prepared.

    Args:
        name: `NAME[/CONFIG][:VERSION]`; without a version, the newest that is prepared.
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.
    """
    _know(name)
    from_files = require("tensorflow_datasets.core.read_only_builder", extra="tfds").builder_from_files
    try:
        return Path(from_files(name, data_dir=_data_dir(data_dir)).data_dir)
    except import_tfds().core.DatasetNotFoundError:
        return None


def find_builder(name, data_dir=None):
    """Returns the `tfds.core.DatasetBuilder` of a set; DataError for a name that TFDS does not know."""
    _know(name)
    try:
        return import_tfds().builder(name, data_dir=_data_dir(data_dir))
    except (ValueError, AssertionError) as error:
        # TFDS goes on with some hundred names.
        raise DataError(f"TFDS has no set {name}: {str(error).strip().splitlines()[0]}") from error


def prepare_tfds(name: str, source: PathLike | None = None, data_dir: str | None = None) -> Path:
    """Downloads a set if need be and prepares it as ArrayRecord. An interruption leaves nothing that looks prepared.

    Args:
        name, data_dir: As in `prepared_directory`.
        source: For `animals10` its archive or folder, for other sets TFDS's `manual_dir`; None for TFDS's own.

    Returns:
        As `prepared_directory`.

    Raises:
        DataError: It could not be had or prepared.
        ImportError: TFDS is not installed, or the set's builder needs a package, such as tensorflow, that is not.

    Examples:
        >>> directory = keras_ci2p.data.prepare_tfds("animals10", source="archive.zip")  # doctest: +SKIP
        >>> manifest = keras_ci2p.data.open_data("tfds:animals10")  # doctest: +SKIP
    """
    builder = find_builder(name, data_dir)
    # TFDS 4.9.10 uses it without requiring it (tensorflow/datasets issue 11212).
    require("importlib_resources", extra="tfds")
    directory = Path(builder.data_dir)
    leftovers = sorted(map(str, directory.parent.glob(f"incomplete.*_{directory.name}")))
    if leftovers:
        warnings.warn(
            f"Of a preparation that was killed, or is still running elsewhere: {', '.join(leftovers)}", stacklevel=2
        )
    manual = {}
    if source is not None:
        source = user_path(source)
        if not source.exists():
            raise DataError(f"There is no file or folder {source}.")
        if set_of(name) in OWN_SETS:
            builder.source = source
        else:
            manual = {"manual_dir": source}
    config = import_tfds().download.DownloadConfig(**manual)
    downloader: Any = importlib.import_module("tensorflow_datasets.core.download.downloader")
    downloader.MAX_RETRIES = _RETRIES
    try:
        # TFDS's talk; standard output is the caller's.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config, file_format=FORMAT)
    except (ValueError, OSError, ImportError) as error:
        if type(error).__module__.startswith("requests"):
            raise DataError(f"{PREFIX}{name} could not be downloaded, after {_RETRIES} tries: {error}") from error
        raise
    except Exception as error:
        # A missing archive is an AssertionError; a failed download has a class of its own.
        raise DataError(f"TFDS could not prepare {name}: {error}") from error
    return directory


def _know(name):
    import_tfds()
    if module := OWN_SETS.get(set_of(name)):
        importlib.import_module(module)


def _data_dir(data_dir):
    # TFDS reads the variable once, when it is imported.
    return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "") or None


INDEX = "keras_ci2p_index.npz"
_VERSION = 1
_NO_HASH = "00" * 32


class Finding(NamedTuple):
    """Describes the contents of one record.

    Attributes:
        label: -1 for none, None where the record cannot be read.
        file: Name of the image's file, or None.
        sha256: Hexadecimal hash of the image's bytes; zeros where there is a problem.
        problem: Why it cannot be used, or None.
    """

    label: int | None
    file: str | None
    sha256: str
    problem: str | None


def examine(records, directory, name):
    """Decodes and hashes each record, or reads `INDEX` in `directory` while the set's files are those it was made of.

    Returns:
        List of `Finding`.
    """
    state = [_VERSION, list(records.splits), _files_state(directory)]
    findings = _read(directory / INDEX, state)
    if findings is None:
        checked = in_threads(functools.partial(_check, records), range(len(records)))
        findings = list(progress(checked, len(records), f"Hashing {name}"))
        try:
            # What cannot be read today may be tomorrow.
            if all(finding.label is not None for finding in findings):
                _write(directory / INDEX, state, findings)
        except OSError as error:
            warnings.warn(
                f"The hashes of {name} cannot be kept in {directory}; each start will compute them: {error}",
                stacklevel=3,
            )
    return findings


def _check(records, position):
    try:
        content, label, file = records[position]
    except OSError as error:
        return Finding(None, None, _NO_HASH, str(error))
    sha256, problem, _ = check_image(content) if label >= 0 else (None, "no label", None)
    return Finding(label, file, sha256 or _NO_HASH, problem)


def _files_state(directory):
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("keras_ci2p"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _write(path, state, findings):
    labels, names, hashes, problems = zip(*findings, strict=True)
    with atomic_file(path) as temporary:
        np.savez_compressed(
            temporary,
            # As JSON, since arrays of strings are padded to the longest.
            texts=np.frombuffer(json.dumps([state, names, problems]).encode(), "uint8"),
            labels=np.array(labels),
            digests=np.frombuffer(bytes.fromhex("".join(hashes)), "uint8").reshape(-1, 32),
        )


def _read(path, state):
    """Reads the findings that `_write` kept; None where there are none, or they are damaged or of other files."""
    try:
        with np.load(path, allow_pickle=False) as index:
            kept_state, names, problems = json.loads(index["texts"].tobytes())
            if kept_state != state:
                return None
            hashes = (row.tobytes().hex() for row in index["digests"])
            return list(map(Finding, index["labels"].tolist(), names, hashes, problems))
    except Exception:
        # Missing, cut off, no archive, no JSON: made anew, whatever it is.
        return None


# What TFDS sets call the feature that holds the file's name.
_FILE_NAMES = ("file_name", "filename", "image/filename")


@dataclass(frozen=True)
class TFDSRecords:
    """Reads the examples of a prepared set, by position: `(bytes of the image, label, file name or None)`.

    Several threads may read. What is pickled is the set's place; each process opens it anew.

    Attributes:
        directory: Of the prepared set.
        splits: Names of its splits, one after the other.
    """

    directory: str
    splits: tuple

    def __reduce__(self):
        return TFDSRecords, (self.directory, self.splits)

    def __len__(self):
        return len(self.opened[0])

    def __getitem__(self, position):
        """Raises OSError where the record cannot be read."""
        try:
            source, features, decoders, (image, label, file_name) = self.opened
            example = features.deserialize_example_np(source[position], decoders=decoders)
            return example[image], example[label], example[file_name].decode(errors="replace") if file_name else None
        except Exception as error:
            # ArrayRecord and the protocol buffers have their own classes for damaged and missing files.
            raise OSError(f"record {position} of {self.directory} cannot be read: {error}") from error

    @functools.cached_property
    def opened(self):
        """Serialized examples, the features to read of them, how, and these features' names."""
        tfds = import_tfds()
        builder = tfds.builder_from_directory(self.directory)
        known = builder.info.features
        image, label = builder.info.supervised_keys
        texts = (key for key in _FILE_NAMES if key in known and isinstance(known[key], tfds.features.Text))
        keys = (image, label, next(texts, None))
        source = builder.as_data_source(
            "+".join(self.splits), deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format=FORMAT
        )
        # `tfds.decode.PartialDecoding` would import TensorFlow.
        features = tfds.features.FeaturesDict({key: known[key] for key in keys if key})
        return source, features, {image: tfds.decode.SkipDecoding()}, keys


@dataclass(frozen=True, kw_only=True)
class TFDSManifest(ImageManifest):
    """Lists the readable images of a prepared TFDS set, sorted by class and name.

    As `ImageManifest`, with `root` the set's name ("tfds:animals10") and `files` the names that the set gives, else
    "SPLIT/NUMBER".

    Attributes:
        records: `TFDSRecords`.
        positions: Position of each image in `records`.
    """

    records: TFDSRecords
    positions: tuple

    _columns: ClassVar[tuple[str, ...]] = (*ImageManifest._columns, "positions")

    def open(self, index):
        """Decodes an image to an upright RGB `PIL.Image.Image`; OSError where it can no longer be read."""
        content, _, _ = self.records[self.positions[index]]
        return decode_image(io.BytesIO(content))[0]


def open_tfds(name, data_dir=None):
    """Opens the images of a prepared TFDS set.

    The set's own splits count: "train", and for validation "validation" or else "test"; a "test" beside "validation" is
    the test split, if it has labels. Where it does not have them, all of it is split by
    `keras_ci2p.data.validation_mask`. The first opening decodes and hashes every image; the result is kept beside the
    set, in `keras_ci2p_index.npz`, for as long as the set's files stay as they are.

    Args:
        name: `NAME[/CONFIG][:VERSION]`.
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.

    Returns:
        `TFDSManifest` of all splits.

    Raises:
        DataError: Not prepared, not as ArrayRecord, or no set of images with one label each.
        ImportError: TFDS is not installed.
    """
    directory = prepared_directory(name, data_dir)
    if directory is None:
        find_builder(name, data_dir)  # A wrong name gets an error of its own.
        source = " --from ARCHIVE_OR_FOLDER" if set_of(name) in OWN_SETS else ""
        where = f" --data-dir {data_dir}" if data_dir else ""
        raise DataError(f"{PREFIX}{name} is not prepared. Prepare it with: keras-ci2p data {name}{source}{where}")
    info = import_tfds().builder_from_directory(directory).info
    class_names = _class_names(name, info)
    chosen = _choose_splits(info.splits)
    records = TFDSRecords(str(directory), tuple(chosen))
    numbered = [(split, number) for split in chosen for number in range(info.splits[split].num_examples)]
    findings = list(zip(numbered, examine(records, directory, PREFIX + name), strict=True))
    # Tests of competitions are published without labels.
    if not any(finding.label != -1 for (split, _), finding in findings if chosen[split] == "test"):
        findings = [(place, finding) for place, finding in findings if chosen[place[0]] != "test"]
    rows, skipped = [], []
    for position, ((split, number), (label, file, sha256, problem)) in enumerate(findings):
        file = file or f"{split}/{number:07}"
        if problem:
            skipped.append((file, problem))
        else:
            rows.append((label, file, position, sha256, chosen[split]))
    warn_of_skipped(PREFIX + name, skipped)
    if not rows:
        raise DataError(f"{PREFIX}{name} holds no readable image with a label.")
    if set_of(name) in OWN_SETS:
        skipped += map(tuple, info.metadata[UNREADABLE])
    labels, file_names, positions, hashes, own_splits = zip(*sorted(rows), strict=True)
    manifest = TFDSManifest(
        root=PREFIX + name,
        class_names=class_names,
        files=file_names,
        labels=labels,
        hashes=hashes,
        skipped=tuple(skipped),
        splits=() if None in own_splits else own_splits,
        records=records,
        positions=positions,
    )
    warn_of_missing_images(manifest)
    return manifest


def _class_names(name, info):
    """Returns the class names; DataError unless it is a set of images with one label each, as ArrayRecord."""
    features = import_tfds().features
    keys = info.supervised_keys or ()
    image, label = [info.features[key] for key in keys] if len(keys) == 2 else (None, None)
    # Floats are four bytes in the channels of a PNG.
    if (
        not isinstance(image, features.Image)
        or image.np_dtype == np.float32
        or not isinstance(label, features.ClassLabel)
        or (label.num_classes or 0) < 2
    ):
        raise DataError(
            f"{PREFIX}{name} is no image classification set: its supervised features must be an Image (8 or 16 bits) "
            f"and a ClassLabel of at least two classes. They are: {', '.join(map(str, keys)) or 'none'}."
        )
    formats = sorted(file_format.value for file_format in info.available_file_formats())
    if FORMAT not in formats:
        raise DataError(
            f"{PREFIX}{name} is prepared as {', '.join(formats)}, not as {FORMAT}. Prepare it in another place: "
            f"keras-ci2p data {name} --data-dir DIR"
        )
    return tuple(label.names)


def _choose_splits(splits):
    """Returns the splits to read, each with the one of ours that it is; None where the set has no such pair."""
    if "train" not in splits or not {"validation", "test"} & set(splits):
        return dict.fromkeys(splits)
    ours = {"train": "train", "validation": "val", "test": "test" if "validation" in splits else "val"}
    return {name: split for name, split in ours.items() if name in splits}
