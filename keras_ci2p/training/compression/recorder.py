"""What the training of a compressor leaves behind, epoch by epoch."""

import math
import time

import keras

from keras_ci2p.training.compression.pictures import plot_compressor_curves
from keras_ci2p.training.history import write_csv
from keras_ci2p.training.recorder import BEST, RunError

_LOGS = ("cost", "bpp", "psnr", "val_cost", "val_bpp", "val_psnr")


class CompressorRecorder(keras.callbacks.Callback):
    """Writes the best preset, history, curves and checkpoint after each epoch; the checkpoint comes last, since it
    makes the epoch count.

    Args:
        run_dir: Directory of the run.
        record: dict with `history` (a list of rows) and `best`, as the checkpoint holds it.
        checkpoints: `Checkpoints`.
        settings: `CompressorSettings`.
    """

    def __init__(self, run_dir, record, checkpoints, settings):
        super().__init__()
        self._run_dir = run_dir
        self._record = record
        self._checkpoints = checkpoints
        self._settings = settings

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"The loss is no longer finite: {logs['loss']} after step {self._steps() + batch + 1}. The weights of "
                f"the last good epoch are kept in {self._run_dir}. Begin a new run with a lower learning rate."
            )

    def on_epoch_end(self, epoch, logs=None):
        history = self._record["history"]
        row = {"step": self._steps() + self._settings.steps_per_epoch}
        row.update({key: round(float(logs[key]), 5) for key in _LOGS})
        row["seconds"] = round(time.perf_counter() - self._began, 1)
        history.append(row)
        best = self._record["best"]
        if best is None or row["val_cost"] < best["val_cost"]:
            self._record["best"] = row
            self.model.save_to_preset(self._run_dir / BEST, metadata={"training": row})
        write_csv(self._run_dir / "history.csv", history)
        title = f"{self.model.architecture}, lambda {self.model.lmbda:g}"
        plot_compressor_curves(self._run_dir / "curves.png", history, title)
        self._checkpoints.save(epoch + 1, self.model, self._record)

    def _steps(self):
        return len(self._record["history"]) * self._settings.steps_per_epoch
