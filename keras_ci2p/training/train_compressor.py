"""A training run of a compressor: a directory from which it can be taken up again."""

from dataclasses import replace
from typing import Any

import keras

from keras_ci2p.backend import environment, make_deterministic, open_devices, set_random_seed
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data.sources import scan_images
from keras_ci2p.models.compressor import Compressor, compressor_channels
from keras_ci2p.models.rate_distortion import METRICS, rate_distortion_optimizer
from keras_ci2p.plots import warn_without_matplotlib
from keras_ci2p.presets import BEST
from keras_ci2p.training import evaluation
from keras_ci2p.training.callbacks import CompressorRecorder, InterruptCallback, MemoryCallback, tell_of_compilation
from keras_ci2p.training.configs import CompressorTrainConfig
from keras_ci2p.training.run_dir import (
    LAST,
    RUN_RECORD,
    Checkpoints,
    RunError,
    check_config,
    check_contents,
    check_same,
    previous_run,
    run_lock,
    warn_of_other_backend,
)
from keras_ci2p.utils import PathLike, clean_up, require, user_path, write_json


def train_compressor(
    settings: CompressorTrainConfig, run_dir: PathLike, resume: bool = False, verbose: int = 1
) -> tuple[Compressor, list[dict[str, Any]]]:
    """Trains a compressor as `settings` say and records the run.

    `run_dir` gets `best/` and `last/` (presets: the weights of the lowest cost on held-out images and the last),
    `report.json` and `reconstructions.png` of the best, `history.csv`, `curves.png`, `run.json` and `checkpoints/`.
    Whatever ends the process, `resume=True` goes on after the last whole epoch, as if nothing had happened.

    Args:
        settings: `CompressorTrainConfig`.
        run_dir: Directory of the run.
        resume: Whether to go on with the run in `run_dir`, else it must be new.
        verbose: As in `fit`.

    Returns:
        `(compressor, history)`: the best compressor, and a list of one dict per epoch of `steps_per_epoch` steps, the
        last of those that are left over.

    Raises:
        RunError: An existing directory without `resume`, one of other settings or data, or one in use by another
            process; a loss that is not finite.
        DataError: Data that cannot be used.
        ValueError: A compressor that cannot be trained; another architecture than that of `init`, or a
            quality of other channels.

    Examples:
        >>> settings = keras_ci2p.training.CompressorTrainConfig(
        ...     data="photos", quality=1, steps=2, steps_per_epoch=2, crop_size=32, batch_size=2, val_size=32
        ... )
        >>> compressor, history = keras_ci2p.training.train_compressor(settings, "run", verbose=0)
        >>> compressor.quality, len(history)
        (1, 1)
    """
    run_dir = user_path(run_dir)
    # Before hours of work, not after the first epoch.
    require("grain", extra="train")
    warn_without_matplotlib()
    open_devices()
    previous = previous_run(run_dir, resume)
    trained = None if settings.init is None else read_compressor(settings.init)
    if trained is not None:
        settings = _fit_to_init(settings, trained)
    check_config(settings, _with_init(previous, trained))
    with run_lock(run_dir):
        if previous_run(run_dir, resume) != previous:
            raise RunError(f"Another process has just been at work in {run_dir}.")
        return _train(settings, trained, run_dir, previous, verbose)


def _fit_to_init(settings, trained):
    """The settings with the architecture, and where they have none the quality, of the compressor to begin with.

    Raises:
        ValueError: Another architecture, or a quality of other channels.
    """
    if not isinstance(trained, Compressor):
        raise ValueError(f"A compressor to train on has a synthesis transform. Received: init={settings.init!r}")
    if settings.architecture not in (None, trained.architecture):
        raise ValueError(
            f"init={settings.init!r} has the architecture {trained.architecture!r}, which training keeps. Leave "
            f"architecture out. Received: architecture={settings.architecture!r}"
        )
    if settings.quality not in (None, trained.quality):
        try:
            compressor_channels(trained.architecture, settings.quality, (trained.num_filters, trained.latent_channels))
        except ValueError as error:
            raise ValueError(
                f"init={settings.init!r} cannot become another quality: {error}. Choose one of the same channels, or "
                "set lmbda for another weight of the error."
            ) from error
    return replace(settings, architecture=trained.architecture, quality=settings.quality or trained.quality)


def _with_init(previous, trained):
    """The record of a run, or None; that of 0.1.0, which knew no `metric`, says what did not count beside `init`."""
    if previous is None or trained is None or "metric" in previous.get("settings", {}):
        return previous
    counted = {"metric": METRICS[0], "architecture": trained.architecture, "quality": trained.quality}
    return {**previous, "settings": {**previous.get("settings", {}), **counted}}


def _train(settings, trained, run_dir, previous, verbose):
    if settings.deterministic:
        make_deterministic()
    set_random_seed(settings.seed)
    compressor = _build_compressor(settings, trained)
    images = scan_images(settings.data)
    data = {"sha256": images.sha256, "pictures": len(images)}
    check_same("data", data, previous)
    contents = {} if trained is None else {"init": trained.analysis.weights_hash()}
    check_contents(settings, previous, contents)
    data.update(contents)

    crops = evaluation.training_crops(
        images, settings.crop_size, settings.batch_size, settings.seed, settings.num_workers
    )
    val_crops = evaluation.middle_crops(
        evaluation.held_out(images, "val", settings.val_images), settings.val_size, settings.batch_size
    )
    clean_up(run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    record = checkpoints.restore(compressor) or {"history": [], "best": None}
    if previous is None:
        write_json(run_dir / RUN_RECORD, {"settings": settings.to_dict(), "data": data, **environment()})
    else:
        warn_of_other_backend(previous)

    recorder = CompressorRecorder(run_dir, record, checkpoints, settings)
    interrupt = InterruptCallback()
    if verbose:
        tell_of_compilation()
    whole, rest = divmod(settings.steps, settings.steps_per_epoch)
    # `fit` knows epochs of one length only, so the steps that are left over are one of their own.
    for epochs, steps in ((whole, settings.steps_per_epoch), (whole + 1, rest)):
        epochs_done = len(record["history"])
        if epochs_done >= epochs or not steps:
            continue
        with interrupt.watching():
            compressor.fit(
                crops.repeat_from_batch(epochs_done * settings.steps_per_epoch),
                steps_per_epoch=steps,
                validation_data=val_crops.repeat(),
                validation_steps=val_crops.steps_per_epoch,
                initial_epoch=epochs_done,
                epochs=epochs,
                callbacks=[recorder, MemoryCallback(), interrupt],
                # The dataset shuffles by itself.
                shuffle=False,
                verbose=verbose,
            )
    compressor.save_to_preset(run_dir / LAST, metadata={"training": record["history"][-1]})
    best = Compressor.from_preset(run_dir / BEST)
    report = evaluation.evaluate_compressor(
        best,
        images,
        num_images=settings.val_images,
        size=settings.val_size,
        lmbda=compressor.lmbda,
        metric=compressor.metric,
    )
    write_json(run_dir / "report.json", {**report, "step": record["best"]["step"], **environment()})
    evaluation.show_reconstructions(run_dir / "reconstructions.png", best, images, size=settings.val_size)
    if verbose:
        print(
            f"{report['psnr']:.2f} dB at {report['bpp']:.3f} bits per pixel, cost {report['cost']:.3f}, on "
            f"{report['images']} held-out pictures. Compressor: {run_dir / BEST}"
        )
    return best, record["history"]


def _build_compressor(settings, trained):
    """The compressor to train, compiled; with the weights of the `Compressor` to begin with, or None."""
    if trained is None:
        compressor = Compressor(settings.architecture, settings.quality, dtype=settings.dtype)
    else:
        compressor = Compressor.from_config(
            {**trained.get_config(), "quality": settings.quality, "dtype": settings.dtype, "origin": None}
        )
        for ours, theirs in zip(compressor.weights, trained.weights, strict=True):
            ours.assign(theirs)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.steps)
    optimizer = rate_distortion_optimizer(schedule, settings.auxiliary_learning_rate, settings.clip_grad_norm)
    compressor.compile(optimizer, lmbda=settings.lmbda, metric=settings.metric)
    return compressor
