"""Writing a file and running it, in this process or in one where Keras has another backend."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.export.runtimes import open_exported
from keras_ci2p.models import CLASSIFIERS

# Sizes of the batches that a file is run with, since a batch of one or the size it was traced with could be built in.
BATCHES = (1, 3)


def write_and_run(model, path, format, opset, entries, images):
    """Writes a model with the current backend, and runs what it wrote.

    Args:
        model, format, opset: As in `export`.
        path: File to write, or directory that exists.
        entries: What the file is to say of itself, as in `keras_ci2p.export.metadata`.
        images: float32 `(sum(BATCHES), height, width, 3)`.

    Returns:
        `(sum(BATCHES), num_classes)`, what the written model gives for the images.
    """
    writer = importlib.import_module(f"keras_ci2p.export.{keras.backend.backend()}_writer")
    writer.write(model, path, format, opset, entries)
    run = open_exported(path, format)
    return np.concatenate([run(batch) for batch in np.split(images, np.cumsum(BATCHES)[:-1])])


def write_and_run_elsewhere(backend, model, path, format, opset, entries, images):
    """`write_and_run` in a process of its own whose Keras has another backend; the model goes there as a preset.

    Raises:
        RuntimeError: It failed; the message is the last line of what the process said.
    """
    with tempfile.TemporaryDirectory() as directory:
        job = Path(directory)
        model.save_to_preset(job / "preset")
        np.save(job / "images.npy", images)
        classifier = next(name for name, kind in CLASSIFIERS.items() if isinstance(model, kind))
        settings = {
            "classifier": classifier,
            "path": str(Path(path).absolute()),
            "format": format,
            "opset": opset,
            "entries": entries,
        }
        (job / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        # On the CPU: this process may hold the memory of the accelerator.
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **os.environ,
            "KERAS_BACKEND": backend,
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        finished = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import main; main()", str(job)],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if finished.returncode:
            said = finished.stderr.strip().splitlines() or [f"it ended with {finished.returncode} and said nothing"]
            raise RuntimeError(said[-1])
        return np.load(job / "outputs.npy")


def main():
    """What the other process does."""
    job = Path(sys.argv[1])
    settings = json.loads((job / "job.json").read_text(encoding="utf-8"))
    model = CLASSIFIERS[settings.pop("classifier")].from_preset(job / "preset")
    np.save(job / "outputs.npy", write_and_run(model, images=np.load(job / "images.npy"), **settings))
