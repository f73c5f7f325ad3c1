"""Compares one model on several backends of Keras: results, speed, memory."""

import importlib.util
import itertools
import json
import statistics
import tempfile
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p.backend import (
    arithmetic,
    environment,
    keep_freed_memory,
    peak_device_memory,
    peak_memory,
    run_in_process,
    set_random_seed,
)
from keras_ci2p.data.loader import image_folder
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.sources import open_data
from keras_ci2p.flops import count_macs, count_parameters
from keras_ci2p.layers.embedding import PATCH_SIZE
from keras_ci2p.models.backbone import CompressorMixin
from keras_ci2p.models.ci2p_vit import CLASSIFIERS
from keras_ci2p.names import renamed_names
from keras_ci2p.plots import comparison_title, peak_bytes, plot_comparison
from keras_ci2p.training.configs import CompareConfig
from keras_ci2p.training.optim import FusedAdamW, SoftTargetCrossentropy
from keras_ci2p.utils import PathLike, write_json

REPORT = "comparison.json"
FIGURE = "comparison.png"
# Seconds for one backend: hours, since batches, steps and machines differ; but a process that hangs must end.
TIMEOUT = 6 * 3600


def compare(settings: CompareConfig, out: PathLike, verbose: int = 1) -> dict[str, Any]:
    """Predicts and trains with the same weights and images on each backend, in a process for each.

    What a backend does by chance is left out: stochastic depth is off, and images are augmented before. `out` gets
    `comparison.json` (the result) and `comparison.png`; nothing where no backend works.

    Args:
        settings: `CompareConfig`.
        out: Directory.
        verbose: 0 for no progress.

    Returns:
        dict of `settings`, `parameters`, `training_macs` (multiply-accumulates of a step for one image), `reference`
        (the first backend that worked, None if none did) and `backends`. The last is a dict by backend: of one that
        failed, `error`; else `logits` of held-out images, `losses` and `seconds` of each step, `first_step` (seconds,
        with compilation), `step` and `images_per_second` (`median`, `least` and `most` of the other steps), `memory`
        (bytes: `imported`, before there was a model, `peak`, and on a GPU `device_peak`), the largest differences to
        the reference, `logits_difference` and `losses_difference`, versions, device, threads and precision.

    Raises:
        DataError: Data that cannot be used.
        ValueError: A variant or size that the model does not have.
        ImportError: grain is not installed, which `data` needs.

    Examples:
        >>> settings = keras_ci2p.compare.CompareConfig(backends=("torch", "jax"), variant="tiny")
        >>> report = keras_ci2p.compare.compare(settings, "comparison")  # doctest: +SKIP
        >>> report["backends"]["jax"]["logits_difference"] < 1e-4  # doctest: +SKIP
        True
    """
    with tempfile.TemporaryDirectory(prefix="keras_ci2p-") as name:
        directory = Path(name)
        counts = _prepare(settings, directory)
        backends = {}
        for backend in settings.backends:
            if verbose:
                print(f"{backend} ...", flush=True)
            backends[backend] = _measure(backend, directory)
    report = {"settings": settings.to_dict(), **counts, **_compared(backends, settings.batch_size)}
    if report["reference"] is not None:
        write_json(Path(out) / REPORT, report)
        plot_comparison(Path(out) / FIGURE, report)
    return report


def _prepare(settings, directory):
    """Writes what the processes read; what is the same on all backends: parameters and multiplications."""
    pictures = make_images(settings)
    set_random_seed(settings.seed)
    size = settings.image_size
    model = CLASSIFIERS[settings.model](
        (size, size, 3), num_classes=pictures["labels"].shape[-1], variant=settings.variant, drop_path_rate=0.0
    )
    model.save_to_preset(directory / "model")
    np.savez(directory / "pictures.npz", **pictures)
    write_json(directory / "job.json", {"model": settings.model, "dtype": settings.dtype})
    return {"parameters": count_parameters(model), "training_macs": count_macs(model).training}


def _measure(backend, directory):
    """The result of the backend's process; `{"error": reason}` where there is none."""
    if importlib.util.find_spec(backend) is None:
        return {"error": "not installed"}
    result = directory / f"{backend}.json"
    try:
        run_in_process(backend, __name__, [directory, result], timeout=TIMEOUT)
    except RuntimeError as error:
        return {"error": str(error)}
    return json.loads(result.read_text(encoding="utf-8"))


def _compared(backends, batch_size):
    """`reference` and `backends`, each with what follows from its measurements."""
    reference = next((name for name, row in backends.items() if "error" not in row), None)
    for row in backends.values():
        if "error" in row:
            continue
        first, *others = row["seconds"]
        row["first_step"] = first
        row["step"] = _spread(others)
        row["images_per_second"] = _spread([batch_size / seconds for seconds in others])
        for key in ("logits", "losses"):
            there = np.array(backends[reference][key])
            row[f"{key}_difference"] = float(np.abs(np.array(row[key]) - there).max())
    return {"reference": reference, "backends": backends}


def _spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(report):
    """Lines of plain text: one for each backend, with the reason where there is no result."""
    columns = ("backend", "version", "first step", "step (least..most)", "images/s", "memory", "logits", "loss")
    widths = (12, 14, 12, 26, 10, 10, 9, 9)

    def line(cells):
        first, *others = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        return "".join([first, *others]).rstrip()

    lines = [comparison_title(report), "", line(columns)]
    for backend, row in report["backends"].items():
        if "error" in row:
            lines.append(f"{backend:<{widths[0]}}no result: {textwrap.shorten(row['error'], 300)}")
            continue
        step = row["step"]
        is_reference = backend == report["reference"]
        lines.append(
            line(
                (
                    backend,
                    row["versions"][backend] or "?",
                    _seconds(row["first_step"]),
                    f"{_seconds(step['median'])} ({_seconds(step['least'])}..{_seconds(step['most'])})",
                    f"{row['images_per_second']['median']:.3g}",
                    _gigabytes(peak_bytes(row)),
                    *("-" if is_reference else f"{row[f'{key}_difference']:.1e}" for key in ("logits", "losses")),
                )
            )
        )
    if len(report["backends"]) > 1 and report["reference"]:
        lines += [
            "",
            f"logits, loss: the largest difference to {report['reference']}, of the same weights and pictures",
        ]
    return "\n".join(lines)


def _gigabytes(count):
    return "?" if count is None else f"{count / 1e9:.2f} GB"


def _seconds(value):
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


SYNTHETIC_CLASSES = 10
_WAVES = 6


def make_images(settings):
    """What is trained on and predicted for, as `CompareConfig` say.

    Returns:
        dict of arrays: `images`, uint8 `(steps, batch, height, width, 3)`, RGB in 0..255, augmented; `labels`, float32
        `(steps, batch, classes)`, one-hot; `held_out`, uint8 `(pictures, height, width, 3)`, at most a batch.

    Raises:
        DataError: Data that cannot be used, or fewer training images than a batch has.
    """
    return _synthetic(settings) if settings.data is None else _photos(settings)


def _photos(settings):
    manifest = open_data(settings.data)
    is_ci2p = issubclass(CLASSIFIERS[settings.model], CompressorMixin)
    common = {
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "patch_size": PATCH_SIZE if is_ci2p else 16,
    }
    training = image_folder(manifest, split="train", seed=settings.seed, **common)
    if training.batch_size < settings.batch_size:
        raise DataError(
            f"{settings.data} has {len(training.manifest)} training photos, fewer than a batch. "
            f"Received: batch_size={settings.batch_size}"
        )
    batches = iter(training.repeat())
    images, labels = zip(*itertools.islice(batches, settings.steps), strict=True)
    batches.close()
    held_out, _ = next(iter(image_folder(manifest, split="val", **common)))
    return {
        "images": np.stack(images).astype("uint8"),
        "labels": np.stack(labels),
        "held_out": held_out.astype("uint8"),
    }


def _synthetic(settings):
    rng = np.random.default_rng(settings.seed)
    shape = (settings.steps, settings.batch_size)
    pictures = smooth_images((settings.steps + 1) * settings.batch_size, settings.image_size, rng)
    labels = np.eye(SYNTHETIC_CLASSES, dtype="float32")[rng.integers(0, SYNTHETIC_CLASSES, shape)]
    return {
        "images": pictures[settings.batch_size :].reshape(*shape, *pictures.shape[1:]),
        "labels": labels,
        "held_out": pictures[: settings.batch_size],
    }


def smooth_images(count, size, rng):
    """Images with the slow changes of photographs: in each channel a few waves of random direction.

    Args:
        count: Images.
        size: Height and width in pixels.
        rng: `numpy.random.Generator`.

    Returns:
        uint8 `(count, size, size, 3)`, RGB in 0..255.
    """
    place = np.linspace(0, 2 * np.pi, size, dtype="float32")
    pictures = np.empty((count, size, size, 3), "uint8")
    for picture in pictures:
        for channel in range(3):
            rows, columns = rng.uniform(-4, 4, (2, _WAVES, 1, 1)).astype("float32")
            phases = rng.uniform(0, 2 * np.pi, (_WAVES, 1, 1)).astype("float32")
            waves = np.cos(rows * place[:, None] + columns * place + phases).mean(axis=0)
            picture[..., channel] = np.clip(128 + 180 * waves, 0, 255)
    return pictures


# The paper's, without its schedule.
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


def main(directory, result):
    """Measures the backend of this process; the names of the directory and of the JSON file for the result."""
    directory = Path(directory)
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    keep_freed_memory()
    write_json(result, measure(directory, **job))


def measure(directory, model, dtype):
    """Predicts and trains on what is in `directory`; a dict that JSON can hold.

    Args:
        directory: Path of `model/`, a preset, and `pictures.npz`.
        model: Name in `CLASSIFIERS`.
        dtype: Keras dtype policy.
    """
    imported = peak_memory()
    classifier = CLASSIFIERS[model].from_preset(directory / "model", dtype=dtype)
    with np.load(directory / "pictures.npz") as arrays:
        images, labels, held_out = (arrays[name] for name in ("images", "labels", "held_out"))
    logits = classifier.predict(held_out.astype("float32"), batch_size=len(held_out), verbose=0)
    classifier.compile(
        FusedAdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8),
        SoftTargetCrossentropy(LABEL_SMOOTHING),
        metrics=[BatchLoss()],
    )
    batches = ((batch.astype("float32"), targets) for batch, targets in zip(images, labels, strict=True))
    clock = StepClock()
    with warnings.catch_warnings():
        # That a random compressor is frozen.
        warnings.simplefilter("ignore")
        classifier.fit(batches, steps_per_epoch=len(images), shuffle=False, verbose=0, callbacks=[clock])
    return {
        "logits": np.asarray(logits, "float64").tolist(),
        "losses": clock.losses,
        "seconds": clock.seconds,
        "memory": {"imported": imported, "peak": peak_memory(), "device_peak": peak_device_memory()},
        **environment(),
        **arithmetic(),
    }


class BatchLoss(keras.metrics.Metric):
    """The loss of the last batch alone; Keras's own is the mean since the epoch began."""

    def __init__(self):
        super().__init__(name="batch_loss", dtype="float32")
        self._loss = SoftTargetCrossentropy(LABEL_SMOOTHING)
        self._value = self.add_weight(initializer="zeros", name="value")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self._value.assign(ops.cast(self._loss(y_true, y_pred), "float32"))

    def result(self):
        return ops.convert_to_tensor(self._value)


class StepClock(keras.callbacks.Callback):
    """Seconds and loss of each step; the first one's begin when the clock is made, so they hold the compilation."""

    def __init__(self):
        super().__init__()
        self.seconds, self.losses = [], []
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        # Waits until the step is done.
        self.losses.append(float(logs["batch_loss"]))
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


# A name of 0.1.0.
__getattr__ = renamed_names(__name__, {"CompareSettings": "CompareConfig"})
