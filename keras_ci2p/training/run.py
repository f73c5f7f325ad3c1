"""A training run: a directory from which it can be taken up again."""

import json
import math
import time
import warnings
from pathlib import Path

import keras

from keras_ci2p import files
from keras_ci2p.convert import from_compressai
from keras_ci2p.data import image_folder, scan_folder
from keras_ci2p.data.seen import SEEN_FILE, encode
from keras_ci2p.extras import require
from keras_ci2p.models import CLASSIFIERS, Compressor
from keras_ci2p.training.backend import environment, make_deterministic
from keras_ci2p.training.checkpoint import Checkpoints
from keras_ci2p.training.history import plot_curves, write_csv
from keras_ci2p.training.interrupt import RaiseInterrupt
from keras_ci2p.training.optimizer import make_optimizer

CONFIG = "config.json"
BEST = "best"
LAST = "last"


class RunError(ValueError):
    """A run that cannot be begun or taken up as asked."""


def train(settings, run_dir, resume=False, verbose=1):
    """Trains a model as `settings` say and records the run.

    `run_dir` gets `best/` and `last/` (presets: the weights of the best validation top-1 and the last), `history.csv`,
    `curves.png`, `config.json` (settings, data, versions) and `checkpoints/`. Whatever ends the process, `resume=True`
    goes on after the last whole epoch, as if nothing had happened.

    Args:
        settings: `TrainSettings`.
        run_dir: Directory of the run.
        resume: Whether to go on with the run in `run_dir`, else it must be new.
        verbose: As in `fit`.

    Returns:
        `(model, history)`: the model with its last weights, and a list of one dict per epoch.

    Raises:
        RunError: An existing directory without `resume`, or one of other settings or data; a loss that is not finite.
        DataError: Data that cannot be used.
        ValueError: An image size or variant that the model does not take.
    """
    run_dir = Path(run_dir)
    # Before hours of work, not after the first epoch.
    require("grain", extra="train")
    require("matplotlib.figure", extra="train")
    previous = _previous_run(run_dir, resume)
    _check_same("settings", settings.as_dict(), previous)

    if settings.deterministic:
        make_deterministic()
    keras.utils.set_random_seed(settings.seed)
    # The model first: a wrong size or variant should not wait for the photos.
    model_class = CLASSIFIERS[settings.model]
    compressor = _read_compressor(settings.compressor)
    shape_check = _make_model(model_class, settings, compressor, num_classes=2)
    manifest = scan_folder(settings.data)
    data = {"sha256": manifest.sha256, "photos": manifest.counts()}
    _check_same("data", data, previous)

    common = {
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "size_multiple": shape_check.size_multiple,
    }
    train_data = image_folder(manifest, split="train", seed=settings.seed, **common)
    val_data = image_folder(manifest, split="val", **common)
    keras.utils.set_random_seed(settings.seed)
    model = _make_model(
        model_class,
        settings,
        compressor,
        num_classes=len(manifest.class_names),
        class_names=manifest.class_names,
    )
    model.compile(
        optimizer=make_optimizer(
            settings.learning_rate,
            settings.weight_decay,
            train_data.steps_per_epoch,
            settings.epochs,
            settings.warmup_epochs,
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing),
        metrics=[keras.metrics.CategoricalAccuracy(name="top1")],
    )

    run_dir.mkdir(parents=True, exist_ok=True)
    files.clean_up(run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    record = checkpoints.restore(model) or {"history": [], "best": None}
    if previous is None:
        here = environment()
        files.write_json(run_dir / CONFIG, {"settings": settings.as_dict(), "data": data, **here})
    elif previous.get("backend") != keras.backend.backend():
        warnings.warn(
            f"This run was begun on {previous.get('backend')} and goes on with {keras.backend.backend()}: "
            "the result will differ from one made on one backend.",
            stacklevel=2,
        )
    recorder = _Recorder(run_dir, checkpoints, record, train_data.manifest, settings)
    epochs_done = len(record["history"])
    if epochs_done < settings.epochs:
        interrupt = RaiseInterrupt()
        with interrupt.watching():
            model.fit(
                train_data.repeated(epochs_done),
                steps_per_epoch=train_data.steps_per_epoch,
                validation_data=val_data.repeated(),
                validation_steps=val_data.steps_per_epoch,
                initial_epoch=epochs_done,
                epochs=settings.epochs,
                callbacks=[recorder, interrupt],
                # The dataset shuffles by itself.
                shuffle=False,
                verbose=verbose,
            )
    recorder.write_preset(model, LAST)
    return model, record["history"]


def _read_compressor(source):
    if source is None:
        return None
    return from_compressai(source) if Path(source).is_file() else Compressor.from_preset(source)


def _make_model(model_class, settings, compressor, **kwargs):
    if settings.model == "ci2p":
        kwargs.update(compressor=compressor, freeze_compressor=settings.freeze_compressor)
    return model_class(
        (settings.image_size, settings.image_size, 3),
        variant=settings.variant,
        drop_path_rate=settings.drop_path_rate,
        dtype=settings.dtype,
        **kwargs,
    )


def _previous_run(run_dir, resume):
    """The stored configuration of the run to take up, None for a new one."""
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


def _check_same(what, now, previous):
    if previous is None:
        return
    # As JSON stores them.
    now, then = json.loads(json.dumps(now)), previous.get(what, {})
    different = [f"{key}: {then.get(key)!r}, now {now.get(key)!r}" for key in now if then.get(key) != now[key]]
    if different:
        raise RunError(f"The run was begun with other {what}, so it cannot be resumed: {'; '.join(different)}.")


class _Recorder(keras.callbacks.Callback):
    """Writes what a run leaves, after each epoch; the checkpoint comes last, since it makes the epoch count."""

    def __init__(self, run_dir, checkpoints, record, train_manifest, settings):
        super().__init__()
        self._run_dir = run_dir
        self._checkpoints = checkpoints
        self._record = record
        self._train_manifest = train_manifest
        self._title = f"{settings.model} {settings.variant}, {settings.image_size} px"

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if not all(math.isfinite(value) for value in logs.values()):
            raise RunError(
                f"The loss is no longer finite in epoch {epoch + 1}. The weights of the last good epoch are kept in "
                f"{self._run_dir}; begin a new run with a lower learning rate."
            )
        row = {"epoch": epoch + 1, **{key: float(logs[key]) for key in ("loss", "top1", "val_loss", "val_top1")}}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.perf_counter() - self._began, 1)
        self._record["history"].append(row)
        best = self._record["best"]
        if best is None or row["val_top1"] > best["val_top1"]:
            self._record["best"] = {"epoch": epoch + 1, "val_top1": row["val_top1"]}
            self.write_preset(self.model, BEST)
        write_csv(self._run_dir / "history.csv", self._record["history"])
        plot_curves(self._run_dir / "curves.png", self._record["history"], self._title)
        self._checkpoints.save(epoch + 1, self.model, self._record)

    def write_preset(self, model, name):
        row = self._record["history"][-1]
        training = {
            "epoch": row["epoch"],
            "val_top1": row["val_top1"],
            "train_photos": len(self._train_manifest),
            "train_sha256": self._train_manifest.sha256,
        }
        model.save_to_preset(
            self._run_dir / name,
            metadata={"training": training},
            files={SEEN_FILE: encode(self._train_manifest.digests)},
        )
