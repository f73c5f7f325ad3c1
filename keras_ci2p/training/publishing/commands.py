"""The commands that train a published model again."""

import shlex
from dataclasses import fields

from keras_ci2p.training.compression.settings import CompressorSettings
from keras_ci2p.training.efficientnet import DEFAULT_SIZE, TEACHERS
from keras_ci2p.training.publishing.run_record import TEACHER, teacher_of, views_of
from keras_ci2p.training.settings import TrainSettings

# Options of `train` and `train-compressor` by the setting that they give.
_TRAIN = {
    "model": "--model",
    "variant": "--variant",
    "init": "--init",
    "compressor": "--compressor",
    "freeze_compressor": "--freeze-compressor",
    "teacher": "--teacher",
    "teacher_size": "--teacher-size",
    "teacher_range": "--teacher-range",
    "teacher_features": "--teacher-features",
    "dtype": "--dtype",
    "matmul_precision": "--matmul-precision",
    "augment": "--augment",
    "class_weights": "--class-weights",
    "seed": "--seed",
    "deterministic": "--deterministic",
}
_TRAIN_COMPRESSOR = {
    "architecture": "--architecture",
    "quality": "--quality",
    "lmbda": "--lmbda",
    "steps": "--steps",
    "steps_per_epoch": "--steps-per-epoch",
    "crop_size": "--crop-size",
    "batch_size": "--batch-size",
    "learning_rate": "--lr",
    "clip_norm": "--clip-norm",
    "seed": "--seed",
    "init": "--init",
    "val_pictures": "--val-pictures",
    "val_size": "--val-size",
    "dtype": "--dtype",
    "deterministic": "--deterministic",
}


def training_commands(record):
    """The command lines that repeat a run, to be given where its published `recipe.toml` lies.

    Args:
        record: What `read_record` returns.
    """
    settings = record["settings"]
    backend = f"KERAS_BACKEND={record['backend']}"
    if "recipe" not in settings:
        options = _options(settings, CompressorSettings, _TRAIN_COMPRESSOR, always=("quality", "steps", "seed"))
        return [f'{backend} keras-ci2p train-compressor "$DATA" {options} --out run']
    options = _options(settings, TrainSettings, _TRAIN, always=("variant", "seed"))
    train = f"--recipe recipe.toml {options} --out run"
    latents = record["data"].get("latents")
    if latents is None:
        return [f'{backend} keras-ci2p train "$DATA" {train}']
    views, more_views = views_of(record)
    cache, teacher = f'{backend} keras-ci2p cache "$DATA" latents', _cache_teacher(record)
    options = f"--views {views} --store {latents['store']} --recipe recipe.toml --seed {latents['seed']}"
    return [
        f'{cache} --compressor "$COMPRESSOR" {options}{teacher}',
        *([f"{cache} --more-views {more_views}{teacher}"] if more_views else []),
        f"{backend} keras-ci2p train latents {train}",
    ]


def _cache_teacher(record):
    """The options that name the teacher of a latent cache; empty without one."""
    teacher = teacher_of(record)
    if teacher is None:
        return ""
    words = ["--teacher", _word(TEACHER)]
    height, width = teacher["image_size"]
    if teacher["name"] in TEACHERS:
        # They know the rest, and take no other.
        return " ".join(["", *words, *(["--teacher-size", str(height)] if height != DEFAULT_SIZE else [])])
    if height == width:
        words += ["--teacher-size", str(height)]
    if not any(isinstance(value, list) for value in teacher["value_range"]):
        words += ["--teacher-range", _word(teacher["value_range"])]
    if teacher["features"]:
        words += ["--teacher-features", _word([row["name"] for row in teacher["features"]])]
    return " ".join(["", *words])


def _options(settings, settings_class, flags, always):
    """The options of all settings that are not the default, and of those that are `always` given."""
    defaults = {field.name: field.default for field in fields(settings_class)}
    words = []
    for name, flag in flags.items():
        value = settings.get(name)
        if value is None or (value == defaults[name] and name not in always):
            continue
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, _word(value)]
    return " ".join(words)


def _word(value):
    if isinstance(value, dict):
        value = [f"{key}={_number(number)}" for key, number in value.items()]
    if isinstance(value, (list, tuple)):
        value = ",".join(map(_number, value))
    text = str(value)
    return f'"{text}"' if text.startswith("$") else shlex.quote(text)


def _number(value):
    return str(value).removesuffix(".0")
