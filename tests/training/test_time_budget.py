"""As many epochs as fit into a number of minutes."""

import csv
import json
import time

import keras
import numpy as np
import pytest

from keras_ci2p.cli import main
from keras_ci2p.names import VARIANTS
from keras_ci2p.training import RECIPES, RunError, TrainConfig, read_recipe, train
from keras_ci2p.training import time_budget as budget
from keras_ci2p.training.time_budget import EpochTime

pytestmark = pytest.mark.once


@pytest.fixture
def settings(photos, nano, monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", nano)
    small = {"image_size": 32, "batch_size": 8, "epochs": 10, "warmup_epochs": 2}

    def make(minutes=None, **recipe):
        recipe = RECIPES["quick"].override({**small, **recipe})
        return TrainConfig(str(photos), model="vit", variant="nano", recipe=recipe, minutes=minutes)

    return make


@pytest.fixture
def measured(monkeypatch):
    """Makes each measurement say that 3 epochs fit into 10 minutes, after it has been made; holds what was measured."""
    results = []

    def measure(*args):
        results.append(original(*args))
        return EpochTime(training=100, validation=40, saving=10, starting=50)

    original = budget._measure
    monkeypatch.setattr(budget, "_measure", measure)
    return results


class Measured(Exception):
    pass


@pytest.fixture
def measure(settings, tmp_path, monkeypatch):
    """Measures as `train` does, without the run that would follow."""

    def measure_and_stop(*args):
        raise Measured(original(*args))

    def run(**recipe):
        with pytest.raises(Measured) as error:
            train(settings(minutes=1, **recipe), tmp_path / "run", verbose=0)
        return error.value.args[0]

    original = budget._measure
    monkeypatch.setattr(budget, "_measure", measure_and_stop)
    return run


def test_whole_epochs_that_fit():
    measured = EpochTime(training=10.0, validation=4.0, saving=1.0, starting=5.0)
    assert measured.seconds == 15
    assert [measured.epochs_within(seconds) for seconds in (-1, 0, 34.9, 35, 94.9, 95)] == [1, 1, 1, 2, 5, 6]


def test_the_run_is_the_one_that_those_epochs_would_have_been(settings, measured, tmp_path):
    """Measuring leaves no trace in the weights, the recorded recipe is the chosen one, and what is resumed goes on."""
    in_budget, _ = train(settings(minutes=10), tmp_path / "budget", verbose=0)
    by_epochs, history = train(settings(epochs=3, warmup_epochs=0.6), tmp_path / "epochs", verbose=0)
    for ours, theirs in zip(in_budget.weights, by_epochs.weights, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), atol=1e-5)
    assert len(measured) == 1, "only with minutes"
    config = json.loads((tmp_path / "budget" / "run.json").read_text())["settings"]
    assert config["max_minutes"] == 10
    assert config["recipe"]["epochs"] == 3 and config["recipe"]["warmup_epochs"] == pytest.approx(0.6)
    assert read_recipe(tmp_path / "budget" / "recipe.toml").epochs == 3
    rows = list(csv.DictReader((tmp_path / "budget" / "history.csv").open()))
    assert [float(row["learning_rate"]) for row in rows] == [pytest.approx(row["learning_rate"]) for row in history]
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "budget", "epochs"}, "nothing is left over"

    train(settings(minutes=10), tmp_path / "budget", resume=True, verbose=0)
    assert len(measured) == 1, "nothing is measured again"
    for other, message in ((settings(minutes=2), "minutes: 10.0, now 2.0"), (settings(), "minutes: 10.0, now None")):
        with pytest.raises(RunError, match=message):
            train(other, tmp_path / "budget", resume=True, verbose=0)
    with pytest.raises(RunError, match="minutes: None, now 1.0"):
        train(settings(minutes=1), tmp_path / "epochs", resume=True, verbose=0)


def slow_down(monkeypatch, kind, seconds):
    """Makes each batch that is measured take so much longer; returns a list with an entry for each."""
    batches = []

    def on_batch_begin(self, batch, logs=None):
        batches.append(batch)
        time.sleep(seconds)

    monkeypatch.setattr(budget._Stopwatch, f"on_{kind}_batch_begin", on_batch_begin)
    return batches


def test_what_is_measured(measure, monkeypatch):
    slow_down(monkeypatch, "train", 0.2)
    slow_down(monkeypatch, "test", 0.1)
    save = budget.Checkpoints.save

    def slow_save(self, *args):
        time.sleep(0.5)
        save(self, *args)

    monkeypatch.setattr(budget.Checkpoints, "save", slow_save)
    seconds = measure(ema=0.9)
    # 3 steps and 1 batch of validation.
    assert 0.6 <= seconds.training < 6 and 0.1 <= seconds.validation < 3 and 0.5 <= seconds.saving < 5
    assert seconds.starting >= 0


def test_long_epochs_are_cut_short(measure, monkeypatch):
    monkeypatch.setattr(budget, "_SHARE", 0)
    monkeypatch.setattr(budget, "_SHORTEST", 0.4)
    steps, validation_batches = (slow_down(monkeypatch, kind, 0.1) for kind in ("train", "test"))
    seconds = measure(batch_size=1)
    # Two epochs of 24 and 6 batches would have been 48 and 12.
    assert 4 <= len(steps) < 12 and 4 <= len(validation_batches) < 9
    assert seconds.training >= 24 * 0.1 and seconds.validation >= 6 * 0.1


def test_command_line(settings, measured, photos, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--model", "vit", "--variant", "nano", "--image-size", "32", "--batch-size", "8", "--set", "clip_norm=2"]
    command = ["train", str(photos), "--out", str(run), "--minutes", "1", *options]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "An epoch takes about 150.0 s (training 100.0, validation 40.0, saving 10.0), the first 50.0 s" in printed
    assert "of 1 minutes are left: 1 epoch." in printed
    assert main([*command, "--resume"]) == 0
    assert len(measured) == 1
    for wrong in (["--epochs", "3"], ["--set", "epochs=3"], ["--warmup-epochs", "1"]):
        assert main([*command[:2], "--out", str(tmp_path / "other"), "--minutes", "1", *wrong]) == 2
        assert "--minutes chooses the epochs" in capsys.readouterr().err
    assert main([*command[:2], "--out", str(tmp_path / "other"), "--minutes", "0"]) == 2
    assert "minutes must be positive" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
