"""Weights of Keras as float16 or int8 in HDF5 files.

HDF5 writes to memory alone: where a disk fills, it could not close its file, and would end the process at its exit.
"""

import io
from collections.abc import Iterable

import h5py
import numpy as np
from h5py import h5f, h5fd, h5g, h5p

from keras_ci2p.utils import PathLike, write_bytes

STORAGES = ("float32", "float16", "int8")

# Vectors and smaller arrays stay as they are: biases, scales, running statistics, priors. They are sensitive, and
# together hardly a hundredth of a model.
SMALLEST = 4096

# Largest error of an output channel's weights as a share of the channel (roots of squares); what would exceed it is
# stored more exactly. float16: half a unit of the last place, which only values beyond its range exceed. int8: twice
# the error that its steps are chosen for.
LARGEST_ERROR = {"float16": 2.0**-11, "int8": 2.0**-5}
# Steps from zero to a channel's largest weight, where its other weights do not ask for more.
LEVELS = 127

# Measured on trained weights: level 9 saves a hundredth and takes five times as long.
_FILTERS = {"shuffle": True, "compression": "gzip", "compression_opts": 6}


def check_storage(storage):
    """Raises ValueError unless `storage` is one of `STORAGES`."""
    if storage not in STORAGES:
        raise ValueError(f"`storage` must be one of {', '.join(STORAGES)}. Received: storage={storage!r}")


def compact_weights(path: PathLike, storage: str, exact: Iterable[str] = ()) -> None:
    """Rewrites the large float32 arrays of a Keras weight file; names, shapes and all else stay.

    "float16" rounds to 16-bit floats. "int8" rounds the weights of each output channel to whole multiples of a power of
    two, chosen so that 127 steps reach the largest weight and the rounding errors are below 1/64 of the channel; 16-bit
    floats hold them exactly. Both are datasets of 16-bit floats behind HDF5's own shuffle and gzip filters, of 1.7 and
    1.1 bytes a weight. Equal weights make equal files.

    What was trained elsewhere and must stay what it is there, such as a frozen compressor, is named by `exact`: of its
    arrays those that 16-bit floats hold exactly, as stored ones are, are not rounded further.

    Args:
        path: File ending in .weights.h5; replaced.
        storage: One of `STORAGES`; "float32" leaves the file as it is.
        exact: Names of groups of the file, at whatever depth.

    Raises:
        ValueError: Unknown storage.

    Examples:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1024)])
        >>> model.save_weights("dense.weights.h5")
        >>> keras_ci2p.presets.compact_weights("dense.weights.h5", "float16")
        >>> model.load_weights("dense.weights.h5")
    """
    check_storage(storage)
    if storage != "float32":
        write_bytes(path, _compacted(path, storage, exact))


def weight_file(name, write, storage="float32", exact=()):
    """The content of a weight file.

    Args:
        name: What it is to be called, ending in .weights.h5.
        write: `save_weights` of a model.
        storage, exact: As in `compact_weights`.

    Returns:
        bytes.
    """
    file = _MemoryFile(name)
    write(file)
    return file.getvalue() if storage == "float32" else _compacted(file, storage, exact)


class _MemoryFile(io.BytesIO):
    """Keras writes to a BytesIO too, but asks it for the suffix of its name."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def __str__(self):
        return self._name


def _compacted(file, storage, exact):
    compacted = io.BytesIO()
    with h5py.File(file) as source, _create_file(compacted) as target:
        _copy(source, target, storage, exact)
    return compacted.getvalue()


def compact_array(values, storage, exact=False):
    """A float32 array as `compact_weights` stores it: float16 where that loses little enough, else as it is.

    With `exact`, values that 16-bit floats hold exactly are not rounded further.
    """
    if values.dtype != np.float32 or values.size < SMALLEST or sum(side > 1 for side in values.shape) < 2:
        return values
    # Depthwise kernels end in an axis of length 1.
    axis = max(axis for axis, side in enumerate(values.shape) if side > 1)
    others = tuple(other for other in range(values.ndim) if other != axis)
    with np.errstate(over="ignore"):
        if exact and np.array_equal(values.astype("float16"), values):
            return values.astype("float16")
    candidates = {"float16": lambda: values, "int8": lambda: _whole_steps(values, others)}
    for precision in ("int8", "float16") if storage == "int8" else ("float16",):
        with np.errstate(over="ignore"):
            rounded = candidates[precision]().astype("float16")
        if _relative_error(rounded, values, others) <= LARGEST_ERROR[precision]:
            return rounded
    return values


def _whole_steps(values, others):
    """Each channel rounded to multiples of a power of two; one that was rounded so before as it is."""
    largest = np.abs(values).max(axis=others, keepdims=True)
    size = np.sqrt(np.square(values).mean(axis=others, keepdims=True))
    exponents = np.ceil(_log2(largest) - np.log2(LEVELS))
    # Uniform rounding errors are a step over the root of 12; outliers must not leave the other weights to few steps.
    finer = np.floor(_log2(size) + np.log2(LARGEST_ERROR["int8"] / 2 * np.sqrt(12)))
    step = np.exp2(np.minimum(exponents, finer))
    rounded, finer = (np.rint(values / unit) * unit for unit in (step, step / 2))
    # Rounding changes the size, by which the next power of two may have been reached. Other weights are not all
    # multiples of half a step.
    is_rounded = (finer == values).all(axis=others, keepdims=True)
    return np.where(is_rounded, values, rounded)


def _log2(values):
    return np.log2(np.where(values > 0, values, 1))


def _relative_error(rounded, values, others):
    """Of the worst channel; infinite where a value is not finite."""
    with np.errstate(invalid="ignore"):
        error = np.square(rounded.astype("float64") - values).sum(axis=others)
    size = np.square(values.astype("float64")).sum(axis=others)
    worst = np.sqrt(error / np.where(size > 0, size, 1)).max()
    return worst if np.isfinite(worst) else np.inf


def _copy(source, target, storage, exact, is_exact=False):
    for name, value in source.attrs.items():
        target.attrs[name] = value
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _copy(item, _create_group(target, name), storage, exact, is_exact or name in exact)
            continue
        values = compact_array(item[()], storage, is_exact)
        if values.dtype == item.dtype:
            source.copy(item, target, name)
            continue
        dataset = target.create_dataset(name, data=values, chunks=values.shape, track_times=False, **_FILTERS)
        for attribute, value in item.attrs.items():
            dataset.attrs[attribute] = value


def _create_file(file):
    """In memory, as HDF5 1.10 writes it, whose groups and indices are a fifth of the default's size; without the time
    of day."""
    access, creation = h5p.create(h5p.FILE_ACCESS), h5p.create(h5p.FILE_CREATE)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    creation.set_obj_track_times(False)
    access.set_fileobj_driver(h5fd.fileobj_driver, file)
    return h5py.File(h5f.create(repr(file).encode(), h5f.ACC_TRUNC, creation, access))


def _create_group(parent, name):
    creation = h5p.create(h5p.GROUP_CREATE)
    creation.set_obj_track_times(False)
    return h5py.Group(h5g.create(parent.id, name.encode(), gcpl=creation))
