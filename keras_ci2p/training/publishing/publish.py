"""Writes a preset with its model card."""

import shutil
from pathlib import Path

from keras_ci2p import files
from keras_ci2p.extras import require
from keras_ci2p.presets import check_writable, open_preset
from keras_ci2p.presets.storage import check_storage
from keras_ci2p.training.backend import environment
from keras_ci2p.training.publishing.classifier import ClassifierSubject
from keras_ci2p.training.publishing.compressor import CompressorSubject
from keras_ci2p.training.publishing.run_record import CURVES, HISTORY, REPORT, read_record, recipe_of
from keras_ci2p.training.run_directory import preset_of

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
    is_compressor = preset.registered_name() == CompressorSubject.registered_name
    make_subject = CompressorSubject if is_compressor else ClassifierSubject
    subject = make_subject(preset, record, data, batch_size, verbose)
    original = subject.measure(subject.model)
    with files.atomic_directory(dest) as temporary:
        subject.write(temporary, storage)
        stored = open_preset(temporary)
        measured = subject.measure(subject.load(stored))
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
                files.write_text(temporary / RECIPE, recipe.to_toml())
        files.write_json(temporary / REPORT, report)
        files.write_text(temporary / CARD, subject.card(report, notes))
    return report


def _weight_bytes(preset):
    """Size of the weight files."""
    return sum(path.stat().st_size for path in preset.directory.glob("*.weights.h5"))
