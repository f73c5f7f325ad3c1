"""Reading PyTorch checkpoints as dicts of arrays, without executing code from the file."""

import re
import zipfile
from pathlib import Path

import numpy as np

from keras_ci2p.extras import require


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
