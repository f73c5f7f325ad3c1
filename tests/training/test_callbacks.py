"""What is recorded of each epoch, and what recording costs."""

import struct
import threading
import time

import keras
import numpy as np
import pytest

from keras_ci2p.plots import plot_curves
from keras_ci2p.training.callbacks import (
    ClassifierRecorder,
    DataTimer,
    InterruptCallback,
    Recorder,
    ScalarWriter,
    SwapEMA,
)
from keras_ci2p.training.run_dir import RunError


def scalars(directory):
    """`{(name, epoch): value}` of all TensorBoard files in a directory."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = {}
    for path in directory.iterdir():
        content, place = path.read_bytes(), 0
        # The last event may be half written.
        while place + 12 < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            place += length + 16
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    return found


def test_tensorboard_keeps_epochs_of_one_second(tmp_path):
    """And those of a run that is taken up; what was written is soon on the disk."""
    first = ScalarWriter(tmp_path)
    for epoch in (1, 2, 3):
        first.write({"epoch": epoch, "loss": epoch / 2, "val_loss": None, "val_top1": 0.25})
    deadline = time.monotonic() + 60
    while len(scalars(tmp_path)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 1
    # Not closed: the process was killed.
    second = ScalarWriter(tmp_path)
    second.write({"epoch": 4, "loss": 2.0})
    second.close()
    expected = {("loss/training", epoch): epoch / 2 for epoch in (1, 2, 3, 4)}
    assert scalars(tmp_path) == expected | {("top1/validation", epoch): 0.25 for epoch in (1, 2, 3)}


@pytest.fixture
def recorded(nano, photos, tmp_path):
    """Trains two epochs with a `ClassifierRecorder`; images are fewer than the batch size that was asked for."""
    from keras_ci2p import ViT
    from keras_ci2p.data import image_folder, open_data
    from keras_ci2p.training import RECIPES
    from keras_ci2p.training.run_dir import Checkpoints

    images = open_data(photos)
    batches = image_folder(images, image_size=32, batch_size=1000)
    val = image_folder(images, image_size=32, batch_size=1000, split="val")
    model = ViT((32, 32, 3), num_classes=3, **{**nano, "num_layers": 1})
    model.compile(
        keras.optimizers.AdamW(1e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.CategoricalAccuracy("top1"), keras.metrics.TopKCategoricalAccuracy(3, "top5")],
    )
    record = {"history": [], "best": None}
    timer = DataTimer(batches.repeat())
    recorder = ClassifierRecorder(
        tmp_path,
        record,
        Checkpoints(tmp_path / "checkpoints"),
        model,
        RECIPES["quick"],
        "a title",
        timer,
        batches.batch_size,
        images,
    )

    def fit(*callbacks):
        model.fit(
            timer,
            steps_per_epoch=1,
            epochs=2,
            validation_data=val.repeat(),
            validation_steps=1,
            callbacks=[recorder, *callbacks],
            verbose=0,
        )
        recorder.write_preset("last")
        return record["history"]

    return fit


@pytest.mark.once
def test_what_is_kept_when_numbers_are_no_longer_finite(tmp_path):
    """Of the loss of a step, and of what validation measures after the last one; before the first epoch nothing is."""

    class Rows(Recorder):
        def make_row(self, epoch, logs, seconds, training_seconds):
            return {"epoch": epoch + 1, **logs}

        def is_better(self, row, best):
            return True

        def summary(self, row):
            return row

    recorder = Rows(tmp_path, {"history": [], "best": None}, None)
    nothing, good = "No epoch has ended, so .* has no weights to keep; delete it", "last good epoch are kept in"
    for kept in (nothing, good):
        epoch = 1 if kept == nothing else 2
        with pytest.raises(RunError, match=f"The loss is no longer finite: nan in step 3 of epoch {epoch}. .*{kept}"):
            recorder.on_train_batch_end(2, {"loss": float("nan")})
        for name in ("val_loss", "val_cost"):
            recorder.on_epoch_begin(0)
            with pytest.raises(RunError, match=f"The {name} is no longer finite: inf after epoch {epoch}. .*{kept}"):
                recorder.on_epoch_end(0, {name: float("inf")})
        recorder.on_epoch_end(0, {"val_loss": 1.0})
    assert len(recorder.history) == 2 and recorder.record["best"]["val_loss"] == 1


def test_steps_do_not_wait_for_their_loss(recorded, monkeypatch):
    """Keras fetches the loss of each step in the main thread where any callback wants it there."""
    threads, check = [], ClassifierRecorder.on_train_batch_end

    def spy(self, batch, logs=None):
        threads.append(threading.current_thread())
        check(self, batch, logs)

    monkeypatch.setattr(ClassifierRecorder, "on_train_batch_end", spy)
    recorded(InterruptCallback())
    assert len(threads) == 2
    # On TensorFlow Keras fetches it there whatever the callbacks are.
    if keras.backend.backend() != "tensorflow":
        assert threading.main_thread() not in threads
    for callback in (SwapEMA, InterruptCallback):
        for name in ("on_train_batch_end", "on_test_batch_end", "on_batch_end"):
            assert getattr(callback, name) is getattr(keras.callbacks.Callback, name)


@pytest.mark.once
def test_speed_counts_the_images_that_there_are(recorded):
    for row in recorded():
        seconds = 24 / row["images_per_second"]
        assert 0 < seconds <= row["seconds"] + 0.1


@pytest.mark.once
def test_training_images_are_hashed_once(recorded, monkeypatch):
    from keras_ci2p.data.manifest import ImageManifest

    calls, sha256 = [], ImageManifest.sha256.func
    monkeypatch.setattr(ImageManifest, "sha256", property(lambda self: calls.append(1) or sha256(self)))
    names = []
    monkeypatch.setattr("keras_ci2p.training.callbacks.encode_names", lambda images: names.append(1) or b"")
    recorded()
    assert (len(calls), len(names)) == (1, 1)


def test_curves_of_a_run_with_a_teacher(tmp_path):
    rows = [
        {"epoch": i, "loss": 9.0 - i, "val_loss": 1.0, "top1": 0.5, "val_top1": 0.5, "features_0_loss": 2.0}
        for i in (1, 2)
    ]
    recorder = ClassifierRecorder.__new__(ClassifierRecorder)
    recorder.history = rows
    recorder._recipe = type("recipe", (), {"distill_features": (8.0, 8.0, 3.0)})
    compared = recorder._comparable_history()
    assert [row["loss"] for row in compared] == [2.0, 1.0], "without three times the loss of the map"
    assert rows[0]["loss"] == 8.0, "the table keeps the whole"
    plot_curves(tmp_path / "taught.png", compared, "taught")
    plot_curves(tmp_path / "alone.png", [{k: v for k, v in r.items() if "features" not in k} for r in rows], "alone")
    from PIL import Image

    taught, alone = (Image.open(tmp_path / f"{name}.png") for name in ("taught", "alone"))
    assert taught.width == pytest.approx(alone.width * 1.5, abs=2), "the maps have axes of their own"
    assert np.asarray(taught).std() > 0
