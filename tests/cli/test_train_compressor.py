"""`keras-ci2p train-compressor`, and what can be done with its run."""

import csv
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import forks
import keras
import numpy as np
import pytest
from PIL import Image

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.cli import main
from keras_ci2p.training import CompressorTrainConfig, RunError, train_compressor

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

# Bit for bit on torch with one thread and on JAX; TensorFlow's deterministic kernels leave rounding.
TOLERANCE = 1e-4 if keras.backend.backend() == "tensorflow" else 0

NANO_CLI = str(Path(__file__).parents[1] / "helpers" / "nano_cli.py")
OPTIONS = {"quality": 1, "crop-size": 32, "batch-size": 2, "steps": 4, "steps-per-epoch": 2, "val-size": 48, "lr": 1e-3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder without classes: some pictures in it, some in a subfolder, and a file that is none."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    (root / "more" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for i in range(12):
        folder = root if i < 6 else root / "more" / "deep"
        pixels = rng.integers(0, 256, (5, 6, 3)).astype("uint8").repeat(10, 0).repeat(10, 1)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    (root / "notes.txt").write_text("no picture")
    return root


def options(pictures, **others):
    """The settings of `OPTIONS`, or others."""
    names = {"lr": "learning_rate"}
    values = {names.get(name, name.replace("-", "_")): value for name, value in OPTIONS.items()}
    return CompressorTrainConfig(str(pictures), deterministic=True, **{**values, **others})


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.warns(UserWarning, match="skipped 1 file"):
        keras.utils.set_random_seed(0)
        train_compressor(options(pictures), out, verbose=0)
    return out


def history(run):
    return [{key: float(value) for key, value in row.items()} for row in csv.DictReader((run / "history.csv").open())]


def test_what_a_run_leaves(run):
    names = {path.name for path in run.iterdir()}
    files = {"history.csv", "curves.png", "run.json", "report.json", "reconstructions.png"}
    assert names == {"best", "last", "checkpoints", *files}
    rows = history(run)
    assert [row["step"] for row in rows] == [2, 4]
    report = json.loads((run / "report.json").read_text())
    best = min(rows, key=lambda row: row["val_cost"])
    assert report["step"] == best["step"] and report["images"] == 2
    for name in ("cost", "bpp", "psnr"):
        assert report[name] == pytest.approx(best[f"val_{name}"], rel=1e-4)


def test_evaluate(run, pictures, tmp_path, capsys):
    assert main(["evaluate", str(run), str(pictures), "--size", "48", "--out", str(tmp_path)]) == 0
    report = json.loads((run / "report.json").read_text())
    measured = json.loads((tmp_path / "report.json").read_text())
    assert measured["cost"] == pytest.approx(report["cost"], rel=1e-5)
    assert f"{report['psnr']:.2f} dB" in capsys.readouterr().out
    assert (tmp_path / "reconstructions.png").is_file()
    # The same pictures with twice the weight of the error.
    arguments = ["--size", "48", "--lmbda", str(2 * report["lmbda"]), "--out", str(tmp_path)]
    assert main(["evaluate", str(run), str(pictures), *arguments]) == 0
    doubled = json.loads((tmp_path / "report.json").read_text())
    assert doubled["cost"] - doubled["bpp"] == pytest.approx(2 * (report["cost"] - report["bpp"]), rel=1e-4)


def test_the_compressor_of_a_run_goes_into_a_classifier(run, photos, tmp_path, nano):
    arguments = ["cache", str(photos), str(tmp_path / "latents"), "--compressor", str(run), "--views", "1"]
    assert main([*arguments, "--image-size", "32"]) == 0
    best = Compressor.from_preset(run / "best")
    model = CI2PViT((32, 32, 3), compressor=best, **nano)
    assert not model.compressor.is_randomly_initialized
    images = np.full((1, 32, 32, 3), 100, "uint8")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model.compressor.encode(images)),
        keras.ops.convert_to_numpy(best.encode(images)),
        rtol=1e-5,
    )


def test_an_existing_run_is_not_overwritten(run, pictures):
    settings = CompressorTrainConfig(str(pictures), quality=1)
    with pytest.raises(RunError, match="--resume"):
        train_compressor(settings, run)
    with pytest.raises(RunError, match="other settings.*steps: 4, now 20000"):
        train_compressor(settings, run, resume=True)


def test_init_keeps_architecture_and_channels(run, pictures, tmp_path):
    """Others are an error, and what is recorded is what was trained; a record of 0.1.0 says its defaults."""
    small = {"crop_size": 32, "batch_size": 2, "steps": 1, "steps_per_epoch": 1, "val_size": 48, "val_images": 2}
    settings = CompressorTrainConfig(str(pictures), init=str(run), **small)
    for wrong, told in (
        ({"quality": 8}, r"cannot become another quality.* at quality 8 has .*\(192, 320\). Received.*\(128, 192\)"),
        ({"architecture": "bmshj2018-factorized-relu"}, "has the architecture .*which training keeps.*Received: arch"),
    ):
        with pytest.raises(ValueError, match=told):
            train_compressor(dataclasses.replace(settings, **wrong), tmp_path / "wrong", verbose=0)
    assert not (tmp_path / "wrong").exists()
    tuned = tmp_path / "tuned"
    best, _ = train_compressor(settings, tuned, verbose=0)
    record = json.loads((tuned / "run.json").read_text())
    assert best.quality == record["settings"]["quality"] == 1
    assert record["settings"]["architecture"] == "bmshj2018-factorized"
    with pytest.raises(RunError, match="quality: 1, now 2"):
        train_compressor(dataclasses.replace(settings, quality=2), tuned, resume=True)
    record["settings"]["quality"] = 5
    del record["settings"]["metric"]
    (tuned / "run.json").unlink()
    (tuned / "config.json").write_text(json.dumps(record))
    assert len(train_compressor(settings, tuned, resume=True, verbose=0)[1]) == 1
    assert CompressorTrainConfig("x").quality == 5 and CompressorTrainConfig("x").architecture == "bmshj2018-factorized"


def test_init_of_another_quality(run, pictures, tmp_path):
    """Its weights, with the weight of the error that belongs to the quality asked for."""
    small = {"crop_size": 32, "batch_size": 2, "steps": 1, "steps_per_epoch": 1, "val_size": 48, "val_images": 2}
    settings = CompressorTrainConfig(str(pictures), init=str(run), quality=2, learning_rate=1e-9, **small)
    best, _ = train_compressor(settings, tmp_path / "tuned", verbose=0)
    for ours, theirs in zip(best.analysis.weights, Compressor.from_preset(run / "best").analysis.weights, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), atol=1e-6)
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert best.quality == 2 and report["lmbda"] == 0.0035
    assert len(train_compressor(settings, tmp_path / "tuned", resume=True, verbose=0)[1]) == 1


@pytest.mark.parametrize(("steps", "rows"), [(1, [1]), (3, [2, 3])])
def test_as_many_steps_as_asked(pictures, tmp_path, steps, rows):
    """Also where they make no whole epoch; a run whose last epoch is missing goes on to the same number."""
    small = {"crop_size": 32, "batch_size": 2, "steps_per_epoch": 2, "val_size": 48, "val_images": 2, "quality": 1}
    settings, out = CompressorTrainConfig(str(pictures), steps=steps, **small), tmp_path / "run"
    with pytest.warns(UserWarning, match="skipped 1 file"):
        best, kept = train_compressor(settings, out, verbose=0)
    assert [row["step"] for row in kept] == rows and best.quality == 1
    assert iterations(out) == {steps}
    with pytest.warns(UserWarning, match="skipped 1 file"):
        assert train_compressor(settings, out, resume=True, verbose=0)[1] == kept


@pytest.mark.once
def test_a_hyperprior_for_ms_ssim(pictures, tmp_path, capsys):
    """Trained, measured, and used for files."""
    arguments = ["--architecture", "mbt2018-mean", "--metric", "ms-ssim", "--quality", "1", "--steps", "1"]
    sizes = ["--crop-size", "192", "--val-size", "192", "--batch-size", "1", "--val-images", "1"]
    run = tmp_path / "run"
    assert main(["train-compressor", str(pictures), *arguments, *sizes, "--out", str(run)]) == 0
    (row,) = history(run)
    report = json.loads((run / "report.json").read_text())
    assert report["metric"] == "ms-ssim" and report["lmbda"] == 2.4
    assert report["ms_ssim"] == pytest.approx(row["val_ms_ssim"], abs=1e-4)
    assert report["cost"] == pytest.approx(row["val_cost"], rel=1e-4)
    capsys.readouterr()
    measure = ["evaluate", str(run), str(pictures), "--size", "192", "--images", "1", "--metric", "ms-ssim"]
    assert main([*measure, "--out", str(tmp_path)]) == 0
    assert f"MS-SSIM {report['ms_ssim']:.4f}, " in capsys.readouterr().out
    picture = next(pictures.glob("*.png"))
    assert main(["compress", str(picture), str(tmp_path / "a.ci2p"), "--compressor", str(run)]) == 0
    assert main(["decompress", str(tmp_path / "a.ci2p"), str(tmp_path / "a.png"), "--compressor", str(run)]) == 0
    assert Image.open(tmp_path / "a.png").size == Image.open(picture).size


def iterations(run):
    """What the optimizers in a run's checkpoint have counted."""
    (checkpoint,) = (run / "checkpoints").iterdir()
    names = json.loads((checkpoint / "record.json").read_text())["variables"]
    with np.load(checkpoint / "state.npz") as state:
        return {int(state[f"{i:05d}"]) for i, name in enumerate(names) if name.endswith("iteration ()")}


def test_wrong_numbers():
    with pytest.raises(ValueError, match="multiple of 16"):
        CompressorTrainConfig("x", crop_size=100)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        CompressorTrainConfig("x", steps=0)


def test_no_pictures(tmp_path, capsys):
    assert main(["train-compressor", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "no readable image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def check_same_end(resumed, run):
    """Weights, the optimizers' state and history are those of the run that nothing stopped."""
    (state,) = (resumed / "checkpoints").glob("epoch-0002/state.npz")
    expected, actual = np.load(run / "checkpoints" / "epoch-0002" / "state.npz"), np.load(state)
    assert expected.files == actual.files
    for key in expected.files:
        np.testing.assert_allclose(actual[key], expected[key], rtol=0, atol=TOLERANCE, err_msg=key)
    for row, straight in zip(history(resumed), history(run), strict=True):
        for name in ("step", "cost", "val_cost", "val_psnr"):
            assert row[name] == pytest.approx(straight[name], abs=TOLERANCE * 10), name


def test_kill_and_resume(run, pictures, tmp_path):
    """Killed after the first epoch, it ends as the run that was not."""
    killed = tmp_path / "killed"
    command = [sys.executable, NANO_CLI, "train-compressor", str(pictures), "--out", str(killed)]
    command += [f"--{name}={value}" for name, value in OPTIONS.items()] + ["--deterministic"]
    process = forks.Fork(command, {**os.environ, "WAITING_RUN": "1"})
    deadline = time.monotonic() + 600
    while not (killed / "checkpoints" / "epoch-0001").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=120)
    assert not (killed / "last").exists(), "it was killed in the middle"
    assert forks.run([*command, "--resume"]).returncode == 0
    check_same_end(killed, run)


@pytest.mark.every_backend
def test_stopped_and_resumed(nano_compressor, pictures, tmp_path, monkeypatch):
    """As above, without processes, of a small one: compilation takes longer than all else."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = options(pictures, init=str(nano_compressor), quality=None, lmbda=0.01)

    def stop(callbacks, epoch, logs=None):
        begin(callbacks, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    begin = keras.callbacks.CallbackList.on_epoch_begin
    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.CallbackList, "on_epoch_begin", stop)
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="skipped 1 file"):
            train_compressor(config, stopped, verbose=0)
    assert len(history(stopped)) == 1
    for out, resume in ((stopped, True), (whole, False)):
        with pytest.warns(UserWarning, match="skipped 1 file"):
            train_compressor(config, out, resume=resume, verbose=0)
    check_same_end(stopped, whole)
