"""The directory of a run: lock, record, checkpoints; taking a run up again, and reading what it was told."""

import contextlib
import csv
import errno
import json
import os
import platform
import re
import shutil
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.names import TEACHERS
from keras_ci2p.presets import list_presets
from keras_ci2p.training.configs import NO_TEACHER, TrainConfig
from keras_ci2p.training.recipes import Recipe
from keras_ci2p.utils import atomic_directory, clean_up, file_sha256, is_empty, room_for, write_json

# Settings, data and environment of a run, and what 0.1.0 called this file.
RUN_RECORD = "run.json"
_RUN_RECORDS = (RUN_RECORD, "config.json")
LAST = "last"
_LOCK = "run.lock"


class RunError(ValueError):
    """A run that cannot be begun, taken up or ended as asked.

    Examples:
        >>> settings = keras_ci2p.training.TrainConfig(data="photos")
        >>> keras_ci2p.training.train(settings, "photos", verbose=0)
        Traceback (most recent call last):
            ...
        keras_ci2p.training.run_dir.RunError: ...
    """


@contextlib.contextmanager
def run_lock(run_dir, is_main=True):
    """Keeps other processes out of a run while it lasts; makes the directory, and deletes it where it stays empty.

    The operating system ends the lock with its process, however that ends, so a run that was killed is free at once.
    Where there are no such locks (Windows, some network file systems), nothing is kept out.

    Args:
        run_dir: `Path` of the run.
        is_main: Whether this is the process of the run that writes; the others lock nothing.

    Raises:
        RunError: Another process, or another call in this one, has the run.
    """
    if not is_main:
        yield
        return
    is_new = not run_dir.exists()
    # It may be a symbolic link to where nothing is yet.
    run_dir.resolve().mkdir(parents=True, exist_ok=True)
    with room_for(run_dir / _LOCK, run_dir / _LOCK):
        file = _open_locked(run_dir / _LOCK)
    try:
        yield
    finally:
        # First deleted, then closed: whoever waits for this very file notices.
        with contextlib.suppress(OSError):
            (run_dir / _LOCK).unlink()
        file.close()
        if is_new:
            with contextlib.suppress(OSError):
                run_dir.rmdir()


def _open_locked(path):
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunError(f"{path.parent} is in use by {holder}. Wait until it has ended, or end it.")
        try:
            is_current = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            is_current = False
        if is_current:
            file.truncate(0)
            # A full disk has no room for these words, but what is locked may free some.
            with contextlib.suppress(OSError):
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
            return file
        # Its last holder deleted it after it was opened here.
        file.close()


def _lock(file):
    """Whether the open file could be locked, or no file can be."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def previous_run(run_dir, resume):
    """Reads the record of the run to take up.

    Args:
        run_dir: `Path` of the run.
        resume: Whether there may be one.

    Returns:
        dict, as `run.json` holds it; None for a new run.

    Raises:
        RunError: An existing directory without `resume`; with it, one that is no run, or a damaged one.
    """
    # A lock alone: killed before its first epoch, or about to begin; nothing to go on from, and nothing lost.
    if not run_dir.exists() or is_empty(run_dir, besides=[_LOCK]):
        return None
    if not resume:
        raise RunError(f"{run_dir} exists already: go on with it by --resume, or choose another directory.")
    path = next((run_dir / name for name in _RUN_RECORDS if (run_dir / name).is_file()), None)
    if path is None:
        raise RunError(f"{run_dir} is no training run (it has no {RUN_RECORD}); it cannot be resumed.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Begin a new run in another directory.") from error
    if not isinstance(record, dict):
        raise RunError(f"{path} is damaged: it holds no table. Begin a new run in another directory.")
    return _with_latents(record)


# Settings that say how long a run is.
_LENGTHS = ("recipe.epochs", "recipe.patience", "max_minutes", "steps")


def check_config(config, previous):
    """Raises RunError, saying what differs, unless the previous run (or None) was begun with the same settings.

    Of files and directories it counts only whether they were given: not where they lie, but what they hold makes them
    the same, see `check_same` and `check_contents`.

    Args:
        config: `Config` of this run.
        previous: The previous run's record.
    """
    different = [] if previous is None else config.differences(previous.get("settings", {}))
    paths, none = config.placeholders(), {None, NO_TEACHER}
    different = [row for row in different if row[0] not in paths or not none.isdisjoint(row[1:])]
    if different:
        told = "; ".join(f"{name}: {then!r}, now {now!r}" for name, then, now in different)
        longer = " To train its model further, begin a new run from it: --init RUN."
        is_longer = any(name in _LENGTHS for name, _, _ in different)
        raise RunError(
            f"The run was begun with other settings, so it cannot be resumed: {told}.{longer if is_longer else ''}"
        )


def check_contents(config, previous, contents):
    """Raises RunError where what the previous run (or None) began with was not only moved since.

    Args:
        config: `Config` of this run.
        previous: The previous run's record.
        contents: Hashes of the presets or checkpoints that settings name, by the settings' names.
    """
    for name, sha256 in contents.items() if previous is not None else ():
        then, now = previous.get("settings", {}).get(name), getattr(config, name)
        if then != now and previous.get("data", {}).get(name) != sha256:
            raise RunError(
                f"The run was begun with {name} {then!r}, which holds something else than {now!r}, so it cannot be "
                "resumed."
            )


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


def _flat(values, prefix=""):
    flat = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def warn_of_other_backend(previous):
    """Warns where a run goes on with another backend than it was begun on."""
    if previous.get("backend") != keras.backend.backend():
        warnings.warn(
            f"This run was begun on {previous.get('backend')} and goes on with {keras.backend.backend()}: "
            "the result will differ from one made on one backend.",
            stacklevel=4,
        )


_STATE = "state.npz"
_RECORD = "record.json"


class CheckpointCorrupt(ValueError):
    """A checkpoint that was changed, or belongs to another model."""


class Checkpoints:
    """The checkpoints of a run: `directory/epoch-0007`, of which the newest is kept.

    Each holds the model's weights, the optimizer's variables, the state of every random generator (Keras leaves it
    out of its weight files), and a record of plain values (epoch, history, best value).

    Args:
        directory: Where they are.
        is_main: Whether this is the process of the run that writes, and cleans up after one that was killed.
    """

    def __init__(self, directory, is_main=True):
        self.directory = Path(directory)
        self._is_main = is_main

    def save(self, epoch, model, record):
        """Writes the state after `epoch` epochs aside, renames it, then deletes the older ones."""
        older = self._all()
        target = self.directory / f"epoch-{epoch:04d}"
        arrays = {f"{i:05d}": _to_numpy(v) for i, v in enumerate(_variables(model))}
        needed = sum(array.nbytes for array in arrays.values())
        with atomic_directory(target, needed=needed) as temporary:
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
        if self._is_main:
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
        """Directories of the checkpoints, the oldest first."""
        paths = [path for path in self.directory.glob("epoch-*") if path.name[6:].isdigit()]
        return sorted(paths, key=lambda path: int(path.name[6:]))


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
        dict: the run's `run.json`, with names such as "$DATA" in place of paths, and `hours` of training. None for a
        preset that was published from no run.

    Raises:
        RunError: A file that is missing or damaged.
    """
    stored = [_read_json(directory / name) for name in _RUN_RECORDS]
    # A preset has a config.json of its own.
    run = next((record for record in stored if "settings" in record), None)
    record = _read_json(directory / REPORT).get("run") if run is None else run
    if record is None:
        return None
    if not (directory / HISTORY).is_file():
        raise RunError(f"{directory} has no {HISTORY}, which a run writes after its first epoch.")
    return record if run is None else {**_portable(_with_latents(run)), "hours": _hours(directory / HISTORY)}


def recipe_of(record):
    """The `Recipe` of a classifier's run, None for a compressor's.

    Where the run was trained on a latent cache, the image size and the augmentation are those of the cache.
    """
    if "recipe" not in record["settings"]:
        return None
    return Recipe.from_dict(_with_latents(record)["settings"]["recipe"])


def _with_latents(record):
    """The record with the image size and augmentation of the latent cache, if any: 0.1.0 wrote those of the recipe."""
    latents, settings = record.get("data", {}).get("latents"), record.get("settings", {})
    if latents is None or "recipe" not in settings:
        return record
    return {**record, "settings": {**settings, "recipe": {**settings["recipe"], **recipe_of_latents(latents)}}}


def recipe_of_latents(latents):
    """The entries of a recipe that a latent cache has settled.

    Args:
        latents: Settings of the cache, as its `latents.json` and the record of a run on it hold them.

    Returns:
        dict with `augmentation`, and with `image_size` where height and width are the same.
    """
    height, width = latents["image_size"]
    size = {"image_size": height} if height == width else {}
    return {**size, "augmentation": latents["augmentation"]}


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
