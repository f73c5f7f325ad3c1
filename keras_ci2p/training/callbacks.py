"""Callbacks of runs: records, best presets, averaged weights, interruption, throughput."""

import contextlib
import functools
import math
import signal
import threading
import time

import grain
import keras

from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import TRAIN_HASHES_FILE, encode_hashes, encode_names
from keras_ci2p.plots import plot_compressor_curves, plot_curves
from keras_ci2p.presets import BEST
from keras_ci2p.training.run_dir import RunError
from keras_ci2p.utils import require, write_csv

_LOGS = ("loss", "top1", "top5", "val_loss", "val_top1", "val_top5")


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
        return {TRAIN_HASHES_FILE: encode_hashes(self._manifest.hashes), NAMES_FILE: encode_names(self._data)}


_COMPRESSOR_LOGS = ("cost", "bpp", "psnr", "val_cost", "val_bpp", "val_psnr")


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
        row.update({key: round(float(logs[key]), 5) for key in _COMPRESSOR_LOGS})
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


class AveragedWeights(keras.callbacks.Callback):
    """Validates with the averages; `swapped()` puts them into the model for a while."""

    @contextlib.contextmanager
    def swapped(self):
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def on_test_begin(self, logs=None):
        self._swap()

    def on_test_end(self, logs=None):
        self._swap()

    def _swap(self):
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        # Keras has no public name for the averages; its own SwapEMAWeights takes them so.
        averages = optimizer._model_variables_moving_average
        for weight, average in zip(optimizer._trainable_variables, averages, strict=True):
            value = keras.ops.convert_to_numpy(weight)
            weight.assign(average)
            average.assign(value)


class RaiseInterrupt(keras.callbacks.Callback):
    """Ends `fit` after the batch in which Ctrl-C was pressed, should the exception itself have been swallowed.

    Keras drops whatever is raised while it fetches the logs, and there it waits most of the time.
    """

    def __init__(self):
        super().__init__()
        self._pressed = False

    @contextlib.contextmanager
    def watching(self):
        """While it lasts, Ctrl-C raises KeyboardInterrupt at once and is remembered."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, signum, frame):
        self._pressed = True
        raise KeyboardInterrupt

    def _check(self):
        if self._pressed:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        self._check()

    def on_test_batch_end(self, batch, logs=None):
        self._check()

    def on_epoch_begin(self, epoch, logs=None):
        self._check()


def write_scalars(directory, row):
    """Adds a row of the history, as scalars of its epoch."""
    writer = require("tensorboardX", extra="tensorboard").SummaryWriter(str(directory))
    for key, value in row.items():
        if key != "epoch" and value is not None:
            kind, name = ("validation", key[4:]) if key.startswith("val_") else ("training", key)
            writer.add_scalar(f"{name}/{kind}", value, row["epoch"])
    writer.close()


class TimedDataset(grain.IterDataset):
    """The batches of another dataset; counts them and the time that passes until each is there.

    Attributes:
        seconds: Waited since the last `reset`.
        batches: Delivered since then.
    """

    def __init__(self, dataset):
        super().__init__()
        self._dataset = dataset
        self.reset()

    def reset(self):
        self.seconds, self.batches = 0.0, 0

    def __iter__(self):
        return _TimedIterator(self, iter(self._dataset))


class _TimedIterator(grain.DatasetIterator):
    def __init__(self, dataset, iterator):
        super().__init__()
        self._dataset = dataset
        self._iterator = iterator

    def __next__(self):
        began = time.perf_counter()
        batch = next(self._iterator)
        self._dataset.seconds += time.perf_counter() - began
        self._dataset.batches += 1
        return batch

    def get_state(self):
        return self._iterator.get_state()

    def set_state(self, state):
        self._iterator.set_state(state)
