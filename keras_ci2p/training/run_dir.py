"""The directory of a run: its record, checkpoints, and resuming."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.presets import list_presets
from keras_ci2p.training.configs import NO_TEACHER, TEACHERS, TrainConfig
from keras_ci2p.training.recipes import Recipe
from keras_ci2p.utils import atomic_directory, clean_up, file_sha256, write_json

CONFIG = "config.json"


def previous_run(run_dir, resume):
    """The stored configuration of the run to take up, None for a new one.

    Raises:
        RunError: An existing directory without `resume`; with it, one that is no run, or a damaged one.
    """
    config = run_dir / CONFIG
    if resume:
        if not config.is_file():
            # Killed before its first epoch: nothing to go on from, and nothing lost.
            if not run_dir.exists() or not any(run_dir.iterdir()):
                return None
            raise RunError(f"{run_dir} is no training run (it has no {CONFIG}); it cannot be resumed.")
        try:
            return json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{config} is damaged: {error}. Begin a new run in another directory.") from error
    if run_dir.exists() and any(run_dir.iterdir()):
        raise RunError(f"{run_dir} exists already: go on with it by --resume, or choose another directory.")
    return None


def check_same(what, now, previous, defaults=None):
    """Raises RunError, saying what differs, unless the previous run (or None) was begun with the same dict `what`.

    What the previous run does not tell, being older, counts as what `defaults` says, a dict like `now`.
    """
    if previous is None:
        return
    # As JSON stores them.
    now, defaults = (_flat(json.loads(json.dumps(values or {}))) for values in (now, defaults))
    then = {**defaults, **_flat(previous.get(what, {}))}
    different = [f"{key}: {then.get(key)!r}, now {now.get(key)!r}" for key in now if then.get(key) != now[key]]
    if different:
        raise RunError(f"The run was begun with other {what}, so it cannot be resumed: {'; '.join(different)}.")


def check_config(config, previous):
    """Raises RunError, saying what differs, unless the previous run (or None) was begun with the same settings.

    Args:
        config: `Config` of this run.
        previous: The previous run's record.
    """
    different = [] if previous is None else config.differences(previous.get("settings", {}))
    if different:
        told = "; ".join(f"{name}: {then!r}, now {now!r}" for name, then, now in different)
        raise RunError(f"The run was begun with other settings, so it cannot be resumed: {told}.")


def _flat(values, prefix=""):
    flat = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


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
        with atomic_directory(target) as temporary:
            np.savez(temporary / _STATE, **arrays)
            stored = {"variables": _signature(model), "sha256": file_sha256(temporary / _STATE), "record": record}
            write_json(temporary / _RECORD, stored)
        for path in older:
            if path != target:
                shutil.rmtree(path, ignore_errors=True)

    def restore(self, model):
        """Gives `model` and its optimizer the newest state, and returns its record; None where there is none.

        Raises:
            CheckpointCorrupt: The files were changed or are of another model. Nothing is assigned then.
        """
        clean_up(self.directory)
        existing = self._all()
        if not existing:
            return None
        path = existing[-1]
        try:
            stored = json.loads((path / _RECORD).read_text(encoding="utf-8"))
            record = stored["record"]
            if file_sha256(path / _STATE) != stored["sha256"]:
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


HISTORY = "history.csv"
CURVES = "curves.png"
REPORT = "report.json"


def read_record(directory):
    """How a model was trained, as `report.json` holds it in "run".

    Args:
        directory: `Path` of a training run, or of a preset.

    Returns:
        dict: the run's `config.json`, with names such as "$DATA" in place of paths, and `hours` of training. None for a
        preset that was published from no run.

    Raises:
        RunError: A file that is missing or damaged.
    """
    config = _read_json(directory / CONFIG)
    is_run = "settings" in config
    record = config if is_run else _read_json(directory / REPORT).get("run")
    if record is None:
        return None
    for name in (HISTORY, CURVES):
        if not (directory / name).is_file():
            raise RunError(f"{directory} has no {name}, which a run writes after its first epoch.")
    return {**_portable(record), "hours": _hours(directory / HISTORY)} if is_run else record


def recipe_of(record):
    """The `Recipe` of a classifier's run, None for a compressor's.

    Where the run was trained on a latent cache, the image size and the augmentation are those of the cache.
    """
    if "recipe" not in record["settings"]:
        return None
    recipe = Recipe.from_dict(record["settings"]["recipe"])
    latents = record["data"].get("latents")
    if latents is None:
        return recipe
    height, width = latents["image_size"]
    size = {"image_size": height} if height == width else {}
    return recipe.override({**size, "augmentation": latents["augmentation"]})


def teacher_of(record):
    """What a run's record says of its teacher, as `find_teacher` describes it; None without one."""
    return (record or {}).get("data", {}).get("teacher")


def views_of(record):
    """`(stored with the cache, added later)`: views of each image that a run on latents was trained on."""
    data = record["data"]
    first = data["latents"]["views"]
    return first, data.get("views", first) - first


def _portable(record):
    settings = dict(record["settings"])
    for key, placeholder in TrainConfig.placeholders().items():
        value = settings.get(key)
        if value is not None and not value.startswith(PREFIX) and _is_path(key, value):
            settings[key] = placeholder
    return {**record, "settings": settings}


def _is_path(key, value):
    if key == "teacher":
        # Mostly a file in the directory where the command was given.
        return value not in (NO_TEACHER, *TEACHERS, *list_presets())
    return key == "data" or os.sep in value or "/" in value


def _hours(history):
    with open(history, encoding="utf-8", newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file)) / 3600


def _read_json(path):
    """The object in a JSON file; empty where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    return value if isinstance(value, dict) else {}


LAST = "last"


class RunError(ValueError):
    """A run that cannot be begun, taken up or ended as asked."""
