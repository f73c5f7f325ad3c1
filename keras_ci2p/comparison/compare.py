"""The same model, pictures and steps on one backend after another."""

import importlib.util
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_ci2p import files
from keras_ci2p.comparison.pictures import make_pictures
from keras_ci2p.comparison.report import plot
from keras_ci2p.extras import require
from keras_ci2p.flops import count_macs
from keras_ci2p.models import CLASSIFIERS

REPORT = "comparison.json"
FIGURE = "comparison.png"


def compare(settings, out, verbose=1):
    """Predicts and trains with the same weights and pictures on each backend, in a process for each.

    What a backend does by chance is left out: stochastic depth is off, and photos are augmented before. `out` gets
    `comparison.json` (the result) and `comparison.png`; nothing where no backend works.

    Args:
        settings: `CompareSettings`.
        out: Directory.
        verbose: 0 for no progress.

    Returns:
        dict of `settings`, `parameters`, `training_macs` (multiply-accumulates of a step for one image), `reference`
        (the first backend that worked, None if none did) and `backends`. The last is a dict by backend: of one that
        failed, `error`; else `logits` of held-out pictures, `losses` and `seconds` of each step, `first_step` (seconds,
        with compilation), `step` and `images_per_second` (`median`, `least` and `most` of the other steps), `memory`
        (bytes: `imported`, before there was a model, `peak`, and on a GPU `device_peak`), the largest differences to
        the reference, `logits_difference` and `losses_difference`, versions, device, threads and precision.

    Raises:
        DataError: Data that cannot be used.
        ValueError: A variant or size that the model does not have.
        ImportError: matplotlib, or grain for photos, is not installed.
    """
    require("matplotlib.figure", extra="train")
    with tempfile.TemporaryDirectory(prefix="keras_ci2p-") as name:
        directory = Path(name)
        counts = _prepare(settings, directory)
        backends = {}
        for backend in settings.backends:
            if verbose:
                print(f"{backend} ...", flush=True)
            backends[backend] = _measure(backend, directory)
    report = {"settings": settings.as_dict(), **counts, **_compared(backends, settings.batch_size)}
    if report["reference"] is not None:
        files.write_json(Path(out) / REPORT, report)
        plot(Path(out) / FIGURE, report)
    return report


def _prepare(settings, directory):
    """Writes what the processes read; what is the same on all backends: parameters and multiplications."""
    pictures = make_pictures(settings)
    keras.utils.set_random_seed(settings.seed)
    size = settings.image_size
    model = CLASSIFIERS[settings.model](
        (size, size, 3), num_classes=pictures["labels"].shape[-1], variant=settings.variant, drop_path_rate=0.0
    )
    model.save_to_preset(directory / "model")
    np.savez(directory / "pictures.npz", **pictures)
    files.write_json(directory / "job.json", {"model": settings.model, "dtype": settings.dtype})
    return {"parameters": count_parameters(model), "training_macs": count_macs(model).training}


def count_parameters(model):
    """Parameters of a Keras model, trained or frozen, without the running statistics of batch normalisation."""
    return sum(math.prod(weight.shape) for weight in model.weights if not weight.name.startswith("moving_"))


def _measure(backend, directory):
    """The result of the backend's process; `{"error": reason}` where there is none."""
    if importlib.util.find_spec(backend) is None:
        return {"error": "not installed"}
    result = directory / f"{backend}.json"
    packages = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.run(
        [sys.executable, "-m", "keras_ci2p.comparison.worker", str(directory), str(result)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(packages),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if process.returncode:
        return {"error": _reason(process)}
    return json.loads(result.read_text(encoding="utf-8"))


def _reason(process):
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"ended by {name}" + (", as the system does for want of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit code {process.returncode}"


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
