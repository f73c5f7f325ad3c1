"""Callbacks of runs: records, best presets, averaged weights, interruption, time spent on data."""

import contextlib
import functools
import math
import time
import warnings
from typing import TYPE_CHECKING

import keras

from keras_ci2p import backend
from keras_ci2p.data.manifest import NAMES_FILE
from keras_ci2p.data.overlap import TRAIN_HASHES_FILE, encode_hashes, encode_names
from keras_ci2p.plots import plot_compressor_curves, plot_curves
from keras_ci2p.presets import BEST
from keras_ci2p.training.run_dir import CURVES, HISTORY, RunError
from keras_ci2p.utils import on_interrupt, require, write_csv

if TYPE_CHECKING:
    import grain
else:
    grain = require("grain", extra="train")


def tell_of_compilation():
    """Says why the first step takes long, where it does."""
    if backend.compiles:
        print("The first step takes up to a minute: it is compiled.", flush=True)


class Recorder(keras.callbacks.Callback):
    """Writes preset, history, curves and checkpoint after each epoch; the checkpoint comes last, since it makes the
    epoch count.

    Base class; subclasses have `make_row`, `is_better`, `summary`, `write_best` and `plot`.

    Args:
        run_dir: `Path` of the run.
        record: dict with `history` (a list of rows) and `best`, as the checkpoint holds it.
        checkpoints: `Checkpoints`, or None in a process that writes nothing.
    """

    # Keras then calls `on_train_batch_end` in threads of its own, which wait for the loss while this one goes on. On
    # TensorFlow it fetches the loss of each step anyway.
    async_safe = True
    advice = "a lower learning rate"
    # What validation measures that must be finite.
    _measured = frozenset({"val_loss", "val_cost"})

    def __init__(self, run_dir, record, checkpoints):
        super().__init__()
        self.run_dir = run_dir
        self.record = record
        self.history = record["history"]
        self.checkpoints = checkpoints

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()
        self._trained = None

    def on_train_batch_end(self, batch, logs=None):
        self._check_finite("loss", logs["loss"], f"in step {batch + 1} of")

    def _check_finite(self, name, value, where):
        if math.isfinite(value):
            return
        kept = f"The weights of the last good epoch are kept in {self.run_dir}."
        if not self.history:
            kept = f"No epoch has ended, so {self.run_dir} has no weights to keep; delete it."
        raise RunError(
            f"The {name} is no longer finite: {value} {where} epoch {len(self.history) + 1}. {kept} Begin a new run "
            f"with {self.advice}."
        )

    def on_test_begin(self, logs=None):
        # Validation within `fit`: the epoch's training has ended, once the device has made its last step.
        keras.ops.convert_to_numpy(self.model.trainable_variables[-1])
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        row = self.make_row(epoch, logs, now - self._began, (self._trained or now) - self._began)
        # The last step's loss was that of the weights before it.
        for name in row.keys() & self._measured:
            self._check_finite(name, row[name], "after")
        self.history.append(row)
        best = self.record["best"]
        if best is None or self.is_better(row, best):
            self.record["best"] = self.summary(row)
            if self.checkpoints is not None:
                self.write_best()
        if self.checkpoints is not None:
            self.write_history()
            self.checkpoints.save(epoch + 1, self.model, self.record)

    def write_history(self):
        """Writes table and curves of the epochs so far."""
        write_csv(self.run_dir / HISTORY, self.history)
        self.plot(self.run_dir / CURVES)

    def make_row(self, epoch, logs, seconds, training_seconds):
        """The row of the history: a dict of plain values."""
        raise NotImplementedError

    def is_better(self, row, best):
        """Whether an epoch beats the best one, as `summary` told of it."""
        raise NotImplementedError

    def summary(self, row):
        """What the record says of the best epoch."""
        raise NotImplementedError

    def write_best(self):
        """Writes the preset of the best epoch so far."""
        raise NotImplementedError

    def plot(self, path):
        """Writes the curves of the history."""
        raise NotImplementedError


class ClassifierRecorder(Recorder):
    """The `Recorder` of a classifier's run.

    Args:
        run_dir, record, checkpoints: As in `Recorder`.
        model: The classifier; what is trained may be a part of it, or wrap it.
        recipe: `Recipe`.
        title: Of the curves.
        batches: `DataTimer` that is trained on.
        batch_size: Images of each of its batches, over all processes.
        images: All images, `ImageManifest` or `LatentCache`.
        ema: `SwapEMA` whose averages are saved, or None.
        tensorboard: Whether to write scalars for TensorBoard too.
        reduce_logs: Function from a dict of numbers to their means over all processes.
        verbose: Whether to print a line on the speed after each epoch.
    """

    advice = "a lower learning rate, a smaller clip_grad_norm or, in place of mixed_float16, mixed_bfloat16"
    _logs = ("loss", "top1", "top5", "val_loss", "val_top1", "val_top5")

    def __init__(
        self,
        run_dir,
        record,
        checkpoints,
        model,
        recipe,
        title,
        batches,
        batch_size,
        images,
        ema=None,
        tensorboard=False,
        reduce_logs=dict,
        verbose=0,
    ):
        super().__init__(run_dir, record, checkpoints)
        self._classifier = model
        self._recipe = recipe
        self._title = title
        self._batches = batches
        self._batch_size = batch_size
        self._images = images
        self._ema = ema
        self._scalars = ScalarWriter(run_dir / "tensorboard") if tensorboard and checkpoints is not None else None
        self._reduce_logs = reduce_logs
        self._verbose = verbose

    @property
    def patience_is_over(self):
        """Whether the run has ended before its last epoch."""
        patience, best = self._recipe.patience, self.record["best"]
        return patience is not None and best is not None and len(self.history) - best["epoch"] >= patience

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._batches.reset()

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        row = self.history[-1]
        if self._verbose:
            speed = f"{row['images_per_second']:g} images/s"
            print(f"{speed}, {row['waiting']:.0%} of the time waiting for data", flush=True)
        if self.patience_is_over:
            self.model.stop_training = True

    def write_history(self):
        super().write_history()
        if self._scalars is not None:
            self._scalars.write(self.history[-1])

    def on_train_end(self, logs=None):
        if self._scalars is not None:
            self._scalars.close()

    def make_row(self, epoch, logs, seconds, training_seconds):
        # A teacher's.
        more = sorted(key for key in logs if key.endswith("_loss") and not key.startswith("val_"))
        logs = self._reduce_logs({key: float(logs[key]) for key in (*self._logs, *more)})
        images = self._batches.batches * self._batch_size
        return {
            "epoch": epoch + 1,
            **logs,
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            "seconds": round(seconds, 1),
            "images_per_second": round(images / training_seconds, 1),
            "waiting": round(self._batches.seconds / training_seconds, 3),
        }

    def is_better(self, row, best):
        return row["val_top1"] > best["val_top1"]

    def summary(self, row):
        return {"epoch": row["epoch"], "val_top1": row["val_top1"]}

    def write_best(self):
        with contextlib.nullcontext() if self._ema is None else self._ema.swapped():
            self.write_preset(BEST)

    def write_preset(self, name):
        """Writes the classifier as it is."""
        if self.checkpoints is None:
            return
        count, sha256, files = self._training_images
        training = {**self.summary(self.history[-1]), "train_photos": count, "train_sha256": sha256}
        self._classifier.save_to_preset(self.run_dir / name, metadata={"training": training}, files=files)

    @functools.cached_property
    def _training_images(self):
        """Number, SHA-256 and hashes of the training images, for all presets: of a million they take seconds."""
        images = self._images.split("train")
        return (
            len(images),
            images.sha256,
            {TRAIN_HASHES_FILE: encode_hashes(images.hashes), NAMES_FILE: encode_names(self._images)},
        )

    def plot(self, path):
        plot_curves(path, self._comparable_history(), self._title)

    def _comparable_history(self):
        """The history with losses of the classes alone: of a teacher's feature maps validation knows nothing."""
        keys = [key for key in self.history[0] if key.startswith("features_")]
        weights = self._recipe.distill_features[len(self._recipe.distill_features) - len(keys) :]
        return [
            {**row, "loss": row["loss"] - sum(w * row[key] for w, key in zip(weights, keys, strict=True))}
            for row in self.history
        ]


class CompressorRecorder(Recorder):
    """The `Recorder` of a compressor's run, with its `CompressorTrainConfig`: epochs have `steps_per_epoch` steps."""

    def __init__(self, run_dir, record, checkpoints, settings):
        super().__init__(run_dir, record, checkpoints)
        self._settings = settings
        names = ("cost", "bpp", "psnr", *(["ms_ssim"] if settings.metric == "ms-ssim" else []))
        self._logs = [prefix + name for prefix in ("", "val_") for name in names]

    def make_row(self, epoch, logs, seconds, training_seconds):
        measured = {key: round(float(logs[key]), 5) for key in self._logs}
        step = min((epoch + 1) * self._settings.steps_per_epoch, self._settings.steps)
        return {"step": step, **measured, "seconds": round(seconds, 1)}

    def is_better(self, row, best):
        return row["val_cost"] < best["val_cost"]

    def summary(self, row):
        return row

    def write_best(self):
        self.model.save_to_preset(self.run_dir / BEST, metadata={"training": self.history[-1]})

    def plot(self, path):
        plot_compressor_curves(path, self.history, f"{self.model.architecture}, lambda {self.model.lmbda:g}")


class SwapEMA(keras.callbacks.Callback):
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


class MemoryCallback(keras.callbacks.Callback):
    """Returns freed memory to the system from time to time, where the heap would grow by it."""

    # A hundred steps need far longer than to map the memory of one anew.
    every = 100

    def __init__(self):
        super().__init__()
        self._batches = 0

    # Not at the end of a batch, where Keras would fetch the logs for it.
    def on_train_batch_begin(self, batch, logs=None):
        self._batches += 1
        if backend.fragments_memory and self._batches % self.every == 0:
            backend.release_freed_memory()


class InterruptCallback(keras.callbacks.Callback):
    """Ends `fit` before the batch that follows Ctrl-C, should the exception itself have been swallowed.

    Keras drops whatever is raised while it fetches the logs, and there it waits most of the time.
    """

    def __init__(self):
        super().__init__()
        self._pressed = False

    def watching(self):
        """A context: while it lasts, Ctrl-C raises KeyboardInterrupt at once and is remembered."""
        return on_interrupt(self._remember)

    def _remember(self, signum, frame):
        self._pressed = True
        raise KeyboardInterrupt

    def _check(self):
        if self._pressed:
            raise KeyboardInterrupt

    # Not at the end of a batch, where Keras would fetch the logs for it.
    def on_train_batch_begin(self, batch, logs=None):
        self._check()

    def on_test_batch_begin(self, batch, logs=None):
        self._check()

    def on_epoch_begin(self, epoch, logs=None):
        self._check()


class ScalarWriter:
    """Writes the rows of a history for TensorBoard, into one file a run, or one each time that it is taken up.

    Args:
        directory: `Path` of the files.
    """

    def __init__(self, directory):
        self._directory = directory
        self._file = None

    def write(self, row):
        """Adds a row, as scalars of its epoch; what cannot be written is a warning."""
        # Not its `SummaryWriter`: where a disk is full its thread ends, and who writes more waits for ever.
        writer, summary, event_pb2 = (
            require(f"tensorboardX.{name}", extra="tensorboard")
            for name in ("event_file_writer", "summary", "proto.event_pb2")
        )
        try:
            if self._file is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                # Files are named by the second, and a run may be taken up within one.
                self._file = writer.EventsWriter(str(self._directory / "events"), f".{row['epoch']}")
            for key, value in row.items():
                if key != "epoch" and value is not None:
                    kind, name = ("validation", key[4:]) if key.startswith("val_") else ("training", key)
                    scalar = summary.scalar(f"{name}/{kind}", value)
                    self._file.write_event(event_pb2.Event(wall_time=time.time(), step=row["epoch"], summary=scalar))
            self._file.flush()
        except OSError as error:
            warnings.warn(f"{self._directory} lacks epoch {row['epoch']}: {error}", stacklevel=2)
            self.close()

    def close(self):
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class DataTimer(grain.IterDataset):
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
        return _DataTimerIterator(self, iter(self._dataset))


class _DataTimerIterator(grain.DatasetIterator):
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
