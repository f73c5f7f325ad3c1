"""All state of a training run, in one directory that is whole or absent."""

import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np

from keras_ci2p import files

_STATE = "state.npz"
_RECORD = "record.json"


class CheckpointCorrupt(ValueError):
    """A checkpoint that was changed, or belongs to another model."""


class Checkpoints:
    """The checkpoints of a run: `directory/epoch-0007`, of which the newest is kept.

    Each holds the model's weights, the optimizer's variables, the state of every random generator (Keras leaves it
    out of its weight files), and a record of plain values (epoch, history, best value).
    """

    def __init__(self, directory):
        self.directory = Path(directory)

    def save(self, epoch, model, record):
        """Writes the state after `epoch` epochs aside, renames it, then deletes the older ones."""
        older = self._all()
        target = self.directory / f"epoch-{epoch:04d}"
        arrays = {f"{i:05d}": _to_numpy(v) for i, v in enumerate(_variables(model))}
        with files.atomic_directory(target) as temporary:
            np.savez(temporary / _STATE, **arrays)
            stored = {"variables": _signature(model), "sha256": files.sha256(temporary / _STATE), "record": record}
            files.write_json(temporary / _RECORD, stored)
        for path in older:
            if path != target:
                shutil.rmtree(path, ignore_errors=True)

    def restore(self, model):
        """Gives `model` and its optimizer the newest state, and returns its record; None where there is none.

        Raises:
            CheckpointCorrupt: The files were changed or are of another model. Nothing is assigned then.
        """
        files.clean_up(self.directory)
        existing = self._all()
        if not existing:
            return None
        path = existing[-1]
        try:
            stored = json.loads((path / _RECORD).read_text(encoding="utf-8"))
            record = stored["record"]
            if files.sha256(path / _STATE) != stored["sha256"]:
                raise CheckpointCorrupt("its checksum is wrong")
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            if _signature(model) != stored["variables"]:
                raise CheckpointCorrupt("it belongs to another model")
            with np.load(path / _STATE, allow_pickle=False) as state:
                arrays = [state[f"{i:05d}"] for i in range(len(stored["variables"]))]
            for variable, array in zip(_variables(model), arrays, strict=True):
                variable.assign(array)
        except (CheckpointCorrupt, OSError, ValueError, KeyError) as error:
            raise CheckpointCorrupt(f"The checkpoint {path} cannot be used: {error}. Begin a new run.") from error
        return record

    def _all(self):
        return sorted(path for path in self.directory.glob("epoch-*") if path.name[6:].isdigit())


def _variables(model):
    """Weights, random states and optimizer state, in a fixed order; metrics begin anew each epoch."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [v for v in model.variables if id(v) not in metrics] + list(model.optimizer.variables)


def _signature(model):
    """Names and shapes of the variables, without the numbers that Keras adds to repeated names."""
    return [f"{re.sub(r'_[0-9]+', '', v.path)} {tuple(v.shape)}" for v in _variables(model)]


def _to_numpy(variable):
    array = keras.ops.convert_to_numpy(variable)
    # numpy files know no bfloat16; float32 holds it exactly.
    return array.astype("float32") if array.dtype.name == "bfloat16" else array
