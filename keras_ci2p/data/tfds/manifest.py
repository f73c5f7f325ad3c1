"""The photos of a prepared TFDS set."""

import functools
import io
from dataclasses import dataclass

import numpy as np

from keras_ci2p.data.decode import load_image
from keras_ci2p.data.folder import DataError, ImageManifest, warn_of_skipped
from keras_ci2p.data.tfds.index import examine
from keras_ci2p.data.tfds.sets import (
    FORMAT,
    OWN_SETS,
    PREFIX,
    UNREADABLE,
    find_builder,
    import_tfds,
    prepared_directory,
    set_of,
)

# What TFDS sets call the feature that holds the file's name.
_FILE_NAMES = ("file_name", "filename", "image/filename")


@dataclass(frozen=True)
class TFDSRecords:
    """The examples of a prepared set, by position: `(bytes of the picture, label, file name or None)`.

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
    """The readable photos of a prepared TFDS set, sorted by class and name.

    As `ImageManifest`, with `root` the set's name ("tfds:animals10") and `files` the names that the set gives, else
    "SPLIT/NUMBER".

    Attributes:
        records: `TFDSRecords`.
        positions: Position of each photo in `records`.
    """

    records: TFDSRecords
    positions: tuple

    _columns = (*ImageManifest._columns, "positions")

    def open(self, index):
        """The photo as an upright RGB `PIL.Image.Image`; OSError where it can no longer be read."""
        content, _, _ = self.records[self.positions[index]]
        return load_image(io.BytesIO(content))


def open_tfds(name, data_dir=None):
    """The photos of a prepared TFDS set.

    The set's own splits count: "train", and for validation "validation" or else "test"; a "test" beside "validation" is
    the test split, if it has labels. Where it does not have them, all of it is split by
    `keras_ci2p.data.validation_mask`. The first opening checks and hashes every picture; the
    result is kept beside the set, in `keras_ci2p_index.npz`, for as long as the set's files stay as they are.

    Args:
        name: "NAME[/CONFIG][:VERSION]".
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.

    Returns:
        `TFDSManifest` of all splits.

    Raises:
        DataError: Not prepared, not as ArrayRecord, or no set of pictures with one label each.
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
    for position, ((split, number), (label, file, digest, problem)) in enumerate(findings):
        file = file or f"{split}/{number:07}"
        if problem:
            skipped.append((file, problem))
        else:
            rows.append((label, file, position, digest, chosen[split]))
    warn_of_skipped(PREFIX + name, skipped)
    if not rows:
        raise DataError(f"{PREFIX}{name} holds no readable picture with a label.")
    if set_of(name) in OWN_SETS:
        skipped += map(tuple, info.metadata[UNREADABLE])
    labels, file_names, positions, digests, own_splits = zip(*sorted(rows), strict=True)
    return TFDSManifest(
        root=PREFIX + name,
        class_names=class_names,
        files=file_names,
        labels=labels,
        digests=digests,
        skipped=tuple(skipped),
        splits=() if None in own_splits else own_splits,
        records=records,
        positions=positions,
    )


def _class_names(name, info):
    """The names of the classes; DataError unless it is a set of pictures with one label each, as ArrayRecord."""
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
    """Names of the splits to read, each with the one of ours that it is: None where the set has no such pair."""
    if "train" not in splits or not {"validation", "test"} & set(splits):
        return dict.fromkeys(splits)
    ours = {"train": "train", "validation": "val", "test": "test" if "validation" in splits else "val"}
    return {name: split for name, split in ours.items() if name in splits}
