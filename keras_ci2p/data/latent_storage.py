"""Latents, and what a teacher says of their images, as records of ArrayRecord files and back."""

import contextlib
import math

import numpy as np

from keras_ci2p.extras import require

ARRAY_RECORD = "array_record.python.array_record_module"

STORES = ("float16", "rounded")

# zstd at its fastest: measured on latents, its higher levels up to 9 and brotli save nothing and are slower.
_OPTIONS = "group_size:1,zstd:1"


def record_file(path, store):
    """Yields a function that appends a batch of latents, as `encode` takes it, to a new ArrayRecord file.

    Raises:
        OSError: It cannot be written, for example since the disk is full.
    """
    return _record_file(path, lambda latents: encode(latents, store))


def target_file(path):
    """As `record_file`, of a teacher's targets; the function takes what `encode_targets` takes."""
    return _record_file(path, encode_targets)


@contextlib.contextmanager
def _record_file(path, encode):
    writer = require(ARRAY_RECORD, extra="train").ArrayRecordWriter(str(path), _OPTIONS)

    def append(*batch):
        for record in encode(*batch):
            _checked(path, writer.write, record)

    yield append
    _checked(path, writer.close)


def _checked(path, action, *arguments):
    try:
        action(*arguments)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def encode(latents, store):
    """The bytes of each latent of a batch, channel after channel: a channel's neighbours are alike and pack better.

    Args:
        latents: float32 `(batch, height, width, channels)`.
        store: "float16", or "rounded" to integers: one byte for each value, two where a latent's values need them.

    Returns:
        List of bytes.

    Raises:
        ValueError: A value that is not finite, or too large for the store.
    """
    planar = np.moveaxis(latents, -1, 1)
    largest = float(np.abs(planar).max(initial=0))
    limit = float(np.finfo("float16").max) if store == "float16" else np.iinfo("int16").max
    # In this form also for NaN.
    if not largest <= limit:
        raise ValueError(f"Latents must be within -{limit}..{limit} to be stored as {store}. Largest: {largest}")
    if store == "float16":
        return [latent.tobytes() for latent in planar.astype("<f2")]
    return [_smallest(latent).tobytes() for latent in np.rint(planar)]


def _smallest(integers):
    return integers.astype("int8" if integers.min() >= -128 and integers.max() <= 127 else "<i2")


def decode(record, shape, store):
    """The latent of `encode`'s bytes: float32 of the shape `(height, width, channels)`.

    Raises:
        ValueError: The bytes are not as many as the shape needs.
    """
    height, width, channels = shape
    dtype = "<f2" if store == "float16" else "int8" if len(record) == height * width * channels else "<i2"
    planar = np.frombuffer(record, dtype).reshape(channels, height, width)
    return np.moveaxis(planar, 0, -1).astype("float32", order="C")


def encode_targets(logits, features):
    """The bytes of a teacher's targets, one record for each image of a batch.

    Args:
        logits: float `(batch, classes)`, stored as float16.
        features: List of int8 arrays `(batch, rows, columns, channels)`.

    Raises:
        ValueError: A logit that is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("The teacher's logits must be finite to be stored. Is its range of values right?")
    logits = np.clip(logits, *(np.finfo("float16").max * np.array([-1, 1]))).astype("<f2")
    return [b"".join(array[i].tobytes() for array in (logits, *features)) for i in range(len(logits))]


def decode_targets(record, num_classes, shapes):
    """One image's `(logits, list of feature maps)`, float32 and int8, as `encode_targets` took them.

    Args:
        record: Its bytes.
        num_classes: Of the logits.
        shapes: `(rows, columns, channels)` of each feature map.

    Raises:
        ValueError: The bytes are not as many as the shapes need.
    """
    ends = np.cumsum([2 * num_classes, *(math.prod(shape) for shape in shapes)])
    if len(record) != ends[-1]:
        raise ValueError(f"{ends[-1]} bytes are expected, {len(record)} found")
    logits, *features = np.split(np.frombuffer(record, "int8"), ends[:-1])
    return logits.view("<f2").astype("float32"), [
        map_.reshape(shape) for map_, shape in zip(features, shapes, strict=True)
    ]
