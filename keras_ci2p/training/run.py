"""A training run: a directory from which it can be taken up again."""

import time
import warnings
from pathlib import Path

import keras

from keras_ci2p import files
from keras_ci2p.data import open_data
from keras_ci2p.data.folder import summarize
from keras_ci2p.data.latent_cache import PROJECTION
from keras_ci2p.extras import require
from keras_ci2p.training.averaging import AveragedWeights
from keras_ci2p.training.backend import environment, make_deterministic, set_matmul_precision
from keras_ci2p.training.budget import as_begun, within_budget
from keras_ci2p.training.checkpoint import Checkpoints
from keras_ci2p.training.devices import open_devices
from keras_ci2p.training.inputs import find_teacher, make_inputs
from keras_ci2p.training.interrupt import RaiseInterrupt
from keras_ci2p.training.loss import SoftTargetCrossentropy, balanced_weights
from keras_ci2p.training.model import ModelParts
from keras_ci2p.training.optimizer import make_optimizer
from keras_ci2p.training.recipe import write_recipe
from keras_ci2p.training.recorder import BEST, LAST, Recorder, RunError
from keras_ci2p.training.run_directory import CONFIG, check_same, previous_run
from keras_ci2p.training.settings import FREE_TO_CHANGE, TrainSettings

RECIPE = "recipe.toml"


def train(settings, run_dir, resume=False, verbose=1):
    """Trains a model as `settings` say and records the run.

    `run_dir` gets `best/` and `last/` (presets: the weights of the best validation top-1 and the last), `history.csv`,
    `curves.png`, `config.json` (settings, data, versions), `recipe.toml` and `checkpoints/`. Whatever ends the process,
    `resume=True` goes on after the last whole epoch, as if nothing had happened.

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
    began = time.perf_counter()
    run_dir = Path(run_dir)
    # Before hours of work, not after the first epoch.
    require("grain", extra="train")
    require("matplotlib.figure", extra="train")
    if settings.tensorboard:
        require("tensorboardX", extra="tensorboard")
    previous = previous_run(run_dir, resume)
    if settings.minutes is not None and previous is not None:
        settings = as_begun(settings, previous)
    check_same("settings", _lasting(settings), previous, _lasting(TrainSettings(settings.data)))
    if settings.deterministic:
        make_deterministic()
    if settings.matmul_precision is not None:
        set_matmul_precision(settings.matmul_precision)
    devices = open_devices(settings.devices)
    devices.check_batch_size(settings.recipe.batch_size)
    if settings.augment == "device" and not devices.keep_batches_whole:
        raise ValueError(
            "augment='device' does not go with several devices of TensorFlow, which take apart what is drawn for a "
            "whole batch. Augment on the host."
        )
    with devices.scope():
        return _train(settings, run_dir, previous, devices, verbose if devices.is_main else 0, began)


def _train(settings, run_dir, previous, devices, verbose, began):
    from keras_ci2p.training.throughput import TimedDataset

    # The model first: a wrong size or variant should not wait for the photos.
    parts = ModelParts(settings)
    size_multiple = parts.make(("a", "b")).size_multiple
    photos = open_data(settings.data) if parts.cache is None else parts.cache
    if verbose:
        print(summarize(photos), flush=True)
    data = {"sha256": photos.sha256, "photos": photos.counts()}
    if parts.cache is not None:
        data.update(latents=parts.cache.manifest["settings"], compressor=parts.cache.fingerprint)
    check_same("data", data, previous)
    targets, teacher = find_teacher(settings, photos, size_multiple, run_dir, previous, verbose)
    if teacher is not None:
        data["teacher"] = _in_short(teacher)
    if parts.cache is not None:
        # More of them may have been made since.
        data["views"] = parts.cache.views("train")
        if verbose and previous is not None and previous["data"].get("views", data["views"]) != data["views"]:
            print(f"The cache has {data['views']} views of each photo by now, all of which are used.", flush=True)
    # Until here nothing is written, so that all processes have seen the same directory.
    devices.agree("settings or data", [_lasting(settings), data])
    class_weights = _class_weights(settings.class_weights, photos)

    train_data, val_data = make_inputs(settings, photos, size_multiple, devices, targets, teacher)

    def make_learner(recipe):
        """`(classifier, compiled model to fit)`, each time the same."""
        keras.utils.set_random_seed(settings.seed)
        model = parts.make(photos.class_names)
        learner = parts.learner(model, teacher, recipe)
        learner.compile(
            optimizer=make_optimizer(recipe, train_data.steps_per_epoch),
            loss=SoftTargetCrossentropy(recipe.label_smoothing, class_weights),
            # Weighted, since several devices fill up the last batch of the validation with examples of weight 0.
            weighted_metrics=[
                keras.metrics.CategoricalAccuracy(name="top1"),
                keras.metrics.TopKCategoricalAccuracy(min(5, model.num_classes), name="top5"),
            ],
        )
        return model, learner

    if settings.minutes is not None and previous is None:
        settings = within_budget(settings, began, make_learner, train_data, val_data, devices, run_dir, verbose)
    recipe = settings.recipe
    model, learner = make_learner(recipe)
    if devices.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        files.clean_up(run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    record = checkpoints.restore(learner) or {"history": [], "best": None}
    devices.agree("the checkpoint", record)
    devices.prepare(learner)
    if previous is None:
        if devices.is_main:
            here = {**environment(), "devices": devices.describe()}
            if targets is not None:
                files.write_bytes(run_dir / PROJECTION, targets.projection.to_bytes())
            files.write_json(run_dir / CONFIG, {"settings": settings.as_dict(), "data": data, **here})
            write_recipe(run_dir / RECIPE, recipe)
    elif previous.get("backend") != keras.backend.backend():
        warnings.warn(
            f"This run was begun on {previous.get('backend')} and goes on with {keras.backend.backend()}: "
            "the result will differ from one made on one backend.",
            stacklevel=3,
        )
    averaging = AveragedWeights() if recipe.ema else None
    epochs_done = len(record["history"])
    timed = TimedDataset(train_data.repeated(epochs_done))
    recorder = Recorder(
        run_dir,
        model,
        record,
        checkpoints if devices.is_main else None,
        timed,
        train_data.manifest,
        photos,
        averaging,
        settings,
        reduce_logs=devices.mean,
        verbose=verbose,
    )
    if epochs_done < recipe.epochs and not recorder.patience_is_over:
        interrupt = RaiseInterrupt()
        with interrupt.watching():
            learner.fit(
                timed,
                steps_per_epoch=train_data.steps_per_epoch,
                validation_data=devices.validation(val_data.repeated(), len(val_data.manifest)),
                validation_steps=val_data.steps_per_epoch,
                initial_epoch=epochs_done,
                epochs=recipe.epochs,
                callbacks=[*([averaging] if averaging else []), recorder, interrupt],
                # The dataset shuffles by itself.
                shuffle=False,
                verbose=verbose,
            )
    elif averaging:
        # As `fit` does at its end.
        learner.optimizer.finalize_variable_values(learner.trainable_variables)
    recorder.write_preset(LAST)
    if verbose:
        best = max(record["history"], key=lambda row: row["val_top1"])
        print(f"Best validation top-1: {best['val_top1']:.2%} in epoch {best['epoch']}. Model: {run_dir / BEST}")
    return model, record["history"]


def _class_weights(wanted, photos):
    """One weight for each class, or None."""
    if wanted is None:
        return None
    if wanted == "balanced":
        return balanced_weights(list(photos.split("train").counts().values()))
    unknown = sorted(set(wanted) - set(photos.class_names))
    if unknown:
        raise RunError(
            f"Class weights are given for {', '.join(unknown)}, which {photos.root} does not have. It has: "
            f"{', '.join(photos.class_names)}"
        )
    return [float(wanted.get(name, 1)) for name in photos.class_names]


def _lasting(settings):
    return {key: value for key, value in settings.as_dict().items() if key not in FREE_TO_CHANGE}


def _in_short(teacher):
    """What a run's record says of its teacher."""
    features = [{key: value for key, value in row.items() if key != "steps"} for row in teacher["features"]]
    return {**teacher, "features": features}
