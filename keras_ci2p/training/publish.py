"""What can be published."""

import math
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from keras_ci2p.backend import environment
from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import carried_files, count_overlap, encode_names
from keras_ci2p.data.sources import open_data, scan_images
from keras_ci2p.data.tfds import PREFIX
from keras_ci2p.layers.embedding import compressor_config
from keras_ci2p.models.loading import is_compressor, open_preset_model
from keras_ci2p.plots import plot_confusion
from keras_ci2p.presets import check_writable, open_preset, preset_of
from keras_ci2p.training.evaluation import check_classes, evaluate, evaluate_compressor
from keras_ci2p.training.model_card import classifier_card, compressor_card
from keras_ci2p.training.run_dir import CURVES, HISTORY, REPORT, read_record, recipe_of
from keras_ci2p.utils import atomic_directory, require, write_json, write_text
from keras_ci2p.weight_storage import check_storage


class PublishError(ValueError):
    """A model that is not to be published as asked."""


class Subject(ABC):
    """A model with the data that it is measured on; a subclass for each kind of model.

    Args:
        preset: `Preset` of the model.
        record: What `read_record` tells of its training, or None.
        data: What it is measured on.
        batch_size, verbose: As in `evaluate`.

    Attributes:
        model: The preset's model.

    Raises:
        DataError: Data that cannot be used for it.
        PublishError: Data that would tell too much good of it.
    """

    def __init__(self, preset, record, data, batch_size, verbose):
        self.preset = preset
        self.record = record
        self.data = str(data)
        self.batch_size = batch_size
        self.verbose = verbose
        self.model, _ = open_preset_model(preset)

    @property
    def data_name(self):
        """ "tfds:NAME", or the last part of a folder's path."""
        return self.data if self.data.startswith(PREFIX) else Path(self.data).resolve().name

    @abstractmethod
    def write(self, directory, storage):
        """Writes the model as a preset with what its own preset holds besides."""

    @abstractmethod
    def measure(self, model):
        """The measurements of a model, a dict of plain values."""

    @abstractmethod
    def compare(self, original, stored):
        """What the report says of the original's measurements; PublishError where the stored model's are not alike."""

    @abstractmethod
    def describe(self):
        """Architecture and sizes, a dict of plain values."""

    @abstractmethod
    def describe_data(self):
        """The data, a dict of plain values."""

    @abstractmethod
    def draw(self, directory, report):
        """Writes what pictures the card shows besides the curves."""

    @abstractmethod
    def card(self, report, notes):
        """The model card, Markdown."""


CARD = "README.md"
RECIPE = "recipe.toml"


def publish(source, dest, data, storage="float16", name=None, notes="", batch_size=32, verbose=1):
    """Writes a run's best model as a compact preset with a model card.

    The model is measured twice on the validation split of `data`, as it was and as it is stored. Beside the preset,
    `dest` gets `README.md` (the card), `report.json` (every number of the card), for a classifier `confusion.png`, and
    where the model comes from a run `history.csv`, `curves.png` and a classifier's `recipe.toml`. These files have no
    checksums: they may be edited. All is written aside and renamed.

    Args:
        source: Directory of a training run of a classifier or compressor, or a preset's directory or name.
        dest: Directory to write; an existing preset there is replaced.
        data: As `evaluate` or `evaluate_compressor` takes it.
        storage: "float32", "float16" or "int8", as in `keras_ci2p.presets.compact_weights`.
        name: Title of the card; None for the name of `dest`.
        notes: Markdown of your own for the card: limits, what the model is not good for.
        batch_size: Photos at a time.
        verbose: As in `evaluate`.

    Returns:
        dict, the contents of `report.json`.

    Raises:
        PublishError: The stored model is not as good as the original; it was trained on photos it would be measured on.
        FileExistsError: `dest` exists and is no preset.
        keras_ci2p.presets.PresetError: `source` is neither a run nor a whole preset with weights.
        DataError: Data that cannot be used, or that have other classes.
        ValueError: Unknown storage.
    """
    # Before the photos are read.
    require("matplotlib.figure", extra="train")
    check_storage(storage)
    check_writable(dest)
    dest = Path(dest)
    preset_name = preset_of(source)
    preset = open_preset(preset_name)
    origin = preset.directory if preset_name == source else Path(source)
    record = read_record(origin)
    make_subject = CompressorSubject if is_compressor(preset) else ClassifierSubject
    subject = make_subject(preset, record, data, batch_size, verbose)
    original = subject.measure(subject.model)
    with atomic_directory(dest) as temporary:
        subject.write(temporary, storage)
        stored = open_preset(temporary)
        measured = subject.measure(open_preset_model(stored)[0])
        comparison = subject.compare(original, measured)
        report = {
            "name": name or dest.resolve().name,
            "storage": storage,
            "bytes": _weight_bytes(stored),
            "model": subject.describe(),
            **measured,
            "original": {"storage": preset.storage, "bytes": _weight_bytes(preset), **comparison},
            "data": subject.describe_data(),
            "training": preset.metadata.get("training"),
            "run": record,
            **environment(),
        }
        subject.draw(temporary, report)
        if record is not None:
            for file_name in (HISTORY, CURVES):
                shutil.copyfile(origin / file_name, temporary / file_name)
            recipe = recipe_of(record)
            if recipe is not None:
                write_text(temporary / RECIPE, recipe.to_toml())
        write_json(temporary / REPORT, report)
        write_text(temporary / CARD, subject.card(report, notes))
    return report


def _weight_bytes(preset):
    """Size of the weight files."""
    return sum(path.stat().st_size for path in preset.directory.glob("*.weights.h5"))


# By what share of the photos the numbers of right answers may differ, and by one photo at least.
ALLOWED_TOP1_DIFFERENCE = 0.005

# The last two are of the dual-scale model.
_SIZES = ("num_layers", "hidden_dim", "num_heads", "mlp_dim", "early_dim", "merge_at")


class ClassifierSubject(Subject):
    """A classifier, measured on the validation photos of `data`, as `evaluate` takes it."""

    def __init__(self, preset, record, data, batch_size, verbose):
        super().__init__(preset, record, data, batch_size, verbose)
        self._photos = open_data(data)
        check_classes(self.model, self._photos)
        self._check_unseen()

    def _check_unseen(self):
        count = len(self._photos.split("val"))
        known, by_name = count_overlap(self.preset, self._photos, "val")
        if known:
            by = f" ({by_name} are known by class and name alone)" if by_name else ""
            raise PublishError(
                f"{known} of the {count} validation photos of {self.data} were trained on{by}: the figures would be "
                "too good. Give the data of the training, or photos that are not in it; other photos of the same names "
                "need new ones."
            )

    def write(self, directory, storage):
        files = carried_files(self.preset)
        if NAMES_FILE not in files and self._is_data_of_training():
            # Of a run that was begun when presets knew no names.
            files[NAMES_FILE] = encode_names(self._photos)
        self.model.save_to_preset(directory, metadata=self.preset.further_metadata(), files=files, storage=storage)

    def measure(self, model):
        return evaluate(model, self._photos, batch_size=self.batch_size, verbose=self.verbose)

    def compare(self, original, stored):
        difference = abs(_right_answers(original) - _right_answers(stored))
        allowed = max(1, math.floor(ALLOWED_TOP1_DIFFERENCE * original["images"]))
        if difference > allowed:
            raise PublishError(
                f"Stored so compactly, the model has top-1 {stored['top1']:.2%} in place of {original['top1']:.2%}: "
                f"{difference} of {original['images']} photos, of which at most {allowed} are allowed. Choose a larger "
                "storage."
            )
        return {"top1": original["top1"], "top5": original["top5"], "difference": difference, "allowed": allowed}

    def describe(self):
        backbone = self.model.backbone
        compressor = getattr(self.model, "compressor", None)
        if compressor is not None:
            compressor = {**compressor_config(compressor), "frozen": self.model.freeze_compressor}
        return {
            "class": type(self.model).__name__,
            "image_shape": self.model.image_shape,
            "parameters": _parameters(self.model),
            **{key: getattr(backbone, key) for key in _SIZES if hasattr(backbone, key)},
            "compressor": compressor,
        }

    def describe_data(self):
        val = self._photos.split("val")
        counts = self._photos.split("train").counts() if self._is_data_of_training() else {}
        return {
            "name": self.data_name,
            "sha256": self._photos.sha256,
            "split_by_contents": self._photos.is_split_by_contents,
            "classes": [
                {"name": name, "train": counts.get(name), "val": count} for name, count in val.counts().items()
            ],
        }

    def _is_data_of_training(self):
        trained_on = self.preset.metadata.get("training", {}).get("train_sha256")
        return trained_on == self._photos.split("train").sha256

    def draw(self, directory, report):
        plot_confusion(directory / "confusion.png", report)

    def card(self, report, notes):
        return classifier_card(report, notes)


def _right_answers(measurements):
    return int(np.trace(measurements["confusion"]))


def _parameters(model):
    """Number of weights without the running statistics of batch normalisation."""
    return sum(math.prod(weight.shape) for weight in model.weights if not weight.name.startswith("moving_"))


# Share of the cost by which it may differ.
ALLOWED_RATE_DIFFERENCE = 0.01


class CompressorSubject(Subject):
    """A compressor, measured on held-out pictures of `data`, as `evaluate_compressor` takes it."""

    def __init__(self, preset, record, data, batch_size, verbose):
        super().__init__(preset, record, data, batch_size, verbose)
        settings = record["settings"] if record else {}
        self._options = {
            key: settings[name]
            for key, name in (("pictures", "val_pictures"), ("size", "val_size"), ("lmbda", "lmbda"))
            if name in settings
        }
        self._pictures = scan_images(data)

    def write(self, directory, storage):
        self.model.save_to_preset(directory, metadata=self.preset.further_metadata(), storage=storage)

    def measure(self, model):
        return evaluate_compressor(
            model, self._pictures, **self._options, batch_size=self.batch_size, verbose=self.verbose
        )

    def compare(self, original, stored):
        difference = abs(stored["cost"] / original["cost"] - 1)
        if not difference <= ALLOWED_RATE_DIFFERENCE:
            raise PublishError(
                f"Stored so compactly, the compressor has the cost {stored['cost']:.4f} in place of "
                f"{original['cost']:.4f}; at most {ALLOWED_RATE_DIFFERENCE:.0%} of difference is allowed. Choose a "
                "larger storage."
            )
        kept = {key: original[key] for key in ("psnr", "bpp", "cost")}
        return {**kept, "difference": difference, "allowed": ALLOWED_RATE_DIFFERENCE}

    def describe(self):
        model = self.model
        return {
            "class": type(model).__name__,
            "architecture": model.architecture,
            "quality": model.quality,
            "num_filters": model.num_filters,
            "latent_channels": model.latent_channels,
            "parameters": model.count_params(),
            "origin": model.source,
        }

    def describe_data(self):
        splits = {name: len(self._pictures.split(name)) for name in ("train", "val")}
        by_contents = self._pictures.is_split_by_contents
        return {"name": self.data_name, "sha256": self._pictures.sha256, "split_by_contents": by_contents, **splits}

    def draw(self, directory, report):
        """None besides the curves."""

    def card(self, report, notes):
        return compressor_card(report, notes)
