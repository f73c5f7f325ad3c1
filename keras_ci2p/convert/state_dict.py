"""State dictionaries of PyTorch: finds them in files, without executing code, and maps them to weights of Keras."""

import math
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_ci2p.utils import listed, misplaced_file, require, user_path, write_bytes, written_bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not hold the weights expected of it.

    Examples:
        >>> keras_ci2p.convert.from_compressai({"weight": np.zeros(3, "float32")})
        Traceback (most recent call last):
            ...
        keras_ci2p.convert.state_dict.CheckpointError: ...
    """


class StateDict(dict):
    """The arrays of a state dict by their keys, without what wrapped it.

    Attributes:
        layout: Name of its layout.
        where: What it lay under, keys of the file and the prefix of its own keys, joined by "."; "" for nothing.
        others: What else `where` could have been, a list.
        beside: Keys of the arrays in the same dict that lacked the prefix, as they were, a list.
        class_names: Names of the classes that mmengine or mmcv stored with it, else None.
    """

    def __init__(self, arrays, layout, where="", others=(), beside=(), class_names=None):
        super().__init__(arrays)
        self.layout, self.where, self.others = layout, where, list(others)
        self.beside, self.class_names = list(beside), class_names


def read_state_dict(checkpoint, layouts, key=None):
    """Finds the state dict of a checkpoint, in whatever dicts and behind whatever prefix it lies.

    Args:
        checkpoint: Path of a file of PyTorch, which is not needed for it, or of safetensors; a dict of arrays or
            tensors, or of such dicts; or a torch `Module`.
        layouts: dict of the name of each layout that is looked for, to a regular expression of one key of it. What
            stands before it, up to a ".", is a prefix.
        key: The state dict to take, as errors list them, or how its name begins; None for the best: weights as they
            were trained, before a teacher's, these before moving averages, these before a student's.

    Returns:
        `StateDict`.

    Raises:
        CheckpointError: Missing, damaged or unsafe file; no such state dict, or several that are as good.
        ImportError: safetensors is not installed.
    """
    if isinstance(checkpoint, StateDict) and checkpoint.layout in layouts and key is None:
        return checkpoint
    stored = _as_dict(checkpoint)
    if stored is None:
        stored = _as_dict(_read_file(user_path(checkpoint)))
    if stored is None:
        raise CheckpointError(f"The checkpoint {checkpoint} holds no state dict.")
    found = {where: rest for where, *rest in _find(stored, layouts)}
    names = sorted(found, key=lambda where: (_rank(where), where))
    wanted = names if key is None else [where for where in names if f"{where}.".startswith(f"{key.strip('.')}.")]
    if not wanted:
        under = "" if key is None else f" under {key!r}"
        known = f"it has {', '.join(names)}" if names else f"it begins with {listed(sorted(map(str, stored)), most=3)}"
        raise CheckpointError(f"The checkpoint has no weights of {' or '.join(layouts)}{under}: {known}.")
    if len(wanted) > 1 and _rank(wanted[0]) == _rank(wanted[1]):
        raise CheckpointError(f"The checkpoint has several sets of weights: {', '.join(wanted)}. Give its `key`.")
    where = wanted[0]
    layout, prefix, values = found[where]
    arrays = {name: value for name, value in values.items() if not _is_record(value)}
    return StateDict(
        {name[len(prefix) :]: _as_array(name, arrays[name]) for name in arrays if str(name).startswith(prefix)},
        layout,
        where,
        others=[name for name in names if name != where],
        beside=[name for name in arrays if not str(name).startswith(prefix)],
        class_names=_class_names(stored),
    )


# Dicts within dicts that are looked at: deeper than any checkpoint has its weights.
_DEPTH = 5


def _find(stored, layouts):
    """Yields `(where, layout, prefix, dict)` of each state dict."""
    seen, level = set(), [("", stored)]
    for _ in range(_DEPTH):
        deeper = []
        for at, values in level:
            names = [name for name, value in values.items() if isinstance(name, str) and _is_array(value)]
            for layout, pattern in layouts.items():
                matches = map(re.compile(rf"((?:.+\.)?){pattern}").fullmatch, names)
                for prefix in sorted({match[1] for match in matches if match}):
                    yield f"{at}{prefix}".rstrip("."), layout, prefix, values
            for name, value in values.items():
                inner = _as_dict(value)
                if isinstance(name, str) and inner is not None and id(value) not in seen:
                    seen.add(id(value))
                    deeper.append((f"{at}{name}.", inner))
        level = deeper


def _rank(where):
    """Which of several to prefer, least first: `read_state_dict` tells the order."""
    words = re.split(r"[._]", where.lower())
    ranks = {"student": 3, "ema": 2, "averaged": 2, "swa": 2, "teacher": 1}
    return max((ranks.get(word, 0) for word in words), default=0)


def _as_dict(value):
    """The dict that `value` is, or of the weights of the `Module` that it is or stands for; None for others."""
    if callable(getattr(value, "state_dict", None)):
        return dict(value.state_dict())
    if isinstance(value, _StandIn) and "_modules" in value.state:
        return _module_weights(value.state)
    return value if isinstance(value, dict) else None


def _module_weights(state, prefix=""):
    hidden = state.get("_non_persistent_buffers_set") or ()
    weights = {}
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if value is not None and name not in hidden:
                weights[f"{prefix}{name}"] = value
    for name, module in state["_modules"].items():
        if isinstance(module, _StandIn) and "_modules" in module.state:
            weights |= _module_weights(module.state, f"{prefix}{name}.")
    return weights


def _is_array(value):
    return isinstance(value, (np.ndarray, np.generic, _Stored)) or hasattr(value, "detach")


def _is_record(value):
    """Whether `value` is something that may stand among weights without being one."""
    is_tensor = isinstance(value, _StandIn) and value.path.startswith("torch.")
    return isinstance(value, (str, bytes, int, float, dict, type(None))) and not is_tensor


def _class_names(stored):
    meta = stored.get("meta")
    if not isinstance(meta, dict):
        return None
    described = meta.get("dataset_meta")
    names = (described.get("classes") if isinstance(described, dict) else None) or meta.get("CLASSES")
    is_named = isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names)
    return list(names) if is_named else None


def write_state_dict(path, state):
    """Writes a dict of numpy arrays as a safetensors file, or for another suffix as PyTorch does; whole or not at all.

    Raises:
        ImportError: safetensors, or torch, is not installed.
    """
    if Path(path).suffix == ".safetensors":
        return write_bytes(path, require("safetensors.numpy", extra="convert").save(state))
    torch = require("torch", extra="torch")
    tensors = {key: torch.tensor(value) for key, value in state.items()}
    return write_bytes(path, written_bytes(lambda file: torch.save(tensors, file)))


# First bytes of files that are given for checkpoints, and what they are.
_OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes weights",
    b"\x1f\x8b": "compressed with gzip: unpack it",
}


def _read_file(path):
    """What a file holds: a dict, or what else was stored; its arrays are read when they are asked for."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: give the file of weights in it.")
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"The checkpoint {path} is empty.")
    with open(path, "rb") as file:
        start = file.read(9)
    kind = misplaced_file(path) or next((kind for magic, kind in _OTHERS.items() if start.startswith(magic)), None)
    if kind:
        raise CheckpointError(f"{path} is no checkpoint, but {kind}.")
    try:
        if start.startswith(b"PK"):
            return _read_zip(path)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            return _read_safetensors(path)
        return _read_legacy(path)
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or is damaged: {error}. Nothing in it was executed."
        ) from error


def _read_safetensors(path):
    safetensors = require("safetensors", extra="convert")
    try:
        parts = safetensors.deserialize(path.read_bytes())
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return {
        name: _Tensor(_Storage(part["data"], _KINDS.get(part["dtype"], part["dtype"])), None, 0, part["shape"], None)
        for name, part in parts
    }


def _read_zip(path):
    """A file of PyTorch since 1.6."""
    archive = zipfile.ZipFile(path)
    names = {part.filename: part.compress_type for part in archive.infolist()}
    pickled = next((name for name in names if re.fullmatch(r"([^/]+/)?data\.pkl", name)), None)
    if pickled is None:
        known = "a Keras model" if "config.json" in names else "a ZIP archive of something else"
        raise CheckpointError(f"{path} is no PyTorch checkpoint, but {known}: it has no data.pkl.")
    root = pickled.removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript archive: save the `state_dict()` of its `torch.jit.load`.")
    if set(names.values()) - {zipfile.ZIP_STORED}:
        # PyTorch stores its parts as they are; compressed ones could grow without bound.
        raise CheckpointError(f"{path} is no PyTorch checkpoint: its parts are compressed.")
    order = ">" if f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big" else "<"
    with archive.open(pickled) as file:
        return _Unpickler(file, path, lambda key: archive.read(f"{root}data/{key}"), order).load()


def _read_legacy(path):
    """A file of PyTorch before 1.6, which has no checksums: pickles, then the storages; or any other pickle."""
    places = {}

    def read(key):
        with open(path, "rb") as file:
            file.seek(places[key][0])
            return file.read(places[key][1])

    with open(path, "rb") as file:
        first = _Unpickler(file, path, read).load()
        if first != 0x1950A86A20F9469CFC6C:
            return first
        _, system = (_Unpickler(file, path, read).load() for _ in range(2))
        order = "<" if system["little_endian"] else ">"
        reader = _Unpickler(file, path, read, order)
        stored = reader.load()
        for key in _Unpickler(file, path, read).load():
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell(), count * _numpy_type(reader.storages[key].kind, order).itemsize
            file.seek(places[key][1], 1)
    return stored


def _numpy_type(kind, order):
    if kind not in _KINDS.values():
        raise CheckpointError(f"numbers of type {kind} are not read")
    return np.dtype(order + ("u2" if kind == "bfloat16" else kind))


# NumPy's types, with the names of PyTorch, its storages and safetensors. Weights are of no others.
_KINDS = {
    name: kind
    for kind, names in {
        "f8": ("float64", "DoubleStorage", "F64"),
        "f4": ("float32", "FloatStorage", "F32"),
        "f2": ("float16", "HalfStorage", "F16"),
        "bfloat16": ("bfloat16", "BFloat16Storage", "BF16"),
        "i8": ("int64", "LongStorage", "I64"),
        "i4": ("int32", "IntStorage", "I32"),
        "i2": ("int16", "ShortStorage", "I16"),
        "i1": ("int8", "CharStorage", "I8"),
        "u8": ("uint64", "U64"),
        "u4": ("uint32", "U32"),
        "u2": ("uint16", "U16"),
        "u1": ("uint8", "ByteStorage", "UntypedStorage", "U8"),
        "b1": ("bool", "BoolStorage", "BOOL"),
    }.items()
    for name in names
}


class _Inert:
    """What an unpickler may meet of this module; nothing can be set on it."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it sets the state of something that has none")


class _StandIn(dict):
    """Takes the place of an object of any class: keeps what a dict or a `Module` of it holds, and does nothing."""

    path = ""

    def __new__(cls, *args, **kwargs):
        new = super().__new__(cls)
        new.state = {}
        return new

    def __init__(self, *args, **kwargs):
        """Arguments are left alone."""

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}

    def append(self, item):
        """A list's."""

    extend = add = append
    __hash__ = object.__hash__  # type: ignore[assignment]


class _Function(_Inert):
    """A function that an unpickler may call; it can neither be changed nor give away what it is made of."""

    def __init__(self, call):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)


class _Storage(_Inert):
    def __init__(self, data, kind, order="<"):
        self.kind, self.order, self._data = kind, order, data

    def data(self):
        """Its bytes, read once."""
        if callable(self._data):
            self._data = self._data()
        return self._data


class _Stored(_Inert):
    """An array that was not read yet; `numpy()` reads it."""


class _Tensor(_Stored):
    def __init__(self, storage, kind, offset, shape, strides):
        self.storage, self.kind, self.offset, self.shape, self.strides = storage, kind, offset, shape, strides

    def numpy(self):
        kind, data = self.kind or self.storage.kind, self.storage.data()
        item = _numpy_type(kind, self.storage.order)
        if math.prod(self.shape) * item.itemsize > len(data):
            raise ValueError("it is larger than its storage")
        strides = self.strides and [stride * item.itemsize for stride in self.strides]
        array = np.ndarray(tuple(self.shape), item, data, self.offset * item.itemsize, strides)
        if kind == "bfloat16":
            # The upper half of a float32.
            return (array.astype("u4") << 16).view("f4")
        return array


class _NumpyType(_Inert):
    def __init__(self, kind, *_):
        self.kind, self.order = kind, "="

    def __setstate__(self, state):
        self.order = state[1]


class _NumpyArray(_Stored):
    def __init__(self, data=b"", kind=None, shape=(), order="C"):
        self.data, self.type, self.shape, self.order = data, kind, shape, order

    def __setstate__(self, state):
        _, self.shape, self.type, is_fortran, self.data = state
        self.order = "F" if is_fortran else "C"

    def numpy(self):
        array = np.frombuffer(self.data, _numpy_type(self.type.kind, self.type.order))
        return array.reshape(self.shape, order=self.order)


def _ordered_dict(pairs=()):
    new = _StandIn()
    new.update(pairs)
    return new


def _tensor(storage, offset, shape, strides, grad=None, hooks=None, kind=None, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it makes a tensor of something that is no storage")
    return _Tensor(storage, kind if isinstance(kind, str) else None, offset, shape, strides)


# What is called in reading a file, in the place of the functions of these names. None of them does more than to keep
# its arguments.
_FUNCTIONS = {
    "_codecs.encode": lambda text, *_: text.encode("latin1"),
    "builtins.set": set,
    "collections.OrderedDict": _ordered_dict,
    "numpy.core.multiarray._reconstruct": lambda *_: _NumpyArray(),
    "numpy.core.numeric._frombuffer": lambda data, *form: _NumpyArray(data, *form),
    "numpy.dtype": _NumpyType,
    "torch.Size": tuple,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: function(*args),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": lambda *args: _tensor(*args[:4]),
    "torch._utils._rebuild_tensor_v3": _tensor,
}
# Of the standard library, what training checkpoints hold. A file that names more of it, as `os` or `eval`, was made to
# run code.
_DATA = re.compile(
    r"(argparse|collections|copyreg|dataclasses|datetime|decimal|enum|fractions|functools|logging|operator|pathlib|random"
    r"|re|time|types|typing|uuid|weakref|zoneinfo)\..+"
    r"|builtins\.(bool|bytearray|bytes|complex|dict|float|frozenset|getattr|int|list|object|range|slice|str|tuple|type)"
)


# The one of the standard library that is written in Python: the memo of the other can be made as large as memory.
class _Unpickler(pickle._Unpickler):
    """Reads a pickle without importing or calling anything that it names: objects become stand-ins."""

    def __init__(self, file, path, read, order="<"):
        super().__init__(file, encoding="latin1")
        self.storages = {}
        self._path, self._read, self._order = path, read, order

    def find_class(self, module, name):
        """A function of `_FUNCTIONS`, a type of numbers, or else a class that does nothing."""
        # By the names of Python 2, in which PyTorch writes, and of NumPy 1.
        if self.proto < 3:
            renamed = pickle._compat_pickle
            module, name = renamed.NAME_MAPPING.get((module, name), (renamed.IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        top = module.split(".")[0]
        if path in _FUNCTIONS:
            return _Function(_FUNCTIONS[path])
        if top == "torch" and name in _KINDS:
            return _KINDS[name]
        if top in sys.stdlib_module_names and not _DATA.fullmatch(path):
            raise CheckpointError(
                f"{self._path} holds {path}, which is code and no weights: do not trust it. Nothing in it was executed."
            )
        return type("StandIn", (_StandIn,), {"path": path})

    def get_extension(self, code):
        raise pickle.UnpicklingError("it has extensions of pickle")

    def persistent_load(self, pid):
        """A storage, of `("storage", type, key, device, size, view)`; before 1.6 also a Module's class and source."""
        if pid[0] == "module":
            return pid[1]
        what, kind, key, _, _, *view = pid
        if what != "storage" or view not in ([], [None]):
            raise pickle.UnpicklingError(f"it has a {what!r} of an unknown kind")
        if key not in self.storages:
            kind = kind if isinstance(kind, str) else getattr(kind, "path", kind)
            self.storages[key] = _Storage(lambda: self._read(key), kind, self._order)
        return self.storages[key]


def _as_array(key, value):
    if not isinstance(key, str):
        raise CheckpointError(f"A state dict has names as keys. Received: {key!r}")
    if isinstance(value, _Stored):
        try:
            value = value.numpy()
        except Exception as error:
            raise CheckpointError(f"{key} is damaged, or no array of numbers: {error}") from error
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        value = value.numpy()
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "fiub":
        raise CheckpointError(f"{key} is not an array of numbers: {getattr(value, 'path', type(value).__name__)}.")
    # In this machine's order of bytes.
    value = np.asarray(value, value.dtype.newbyteorder("="))
    if not np.isfinite(value).all():
        raise CheckpointError(f"{key} holds values that are not finite.")
    return value


# PyTorch axes to Keras axes; each is undone by `_FROM_KERAS`.
_TO_KERAS = {
    "same": lambda w: w,
    "linear": lambda w: w.transpose(1, 0),
    "conv": lambda w: w.transpose(2, 3, 1, 0),
    "depthwise": lambda w: w.transpose(2, 3, 0, 1),
    "pointwise": lambda w: w.reshape(w.shape[:2]).transpose(1, 0),
}
_FROM_KERAS = {
    "same": lambda w: w,
    "linear": lambda w: w.transpose(1, 0),
    "conv": lambda w: w.transpose(3, 2, 0, 1),
    "depthwise": lambda w: w.transpose(2, 3, 0, 1),
    "pointwise": lambda w: w.transpose(1, 0)[:, :, None, None],
}


class WeightMapping(NamedTuple):
    """The checkpoint entry `key` holds `variable`; `layout` says how the axes go."""

    key: str
    variable: object
    layout: str = "same"

    def array(self):
        """The variable's value with PyTorch's axes, a numpy array."""
        return np.ascontiguousarray(_FROM_KERAS[self.layout](keras.ops.convert_to_numpy(self.variable)))

    @property
    def torch_shape(self):
        return _FROM_KERAS[self.layout](np.empty(self.variable.shape, "bool")).shape


def load_state_dict(entries, state, constants=lambda key: False):
    """Gives each entry's variable its array of `state`.

    Nothing is assigned unless everything fits.

    Args:
        entries: The `WeightMapping` list of the model.
        state: dict of str to array.
        constants: Function that tells of a key whether it may be left over: it carries no weights.

    Raises:
        CheckpointError: A key that is missing, left over, or of another shape.
    """
    wanted = {entry.key: entry for entry in entries}
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise CheckpointError(f"The checkpoint lacks {listed(missing)}.")
    extra = sorted(key for key in state.keys() - wanted.keys() if not constants(key))
    if extra:
        raise CheckpointError(f"The checkpoint has entries that this model does not use: {listed(extra)}.")
    for key, entry in wanted.items():
        if tuple(state[key].shape) != tuple(entry.torch_shape):
            raise CheckpointError(
                f"{key} has shape {tuple(state[key].shape)}; this model needs {tuple(entry.torch_shape)}."
            )
        if state[key].dtype.kind != "f":
            raise CheckpointError(f"{key} is of type {state[key].dtype}; weights are floating point numbers.")
    for key, entry in wanted.items():
        entry.variable.assign(_TO_KERAS[entry.layout](np.asarray(state[key], "float32")))


def dense(prefix, layer):
    return [WeightMapping(f"{prefix}.weight", layer.kernel, "linear"), WeightMapping(f"{prefix}.bias", layer.bias)]


def convolution(prefix, layer, layout="conv"):
    bias = [WeightMapping(f"{prefix}.bias", layer.bias)] if layer.use_bias else []
    return [WeightMapping(f"{prefix}.weight", layer.kernel, layout), *bias]


def layer_norm(prefix, layer):
    return [WeightMapping(f"{prefix}.weight", layer.gamma), WeightMapping(f"{prefix}.bias", layer.beta)]


def batch_norm(prefix, layer):
    return [
        *layer_norm(prefix, layer),
        WeightMapping(f"{prefix}.running_mean", layer.moving_mean),
        WeightMapping(f"{prefix}.running_var", layer.moving_variance),
    ]
