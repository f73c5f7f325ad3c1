"""A run that was killed or interrupted, and one that was not, end alike."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import NANO, write_photos

from keras_ci2p.cli import main
from keras_ci2p.models.variants import VARIANTS

NANO_CLI = str(Path(__file__).parents[1] / "helpers" / "nano_cli.py")

# Bit for bit on torch with one thread and on JAX; TensorFlow's deterministic kernels leave rounding.
TOLERANCE = 1e-4 if keras.backend.backend() == "tensorflow" else 0


def command(photos, compressor, run, *more):
    recipe = "--recipe paper --image-size 32 --batch-size 4 --epochs 2 --drop-path-rate 0.3 --ema 0.9 --ema-warmup"
    options = f"--variant nano --compressor {compressor} {recipe} --deterministic"
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
    subprocess.run(command(photos, nano_compressor, run), check=True, timeout=600)
    return run


# A process of each takes its time to start and to compile: torch, which compiles nothing, shows both.
@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.once)])
def test_resume(how, photos, nano_compressor, whole, tmp_path, monkeypatch, capsys):
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        command(photos, nano_compressor, stopped),
        env={**os.environ, "WAITING_RUN": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 600
    while not (stopped / "checkpoints" / "epoch-0001").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, how)
    try:
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert not (stopped / "last").exists(), "it was stopped in the middle"
    assert not (stopped / "checkpoints" / "epoch-0002").exists()
    if how == signal.SIGINT:
        # One sentence that says how to go on.
        assert process.returncode == 130
        assert "--resume goes on" in stderr and "Traceback" not in stderr

    monkeypatch.setitem(VARIANTS, "nano", NANO)
    assert main(command(photos, nano_compressor, stopped)[2:]) == 2
    assert "--resume" in capsys.readouterr().err
    subprocess.run(command(photos, nano_compressor, stopped, "--resume"), check=True, timeout=600)

    expected, actual = state(whole), state(stopped)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, rtol=0, atol=TOLERANCE, err_msg=key)
    for resumed, straight in zip(history(stopped), history(whole), strict=True):
        np.testing.assert_allclose(list(resumed.values()), list(straight.values()), rtol=0, atol=TOLERANCE * 10)
    assert {path.name for path in stopped.iterdir()} == {path.name for path in whole.iterdir()}
