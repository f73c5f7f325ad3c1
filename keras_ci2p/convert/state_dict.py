"""State dictionaries of PyTorch: reads them without executing code, and maps them to weights of Keras."""

import math
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_ci2p.utils import atomic_file, require


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not hold the weights expected of it."""


def read_state_dict(checkpoint):
    """The arrays of a checkpoint by their keys.

    Args:
        checkpoint: Path of a `.safetensors` file or of a PyTorch file (`.pth`, `.pt`, `.pth.tar`; a state dict, or a
            training checkpoint that holds one under `state_dict`); or a dict of arrays or torch tensors.

    Returns:
        dict of str to numpy array.

    Raises:
        CheckpointError: Missing, damaged or unsafe file; something else than arrays in it.
        ImportError: The package that reads this kind of file is not installed.
    """
    stored = checkpoint if isinstance(checkpoint, dict) else _read_file(Path(checkpoint))
    if isinstance(stored.get("state_dict"), dict):
        stored = stored["state_dict"]
    return {key: _as_array(key, value) for key, value in stored.items()}


def write_state_dict(path, state):
    """Writes a dict of numpy arrays as a safetensors file, or for another suffix as PyTorch does; whole or not at all.

    Raises:
        ImportError: safetensors, or torch, is not installed.
    """
    with atomic_file(path) as temporary:
        if Path(path).suffix == ".safetensors":
            require("safetensors.numpy", extra="convert").save_file(state, temporary)
        else:
            torch = require("torch", extra="torch")
            torch.save({key: torch.tensor(value) for key, value in state.items()}, temporary)


def _read_file(path):
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"The checkpoint {path} is empty.")
    stored = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(stored, dict):
        raise CheckpointError(f"The checkpoint {path} holds a {type(stored).__name__}, not a state dict.")
    return stored


def _read_safetensors(path):
    numpy_format = require("safetensors.numpy", extra="convert")
    try:
        return numpy_format.load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _read_torch(path):
    torch = require("torch", extra="torch")
    _check_zip(path)
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message advises to load without the safeguard.
        unsafe = re.search(r"Unsupported (?:global|class|operand)[^\n]*|GLOBAL (\S+) was not an allowed", str(error))
        reason = f": {unsafe[0]}" if unsafe else ""
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, is damaged, or holds other objects than weights{reason}. "
            "Nothing in it was executed."
        ) from error


def _stand_ins():
    """What real training checkpoints hold beside the weights, made harmless: names that `torch.load` may meet.

    mmengine keeps its log as `HistoryBuffer` objects full of numpy values; an object with the same name and nothing in
    it takes their place.
    """
    history = type("HistoryBuffer", (), {"__setstate__": lambda self, state: None})
    numpy_types = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "b1")]
    multiarray = np._core.multiarray
    return [
        (history, "mmengine.logging.history_buffer.HistoryBuffer"),
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        (multiarray.scalar, "numpy._core.multiarray.scalar"),
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        (multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        *numpy_types,
    ]


def _check_zip(path):
    # torch does not verify the archive's checksums: a flipped byte would load as a wrong weight.
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            # A checkpoint of PyTorch before 1.6; it has no checksums.
            return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                # PyTorch stores its parts as they are; compressed ones could grow without bound.
                raise CheckpointError(f"{path} is no PyTorch checkpoint: its parts are compressed.")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} is wrong.")


def _as_array(key, value):
    if not isinstance(key, str):
        raise CheckpointError(f"A state dict has names as keys. Received: {key!r}")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        value = value.numpy()
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "fiub":
        raise CheckpointError(f"{key} is not an array of numbers: {type(value).__name__}.")
    value = np.asarray(value)
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
        raise CheckpointError(f"The checkpoint lacks {_listed(missing)}.")
    extra = sorted(key for key in state.keys() - wanted.keys() if not constants(key))
    if extra:
        raise CheckpointError(f"The checkpoint has entries that this model does not use: {_listed(extra)}.")
    for key, entry in wanted.items():
        if tuple(state[key].shape) != tuple(entry.torch_shape):
            raise CheckpointError(
                f"{key} has shape {tuple(state[key].shape)}; this model needs {tuple(entry.torch_shape)}."
            )
        if state[key].dtype.kind != "f":
            raise CheckpointError(f"{key} is of type {state[key].dtype}; weights are floating point numbers.")
    for key, entry in wanted.items():
        entry.variable.assign(_TO_KERAS[entry.layout](np.asarray(state[key], "float32")))


def _listed(keys, most=5):
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def find_grid(key, positions, own_grid, grid=None, prefix=0):
    """Finds the grid of a stored position embedding, of which only the number of positions is known.

    Args:
        key: Its name, for messages.
        positions: Its number of positions.
        own_grid: `(rows, columns)` of the model; None where the grid is to be a square.
        grid: `(rows, columns)` of the embedding if known; None for the model's own or a square.
        prefix: Number of tokens before the patches; they have positions of their own or none.

    Returns:
        `(number of positions before the grid, (rows, columns))`.

    Raises:
        CheckpointError: No such grid, or several.
    """
    own_grid, grid = own_grid and tuple(own_grid), grid and tuple(grid)
    found = set()
    for before in {prefix, 0}:
        side = math.isqrt(max(positions - before, 0))
        for rows, columns in [grid] if grid else [*([own_grid] if own_grid else []), (side, side)]:
            if rows * columns == positions - before > 0:
                found.add((before, (rows, columns)))
    if len(found) == 1:
        return found.pop()
    candidates = [grid] if grid else ["square", *([own_grid] if own_grid else [])]
    wanted = " or ".join(one if one == "square" else f"{one[0]} x {one[1]}" for one in candidates)
    tokens = f" behind {prefix} positions of other tokens, or none" if prefix else ""
    if not found:
        raise CheckpointError(f"{key} has {positions} positions, which make no {wanted} grid{tokens}. Give its `grid`.")
    readings = " or ".join(f"{rows} x {columns} behind {before} others" for before, (rows, columns) in sorted(found))
    raise CheckpointError(f"{key} has {positions} positions, which may be {readings}: give its `grid`.")


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


def transformer_entries(model, blocks, names, norm):
    """Entries of a model's transformer blocks and closing norm.

    Args:
        model: A `CI2PViT` or `ViT`.
        blocks: Prefix of the numbered blocks.
        names: Of a block's first norm, qkv, attention output, second norm, MLP's hidden and output layer.
        norm: Name of the closing norm.
    """
    entries = []
    for i in range(model.backbone.num_layers):
        block = model.get_layer(f"block_{i}")
        norm1, qkv, attention_output, norm2, mlp_hidden, mlp_output = (f"{blocks}.{i}.{name}" for name in names)
        entries += layer_norm(norm1, block.attention_norm)
        entries += dense(qkv, block.qkv)
        entries += dense(attention_output, block.attention_output)
        entries += layer_norm(norm2, block.mlp_norm)
        entries += dense(mlp_hidden, block.mlp_hidden)
        entries += dense(mlp_output, block.mlp_output)
    return entries + layer_norm(norm, model.get_layer("norm"))
