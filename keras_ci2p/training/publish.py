"""Publishes a trained model: a compact preset, measured again, with a model card."""

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

from keras_ci2p.backend import environment
from keras_ci2p.data.manifest import NAMES_FILE, ImageManifest
from keras_ci2p.data.overlap import count_overlap, encode_names
from keras_ci2p.data.sources import open_data, scan_images
from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.flops import count_parameters
from keras_ci2p.layers.embedding import compressor_config
from keras_ci2p.models.ci2p_vit import is_compressor, load_preset
from keras_ci2p.plots import plot_confusion
from keras_ci2p.presets import check_destination, known_files, open_preset
from keras_ci2p.training.configs import DATA, CompressorTrainConfig
from keras_ci2p.training.evaluation import evaluate, evaluate_compressor, match_classes
from keras_ci2p.training.model_card import CONFUSION, classifier_card, compressor_card
from keras_ci2p.training.run_dir import CURVES, HISTORY, REPORT, read_record, recipe_of
from keras_ci2p.utils import PathLike, atomic_directory, user_path, write_json, write_text
from keras_ci2p.weight_storage import check_storage


class PublishError(ValueError):
    """A model that is not to be published as asked.

    Examples:
        >>> issubclass(keras_ci2p.training.PublishError, ValueError)
        True
    """


CARD = "README.md"
RECIPE = "recipe.toml"
_FURTHER_FILES = (CARD, RECIPE, REPORT, CONFUSION, HISTORY, CURVES)


def publish(
    source: PathLike,
    dest: PathLike,
    data: ImageManifest | PathLike,
    storage: str = "float16",
    name: str | None = None,
    notes: str = "",
    batch_size: int = 32,
    verbose: int = 1,
) -> dict[str, Any]:
    """Writes a run's best model as a compact preset with a model card.

    The model is measured twice on the validation split of `data`, as it was and as it is stored. Beside the preset,
    `dest` gets `README.md` (the card), `report.json` (every number of the card), for a classifier `confusion.png`, and
    where the model comes from a run `history.csv`, `curves.png` and a classifier's `recipe.toml`. These files have no
    checksums: they may be edited. All is written aside and renamed. A picture that cannot be drawn, or was not drawn in
    training, is left out with a warning.

    Args:
        source: Directory of a training run of a classifier or compressor, or a preset's directory or name.
        dest: Directory to write; an existing preset there is replaced.
        data: As `evaluate` or `evaluate_compressor` takes it.
        storage: "float32", "float16" or "int8", as in `keras_ci2p.presets.compact_weights`.
        name: Title of the card; None for the name of `dest`.
        notes: Markdown of your own for the card: limits, what the model is not good for.
        batch_size: Images at a time.
        verbose: As in `evaluate`.

    Returns:
        dict, the contents of `report.json`.

    Raises:
        PublishError: The stored model is not as good as the original; it was trained on images it would be measured on.
        FileExistsError: `dest` exists and is no preset.
        keras_ci2p.presets.PresetError: `source` is neither a run nor a whole preset with weights.
        DataError: Data that cannot be used, or that have other classes.
        ValueError: Unknown storage.

    Examples:
        >>> model = keras_ci2p.ViT((32, 32, 3), variant="tiny", num_layers=2, class_names=["bird", "cat", "dog"])
        >>> model.save_to_preset("model")
        >>> report = keras_ci2p.training.publish("model", "published", "photos", verbose=0)
        >>> report["storage"], report["model"]["class"]
        ('float16', 'ViT')
    """
    # Before the images are read.
    check_storage(storage)
    check_destination(dest)
    dest = user_path(dest)
    preset = open_preset(source)
    origin = preset.run or preset.directory
    record = read_record(origin)
    of_compressor = is_compressor(preset)
    write_model, write_card = (
        (_publish_compressor, compressor_card) if of_compressor else (_publish_classifier, classifier_card)
    )
    with atomic_directory(dest, stale={*known_files(dest), *_FURTHER_FILES}) as temporary:
        model, measured, original, about_data = write_model(
            preset, record, data, temporary, storage, batch_size, verbose
        )
        report = {
            "name": name or dest.resolve().name,
            "storage": storage,
            "bytes": _weight_bytes(temporary),
            "model": model,
            **measured,
            "original": {"storage": preset.storage, "bytes": _weight_bytes(preset.directory), **original},
            "data": about_data,
            "training": preset.metadata.get("training"),
            "run": record,
            **environment(),
        }
        if not of_compressor and report["confusion"] is not None:
            plot_confusion(temporary / CONFUSION, report)
        if record is not None:
            for file_name in (HISTORY, CURVES):
                if (origin / file_name).is_file():
                    shutil.copyfile(origin / file_name, temporary / file_name)
                else:
                    warnings.warn(f"{origin} has no {file_name}: the card goes without it.", stacklevel=2)
            recipe = recipe_of(record)
            if recipe is not None:
                write_text(temporary / RECIPE, recipe.to_toml())
        write_json(temporary / REPORT, report)
        pictures = {path.name for path in temporary.glob("*.png")}
        write_text(temporary / CARD, write_card(report, notes, pictures))
    return report


def _weight_bytes(directory):
    """Size of the weight files."""
    return sum(path.stat().st_size for path in directory.glob("*.weights.h5"))


def _about_data(data, images):
    """What a report says of data of either kind."""
    data = str(data)
    return {
        "name": data if data.startswith(PREFIX) else Path(data).resolve().name,
        "sha256": images.sha256,
        "split_by_contents": images.is_split_by_contents,
    }


# By what share of the images the numbers of right answers may differ, and by one image at least.
MAX_TOP1_DIFFERENCE = 0.005

# The last two are of the dual-scale model.
_SIZES = ("num_layers", "hidden_dim", "num_heads", "mlp_dim", "early_dim", "merge_at")


def _publish_classifier(preset, record, data, directory, storage, batch_size, verbose):
    """Writes a classifier compactly and measures it on the validation images of `data`, before and after.

    Returns:
        `(about the model, measurements, those of the original, about the data)`: dicts of plain values.
    """
    model = load_preset(preset)
    images = open_data(data)
    match_classes(model, images)
    _check_unseen(preset, images, data)
    options = {"split": "val", "batch_size": batch_size, "verbose": verbose}
    original = evaluate(model, images, **options)
    train = images.split("train")
    is_data_of_training = preset.metadata.get("training", {}).get("train_sha256") == train.sha256
    carried = preset.carried()
    if NAMES_FILE not in carried["files"] and is_data_of_training:
        # Of a run that was begun when presets knew no names.
        carried["files"][NAMES_FILE] = encode_names(images)
    model.save_to_preset(directory, **{**carried, "storage": storage})
    stored = load_preset(directory)
    measured = evaluate(stored, images, **options)
    train_counts = train.counts() if is_data_of_training else {}
    about_data = {
        **_about_data(data, images),
        "classes": [
            {"name": name, "train": train_counts.get(name), "val": count}
            for name, count in images.split("val").counts().items()
        ],
    }
    return _about_classifier(model), measured, _compare_classifiers(original, measured), about_data


def _check_unseen(preset, images, data):
    known, by_name = count_overlap(preset, images, "val")
    if known:
        by = f" ({by_name} are known by class and name alone)" if by_name else ""
        raise PublishError(
            f"{known} of the {len(images.split('val'))} validation images of {data} were trained on{by}: the figures "
            "would be too good. Give the data of the training, or images that are not in it; other images of the same "
            "names need new ones."
        )


def _compare_classifiers(original, stored):
    """What the report says of the original's measurements; PublishError where the stored model's are not alike."""
    difference = abs(_right_answers(original) - _right_answers(stored))
    allowed = max(1, math.floor(MAX_TOP1_DIFFERENCE * original["images"]))
    if difference > allowed:
        raise PublishError(
            f"Stored so compactly, the model has top-1 {stored['top1']:.2%} in place of {original['top1']:.2%}: "
            f"{difference} of {original['images']} images, of which at most {allowed} are allowed. Choose a larger "
            "storage."
        )
    return {"top1": original["top1"], "top5": original["top5"], "difference": difference, "allowed": allowed}


def _right_answers(measurements):
    return round(measurements["top1"] * measurements["images"])


def _about_classifier(model):
    compressor = getattr(model, "compressor", None)
    if compressor is not None:
        compressor = {**compressor_config(compressor), "frozen": model.freeze_compressor}
    return {
        "class": type(model).__name__,
        "image_shape": model.image_shape,
        "parameters": count_parameters(model),
        **{key: getattr(model.backbone, key) for key in _SIZES if hasattr(model.backbone, key)},
        "compressor": compressor,
    }


# Share of the RD loss by which it may differ.
MAX_RD_LOSS_DIFFERENCE = 0.01


def _publish_compressor(preset, record, data, directory, storage, batch_size, verbose):
    """Writes a compressor compactly and measures it on validation images of `data`, before and after.

    Returns:
        As `_publish_classifier`.
    """
    model = load_preset(preset)
    images = scan_images(data)
    config = CompressorTrainConfig.from_dict({"data": DATA, **(record["settings"] if record else {})})
    options = {"num_images": config.val_images, "size": config.val_size, "lmbda": config.lmbda, "metric": config.metric}
    options |= {"split": "val", "batch_size": batch_size, "verbose": verbose}
    original = evaluate_compressor(model, images, **options)
    model.save_to_preset(directory, **{**preset.carried(), "storage": storage})
    measured = evaluate_compressor(load_preset(directory), images, **options)
    about = {
        "class": type(model).__name__,
        "architecture": model.architecture,
        "quality": model.quality,
        "num_filters": model.num_filters,
        "latent_channels": model.latent_channels,
        "parameters": count_parameters(model),
        "origin": model.origin,
    }
    sizes = {name: len(images.split(name)) for name in ("train", "val")}
    return about, measured, _compare_compressors(original, measured), {**_about_data(data, images), **sizes}


def _compare_compressors(original, stored):
    difference = abs(stored["cost"] / original["cost"] - 1)
    # Written so that it refuses what is no number too.
    if not difference <= MAX_RD_LOSS_DIFFERENCE:
        raise PublishError(
            f"Stored so compactly, the compressor has the RD loss {stored['cost']:.4f} in place of "
            f"{original['cost']:.4f}; at most {MAX_RD_LOSS_DIFFERENCE:.0%} of difference is allowed. Choose a larger "
            "storage."
        )
    kept = {key: original[key] for key in ("psnr", "bpp", "cost")}
    return {**kept, "difference": difference, "allowed": MAX_RD_LOSS_DIFFERENCE}
