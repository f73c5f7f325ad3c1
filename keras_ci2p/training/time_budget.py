"""How many epochs fit into a number of minutes, measured before a run on its own model, data and devices."""

import gc
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import keras

from keras_ci2p.plots import plot_curves
from keras_ci2p.training.run_dir import Checkpoints

# Of the budget, training is measured for this share, but for so many seconds at least and at most; validation for a
# quarter of that. Compilation comes on top.
_SHARE = 0.03
_SHORTEST, _LONGEST = 3.0, 60.0
# Steps that may compile, or are the first after it.
_FIRST = 2


@dataclass(frozen=True)
class EpochTime:
    """What an epoch takes, in seconds.

    Attributes:
        training, validation, saving: The parts of each epoch.
        starting: What the first epoch takes beyond that: the backend compiles.
    """

    training: float
    validation: float
    saving: float
    starting: float

    @property
    def seconds(self):
        return self.training + self.validation + self.saving

    def epochs_within(self, seconds):
        """Whole epochs of a new run that fit; at least one."""
        return max(1, int((seconds - self.starting) / self.seconds))


def within_budget(run, began, run_dir, verbose):
    """Gives a run as many epochs as fit into its minutes; the warm-up keeps its share of them.

    What is measured is a model of its own, so that the run itself begins as if nothing had been measured.

    Args:
        run: `TrainRun`; its `settings` are replaced, and its model is to be built again.
        began: `time.perf_counter()` when the minutes began.
        run_dir: Directory of the run to come; what is written to measure goes beside it, and is deleted.
        verbose: Whether to print what was measured and chosen.
    """
    if verbose:
        print("Measuring how long an epoch takes ...", flush=True)
    minutes = run.settings.max_minutes
    run.build()
    measured = _measure(run, minutes * 60, run_dir)
    run.model = run.trained_model = None
    # Keras models are cycles of references, which would keep the device's memory.
    gc.collect()
    left = max(0.0, run.devices.all_reduce_mean({"seconds": began + minutes * 60 - time.perf_counter()})["seconds"])
    epochs = measured.epochs_within(left)
    if verbose:
        print(
            f"An epoch takes about {measured.seconds:.1f} s (training {measured.training:.1f}, validation "
            f"{measured.validation:.1f}, saving {measured.saving:.1f}), the first {measured.starting:.1f} s more. "
            f"{left / 60:.1f} of {minutes:g} minutes are left: {epochs} epoch{'s' if epochs > 1 else ''}.",
            flush=True,
        )
    if measured.starting + measured.seconds > left:
        warnings.warn(
            f"One epoch takes longer than the {minutes:g} minutes given. It is trained all the same.",
            stacklevel=4,
        )
    run.settings = _with_epochs(run.settings, epochs)


def as_begun(settings, previous):
    """The settings with the epochs that were chosen when the run was begun.

    Args:
        settings: `TrainConfig`.
        previous: The record of the run.
    """
    recorded = previous.get("settings", {}).get("recipe", {})
    return _with_epochs(settings, recorded.get("epochs", settings.recipe.epochs))


def _with_epochs(settings, epochs):
    return replace(settings, recipe=settings.recipe.override({"epochs": epochs}))


def _measure(run, budget, run_dir):
    """`EpochTime` of a run whose model is built, the same in all processes."""
    train_data, val_data, devices = run.data.train, run.data.val, run.devices
    devices.prepare(run.trained_model)
    stopwatch = _Stopwatch(min(max(_SHARE * budget, _SHORTEST), _LONGEST), devices.all_reduce_mean)
    history = run.fit(train_data.repeat(), [stopwatch], epochs=2, verbose=0).history
    first_training, first_validation, training, validation = stopwatch.laps
    seconds = {
        "training": training.seconds_for(train_data.steps_per_epoch),
        "validation": validation.seconds_for(val_data.steps_per_epoch),
        "saving": _saving_seconds(run, history, run_dir),
        "starting": first_training.seconds_beyond(training) + first_validation.seconds_beyond(validation),
    }
    return EpochTime(**devices.all_reduce_mean(seconds))


def _saving_seconds(run, history, run_dir):
    """What the files of an epoch take that is the best so far."""
    rows = [{"epoch": i + 1, **{key: values[i] for key, values in history.items()}} for i in range(2)]
    run_dir.resolve().mkdir(parents=True, exist_ok=True)
    # A name that `clean_up` knows.
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="saving.partial-") as directory:
        began = time.perf_counter()
        run.model.save_to_preset(Path(directory, "preset"))
        plot_curves(Path(directory, "curves.png"), rows, "measured")
        Checkpoints(directory).save(1, run.trained_model, {})
        return time.perf_counter() - began


class _Lap:
    """The batches of one part of an epoch, and the seconds that they took."""

    def __init__(self):
        self._began = time.perf_counter()
        self.batches = 0
        self.seconds = 0.0
        self.first_seconds = 0.0

    def add_batch(self):
        self.batches += 1
        self.seconds = time.perf_counter() - self._began
        if self.batches <= _FIRST:
            self.first_seconds = self.seconds

    def seconds_for(self, batches):
        return self.seconds / self.batches * batches

    def seconds_beyond(self, other):
        """What these batches took longer than as many of another lap."""
        return max(0.0, self.seconds - other.seconds_for(self.batches))


class _Stopwatch(keras.callbacks.Callback):
    """Times two epochs that it cuts short: one that compiles and uses up what was loaded meanwhile, one that counts.

    Args:
        seconds: Length of the second one's training; its validation, and the first one's training, get a quarter.
        mean: `Devices.all_reduce_mean`, so that all processes stop after the same batch.

    Attributes:
        laps: `_Lap`s: training and validation of the first epoch, then of the second.
    """

    def __init__(self, seconds, mean):
        super().__init__()
        self._seconds = seconds
        self._mean = mean
        self.laps = []

    def on_epoch_begin(self, epoch, logs=None):
        self.laps.append(_Lap())

    def on_test_begin(self, logs=None):
        self.laps.append(_Lap())

    def on_train_batch_end(self, batch, logs=None):
        if self._is_enough(logs):
            self.model.stop_training = True

    def on_test_batch_end(self, batch, logs=None):
        if self._is_enough(logs):
            self.model.stop_evaluating = True

    def on_epoch_end(self, epoch, logs=None):
        # It was only the epoch that was to stop.
        self.model.stop_training = False

    def _is_enough(self, logs):
        # Waits for the device: what is only queued has taken no time yet.
        float(logs["loss"])
        lap, number = self.laps[-1], len(self.laps)
        lap.add_batch()
        seconds = lap.seconds - lap.first_seconds if number <= 2 else lap.seconds
        limit = self._seconds * (1 / 4, 1 / 16, 1, 1 / 4)[number - 1]
        return lap.batches >= _FIRST and self._mean({"seconds": seconds})["seconds"] >= limit
