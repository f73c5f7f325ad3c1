"""Measures one backend, in a process of its own: `python -m keras_ci2p.comparison.worker DIRECTORY RESULT`.

DIRECTORY holds what `compare` has prepared, RESULT is the JSON file to write.
"""

import json
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_ci2p import files
from keras_ci2p.comparison.arithmetic import arithmetic
from keras_ci2p.comparison.memory import peak_device_memory, peak_memory
from keras_ci2p.models import CLASSIFIERS
from keras_ci2p.training.allocator import keep_freed_memory
from keras_ci2p.training.backend import environment
from keras_ci2p.training.fused_adamw import adamw
from keras_ci2p.training.loss import SoftTargetCrossentropy

# The paper's, without its schedule.
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


def main(directory, result):
    job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
    keep_freed_memory()
    files.write_json(result, measure(directory, **job))


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
        adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8),
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


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
