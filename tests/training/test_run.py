import csv
import json

import keras
import numpy as np
import pytest

from keras_ci2p import CI2PViT
from keras_ci2p.models.variants import VARIANTS
from keras_ci2p.training import RunError, TrainSettings, evaluate, train


@pytest.fixture
def settings(photos, nano, monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", nano)

    def make(**kwargs):
        defaults = {"variant": "nano", "model": "vit", "image_size": 32, "epochs": 2, "batch_size": 8}
        return TrainSettings(str(photos), **{**defaults, "warmup_epochs": 0.5, **kwargs})

    return make


def test_a_run_leaves_its_record(settings, photos, tmp_path):
    run = tmp_path / "run"
    model, history = train(settings(model="ci2p"), run, verbose=0)
    names = {"best", "last", "checkpoints", "config.json", "history.csv", "curves.png"}
    assert {path.name for path in run.iterdir()} == names
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) == {"epoch", "loss", "top1", "val_loss", "val_top1", "learning_rate", "seconds"}
    assert float(rows[1]["val_top1"]) == history[1]["val_top1"]
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["variant"] == "nano"
    assert config["backend"] == keras.backend.backend() and config["versions"]["keras"] == keras.__version__
    assert config["data"]["photos"] == {"bird": 10, "cat": 10, "dog": 10}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    last = CI2PViT.from_preset(run / "last")
    assert last.class_names == ["bird", "cat", "dog"]
    for stored, trained in zip(last.weights, model.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(stored), keras.ops.convert_to_numpy(trained))
    report = evaluate(last, photos, verbose=0)
    assert report["top1"] == pytest.approx(history[-1]["val_top1"])
    metadata = json.loads((run / "best" / "metadata.json").read_text())
    assert metadata["training"]["val_top1"] == max(row["val_top1"] for row in history)
    assert metadata["training"]["train_photos"] == 24


def test_learns_what_is_easy(settings, tmp_path):
    _, history = train(settings(epochs=12, learning_rate=3e-3), tmp_path / "run", verbose=0)
    assert max(row["val_top1"] for row in history) == 1


def test_existing_directories(settings, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").touch()
    with pytest.raises(RunError, match="exists already"):
        train(settings(), run, verbose=0)
    with pytest.raises(RunError, match="no training run"):
        train(settings(), run, resume=True, verbose=0)
    (run / "config.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        train(settings(), run, resume=True, verbose=0)
    assert {path.name for path in run.iterdir()} == {"mine.txt", "config.json"}


def test_only_the_same_run_can_be_resumed(settings, photos, tmp_path):
    run = tmp_path / "run"
    train(settings(epochs=1), run, verbose=0)
    with pytest.raises(RunError, match="other settings.*batch_size: 8, now 4"):
        train(settings(epochs=1, batch_size=4), run, resume=True, verbose=0)
    _, history = train(settings(epochs=1), run, resume=True, verbose=0)
    assert len(history) == 1, "it was finished"
    (photos / "cat" / "000.png").unlink()
    with pytest.raises(RunError, match="other data"):
        train(settings(epochs=1), run, resume=True, verbose=0)


def test_wrong_sizes_are_refused_before_anything_is_written(settings, tmp_path):
    with pytest.raises(ValueError, match="multiples of 32"):
        train(settings(model="ci2p", image_size=48), tmp_path / "run", verbose=0)
    with pytest.raises(ValueError, match="variant"):
        train(settings(variant="huge"), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_the_run(settings, tmp_path):
    with pytest.raises(RunError, match="no longer finite in epoch 1"):
        train(settings(learning_rate=1e30), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"learning_rate": 0}, {"seed": -1}, {"label_smoothing": 1}])
def test_bad_settings(settings, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
