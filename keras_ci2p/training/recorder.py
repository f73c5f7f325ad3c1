"""What a run leaves behind, epoch by epoch."""

import functools
import math
import time

import keras

from keras_ci2p.data.seen import NAMES_FILE, SEEN_FILE, encode, encode_names
from keras_ci2p.training.history import plot_curves, write_csv
from keras_ci2p.training.tensorboard import write_scalars

BEST = "best"
LAST = "last"
_LOGS = ("loss", "top1", "top5", "val_loss", "val_top1", "val_top5")


class RunError(ValueError):
    """A run that cannot be begun, taken up or ended as asked."""


class Recorder(keras.callbacks.Callback):
    """Writes presets, history, curves and checkpoint after each epoch; the checkpoint comes last, since it makes the
    epoch count.

    Args:
        run_dir: Directory of the run.
        model: The classifier; what is trained may be a part of it, or wrap it.
        record: dict with `history` (a list of rows) and `best`, as the checkpoint holds it.
        checkpoints: `Checkpoints`, or None in a process that writes nothing.
        train_data: `TimedDataset` that is trained on.
        manifest: The photos that are trained on.
        data: All images, `ImageManifest` or `LatentCache`.
        averaging: `AveragedWeights` whose averages are saved, or None.
        settings: `TrainSettings`.
        reduce_logs: Function from a dict of numbers to their means over all processes.
        verbose: Whether to print a line on the speed after each epoch.
    """

    def __init__(
        self, run_dir, model, record, checkpoints, train_data, manifest, data, averaging, settings, reduce_logs, verbose
    ):
        super().__init__()
        self._run_dir = run_dir
        self._classifier = model
        self._record = record
        self._checkpoints = checkpoints
        self._train_data = train_data
        self._manifest = manifest
        self._data = data
        self._averaging = averaging
        self._settings = settings
        self._reduce_logs = reduce_logs
        self._verbose = verbose

    @property
    def patience_is_over(self):
        """Whether the run has ended before its last epoch."""
        patience, best = self._settings.recipe.patience, self._record["best"]
        return patience is not None and best is not None and len(self._record["history"]) - best["epoch"] >= patience

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()
        self._trained = None
        self._train_data.reset()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise RunError(
                f"The loss is no longer finite: {logs['loss']} in step {batch + 1} of epoch {self._epoch() + 1}. The "
                f"weights of the last good epoch are kept in {self._run_dir}. Begin a new run with a lower learning "
                "rate, a smaller clip_norm or, in place of mixed_float16, mixed_bfloat16."
            )

    def on_test_begin(self, logs=None):
        # Validation within `fit`: the epoch's training has ended.
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        seconds = (self._trained or now) - self._began
        taught = sorted(key for key in logs if key.endswith("_loss") and not key.startswith("val_"))
        logs = self._reduce_logs({key: float(logs[key]) for key in (*_LOGS, *taught)})
        row = {"epoch": epoch + 1, **logs}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(now - self._began, 1)
        row["images_per_second"] = round(self._train_data.batches * self._settings.recipe.batch_size / seconds, 1)
        row["waiting"] = round(self._train_data.seconds / seconds, 3)
        self._record["history"].append(row)
        best = self._record["best"]
        if best is None or row["val_top1"] > best["val_top1"]:
            self._record["best"] = {"epoch": epoch + 1, "val_top1": row["val_top1"]}
            self._write_best()
        if self._verbose:
            print(
                f"{row['images_per_second']:g} images/s, {row['waiting']:.0%} of the time waiting for data", flush=True
            )
        if self._checkpoints is not None:
            write_csv(self._run_dir / "history.csv", self._record["history"])
            plot_curves(self._run_dir / "curves.png", self._record["history"], self._title())
            if self._settings.tensorboard:
                write_scalars(self._run_dir / "tensorboard", row)
            self._checkpoints.save(epoch + 1, self.model, self._record)
        if self.patience_is_over:
            self.model.stop_training = True

    def _epoch(self):
        return len(self._record["history"])

    def _title(self):
        s = self._settings
        return f"{s.model} {s.variant or s.init}, {s.recipe.image_size} px"

    def _write_best(self):
        if self._averaging is None:
            self.write_preset(BEST)
        else:
            with self._averaging.swapped():
                self.write_preset(BEST)

    def write_preset(self, name):
        """Writes the classifier as it is."""
        if self._checkpoints is None:
            return
        row = self._record["history"][-1]
        training = {
            "epoch": row["epoch"],
            "val_top1": row["val_top1"],
            "train_photos": len(self._manifest),
            "train_sha256": self._manifest.sha256,
        }
        self._classifier.save_to_preset(
            self._run_dir / name,
            metadata={"training": training},
            files=self._training_images,
        )

    @functools.cached_property
    def _training_images(self):
        """Files of a preset that tell what it was trained on; hashing a million names takes seconds."""
        return {SEEN_FILE: encode(self._manifest.digests), NAMES_FILE: encode_names(self._data)}
