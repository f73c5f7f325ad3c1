"""A run that was killed or interrupted, and one that was not, end alike."""

import csv
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import forks
import keras
import numpy as np
import pytest
from conftest import NANO, once, write_photos

from keras_ci2p.cli import main
from keras_ci2p.names import VARIANTS
from keras_ci2p.training.callbacks import InterruptCallback

NANO_CLI = str(Path(__file__).parents[1] / "helpers" / "nano_cli.py")
BACKEND = keras.backend.backend()

# Bit for bit on torch with one thread and on JAX; TensorFlow's kernels leave rounding.
TOLERANCE = 1e-4 if BACKEND == "tensorflow" else 0


def command(photos, compressor, run, *more):
    recipe = "--recipe paper --image-size 32 --batch-size 4 --epochs 2 --drop-path-rate 0.3 --ema 0.9 --ema-warmup"
    options = f"--variant nano --compressor {compressor} {recipe}"
    if BACKEND == "torch":
        options += " --deterministic"
    return [sys.executable, NANO_CLI, "train", str(photos), "--out", str(run), *options.split(), *more]


def state(run):
    (checkpoint,) = (run / "checkpoints").glob("epoch-0002/state.npz")
    return dict(np.load(checkpoint))


def history(run):
    rows = list(csv.DictReader((run / "history.csv").open()))
    return [{key: float(row[key]) for key in ("epoch", "loss", "top1", "val_loss", "val_top1")} for row in rows]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def whole(photos, nano_compressor, tmp_path_factory):
    """A run that nothing stops."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "nano", NANO)
        assert run_command(command(photos, nano_compressor, run)) == 0
    return run


def run_command(arguments):
    """In a process of its own on torch; elsewhere that would compile for longer than all else takes."""
    return forks.run(arguments).returncode if BACKEND == "torch" else main(arguments[2:])


def stopped_process(arguments, run, how):
    """Code and errors of a process that gets a signal in its second epoch."""
    process = forks.Fork(arguments, {**os.environ, "WAITING_RUN": "1"})
    try:
        deadline = time.monotonic() + 600
        while not (run / "checkpoints" / "epoch-0001").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, how)
        return process.wait(timeout=120), process.stderr
    finally:
        process.kill()


def stopped_command(arguments, how, capsys):
    """Code and errors of a command of this process, which gets the signal there."""

    class Interrupted(InterruptCallback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            super().on_epoch_begin(epoch, logs)

        def on_train_batch_begin(self, batch, logs=None):
            if (self.epoch, batch) == (1, 1):
                os.kill(os.getpid(), how)
            super().on_train_batch_begin(batch, logs)

    # A shell starts background jobs with Ctrl-C ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(importlib.import_module("keras_ci2p.training.train"), "InterruptCallback", Interrupted)
            return main(arguments[2:]), capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("how", [signal.SIGINT, once(signal.SIGKILL)])
def test_resume(how, photos, nano_compressor, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    stopped = tmp_path / "stopped"
    arguments = command(photos, nano_compressor, stopped)
    if BACKEND == "torch":
        code, errors = stopped_process(arguments, stopped, how)
    else:
        code, errors = stopped_command(arguments, how, capsys)
    assert not (stopped / "last").exists(), "it was stopped in the middle"
    assert not (stopped / "checkpoints" / "epoch-0002").exists()
    if how == signal.SIGINT:
        # One sentence that says how to go on.
        assert code == 130
        assert "--resume goes on" in errors and "Traceback" not in errors

    assert main(arguments[2:]) == 2
    assert "--resume" in capsys.readouterr().err
    assert run_command([*arguments, "--resume"]) == 0

    expected, actual = state(whole), state(stopped)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, rtol=0, atol=TOLERANCE, err_msg=key)
    for resumed, straight in zip(history(stopped), history(whole), strict=True):
        np.testing.assert_allclose(list(resumed.values()), list(straight.values()), rtol=0, atol=TOLERANCE * 10)
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole.iterdir()}
