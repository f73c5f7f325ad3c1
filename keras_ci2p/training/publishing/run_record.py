"""What a training run, or a preset that was published from one, tells of how its model was trained."""

import csv
import json
import os

from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.presets import list_presets
from keras_ci2p.training.efficientnet import TEACHERS
from keras_ci2p.training.recipe import Recipe
from keras_ci2p.training.recorder import RunError
from keras_ci2p.training.run_directory import CONFIG
from keras_ci2p.training.settings import NO_TEACHER

HISTORY = "history.csv"
CURVES = "curves.png"
REPORT = "report.json"

# What the commands of a card call things that lie elsewhere on other machines.
INIT, TEACHER = "$INIT", "$TEACHER"
_PLACEHOLDERS = {"data": "$DATA", "init": INIT, "compressor": "$COMPRESSOR", "teacher": TEACHER}


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
    recipe = Recipe().override(record["settings"]["recipe"])
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
    for key, placeholder in _PLACEHOLDERS.items():
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
