"""Runs that learn from a teacher: on latents with its targets, and on photos, where it is asked."""

import csv
import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import NANO, write_photos
from tiny_teacher import onnx_file

from keras_ci2p import CI2PViT, ViT
from keras_ci2p.data import CROP_AND_FLIP, DataError, open_cache, open_data
from keras_ci2p.layers import AnalysisTransform
from keras_ci2p.names import DUAL_SCALE_VARIANTS, VARIANTS
from keras_ci2p.training import (
    RECIPES,
    LatentCacheConfig,
    RunError,
    TrainConfig,
    cache_latents,
    evaluate,
    read_recipe,
    time_budget,
    train,
)
from keras_ci2p.training.run_dir import Checkpoints
from keras_ci2p.training.teacher import open_teacher
from keras_ci2p.training.time_budget import EpochTime
from keras_ci2p.training.train import distilled
from keras_ci2p.training.train_data import find_teacher

# The same on every backend, but for what is marked.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:The latents are made with a compressor of random weights"),
]


NAMES = ("bird", "cat", "dog")
# TensorFlow's kernels leave rounding errors.
TOLERANCE = 1e-4 if keras.backend.backend() == "tensorflow" else 0
TAUGHT = ["features_0_loss", "teacher_loss"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, a teacher, one that does not say its range, and latents with and without targets."""
    root = tmp_path_factory.mktemp("distilled")
    photos = write_photos(root / "photos")
    metadata = {"class_names": list(NAMES), "value_range": [0, 10], "name": "means", "license": "MIT"}
    onnx_file(root / "means.onnx", metadata=metadata, size=(48, 48))
    onnx_file(root / "silent.onnx", metadata={"class_names": list(NAMES)}, size=(48, 48))
    compressor = AnalysisTransform(num_filters=8, latent_channels=12)
    compressor.build((None, None, None, 3))
    options = {"compressor": compressor, "verbose": 0}
    settings = LatentCacheConfig(views=2, image_size=64, augmentation=CROP_AND_FLIP, batch_size=8)
    cache_latents(photos, root / "alone", settings=settings, **options)
    for name in ("means", "silent"):
        teacher = open_teacher(root / f"{name}.onnx", NAMES, value_range=(0, 10))
        cache_latents(photos, root / f"latents_{name}", settings=settings, teacher=teacher, **options)
    return root


@pytest.fixture(autouse=True)
def nano_variants(monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", {**NANO, "num_layers": 1})
    monkeypatch.setitem(DUAL_SCALE_VARIANTS, "nano", {**NANO, "early_dim": 16, "merge_at": 1})


@pytest.fixture
def settings(place):
    def make(data="photos", **kwargs):
        """Keyword arguments of `TrainConfig` and numbers of the recipe, mixed."""
        own = {"data": str(place / data), "variant": "nano", "model": "vit" if data == "photos" else "ci2p"}
        recipe = {"image_size": 32 if data == "photos" else 64, "epochs": 2, "batch_size": 8, "warmup_epochs": 0.5}
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        for key, value in kwargs.items():
            (own if key in names else recipe)[key] = value
        return TrainConfig(recipe=RECIPES["quick"].override(recipe), **own)

    return make


def numbers(history):
    timed = ("seconds", "images_per_second", "waiting")
    return [{key: value for key, value in row.items() if key not in timed} for row in history]


def assert_same(one, other):
    """Of two `(model, history)`."""
    for row, same in zip(numbers(one[1]), numbers(other[1]), strict=True):
        assert row.keys() == same.keys()
        np.testing.assert_allclose(list(row.values()), list(same.values()), rtol=0, atol=10 * TOLERANCE)
    for weight, same in zip(one[0].get_weights(), other[0].get_weights(), strict=True):
        np.testing.assert_allclose(weight, same, rtol=0, atol=TOLERANCE)


def test_minutes_with_a_teacher(settings, place, tmp_path, monkeypatch, capsys):
    """Measured with it, on latents and on photos; the run is the one of as many epochs, and can go on."""
    measure, measured = time_budget._measure, []
    monkeypatch.setattr(time_budget, "_measure", lambda *args: measured.append(measure(*args)) or EPOCH)
    for data, teacher in (("latents_means", {}), ("photos", {"teacher": str(place / "means.onnx")})):
        run = tmp_path / data
        budget = settings(data, max_minutes=10, distill_features=[2], **teacher)
        in_budget = train(budget, run, verbose=2)
        epochs = settings(data, epochs=2, distill_features=[2], **teacher)
        epochs = dataclasses.replace(epochs, recipe=read_recipe(run / "recipe.toml"))
        assert_same(in_budget, train(epochs, tmp_path / f"{data}_epochs", verbose=0))
        assert [row["epoch"] for row in in_budget[1]] == [1, 2] and "teacher_loss" in in_budget[1][0]
        assert "10 minutes are left: 2 epochs" in capsys.readouterr().out
        assert len(train(budget, run, resume=True, verbose=0)[1]) == 2
    assert len(measured) == 2 and all(each.training > 0 for each in measured)


# Of which two fit into ten minutes.
EPOCH = EpochTime(training=160, validation=30, saving=10, starting=50)


class TestLatents:
    def test_targets_are_learned(self, settings, place, tmp_path, capsys):
        run = tmp_path / "run"
        options = {"epochs": 4, "learning_rate": 3e-3, "distill_features": [2], "ema": 0.9}
        model, history = train(settings("latents_means", **options), run, verbose=2)
        said = capsys.readouterr().out
        assert "Learning from the teacher means, top-1 100.00% itself. --teacher none: from the labels alone" in said
        assert history[-1]["features_0_loss"] < history[0]["features_0_loss"]
        assert history[-1]["teacher_loss"] < history[0]["teacher_loss"]
        # Its probabilities alone, at temperature 1, and the features twice.
        for row in history:
            assert row["loss"] == pytest.approx(row["teacher_loss"] + 2 * row["features_0_loss"], rel=1e-3)
        (first, *_) = csv.DictReader((run / "history.csv").open())
        assert [name for name in first if name.endswith("_loss")] == ["val_loss", *TAUGHT]
        # The heads are thrown away, and what is left is the model.
        assert sum(weight.shape == (32, 128) for weight in model.weights) == 0
        report = evaluate(CI2PViT.from_preset(run / "last"), place / "photos", verbose=0)
        assert report["top1"] == pytest.approx(history[-1]["val_top1"])

        teacher = json.loads((run / "run.json").read_text())["data"]["teacher"]
        assert (teacher["name"], teacher["license"], teacher["val_top1"]) == ("means", "MIT", 1)
        assert teacher["sha256"] == open_teacher(place / "means.onnx", NAMES).sha256
        assert teacher["features"][0]["name"] == "features_2" and "steps" not in teacher["features"][0]

    def test_teacher_none_is_a_cache_without_targets(self, settings, tmp_path):
        options = {"mixup": 0.8, "cutmix": 1.0}
        alone = train(settings("alone", **options), tmp_path / "alone", verbose=0)
        none = train(settings("latents_means", teacher="none", **options), tmp_path / "none", verbose=0)
        assert_same(none, alone)
        assert not set(TAUGHT) & set(none[1][0])
        assert "teacher" not in json.loads((tmp_path / "none" / "run.json").read_text())["data"]
        with pytest.raises(RunError, match="other settings.*teacher: 'none', now None"):
            train(settings("latents_means", **options), tmp_path / "none", resume=True, verbose=0)

    def test_the_merged_tokens_of_two_scales_learn(self, settings, tmp_path):
        options = {"model": "ci2p_dual", "cutmix": 1.0, "distill_alpha": 0.5, "epochs": 1}
        _, history = train(settings("latents_means", **options), tmp_path / "run", verbose=0)
        assert np.isfinite(list(history[0].values())).all() and set(TAUGHT) <= set(history[0])

    def test_whose_targets_they_are(self, settings, place, tmp_path):
        def found(data, **kwargs):
            return find_teacher(settings(data, **kwargs), open_cache(place / data), 32, tmp_path, None, verbose=False)

        def refused(error, text, data, teacher):
            with pytest.raises(error, match=text):
                found(data, teacher=teacher)

        means, silent = str(place / "means.onnx"), str(place / "silent.onnx")
        refused(DataError, "holds no targets.*Make a new one.*--teacher .*means.onnx", "alone", means)
        refused(DataError, "holds the targets of another teacher: means, SHA-256", "latents_means", silent)
        refused(DataError, "another teacher: means.*lite2", "latents_means", "efficientnet-lite2")
        refused(FileNotFoundError, "none.onnx", "latents_means", str(place / "none.onnx"))
        # It is known by its contents, whatever else it does not say.
        for data, teacher in (("latents_silent", silent), ("latents_means", means), ("latents_means", None)):
            assert found(data, teacher=teacher) == (None, open_cache(place / data).teacher)
        for data, teacher in (("latents_means", "none"), ("alone", None)):
            assert found(data, teacher=teacher) == (None, None)

    def test_a_recipe_that_does_not_fit_the_teacher(self, settings, place, tmp_path):
        teacher = open_cache(place / "latents_means").teacher
        with pytest.raises(ValueError, match=r"1 feature maps.*weight for each.* Received: distill_features=\(\)"):
            distilled(None, teacher, settings(distill_features="").recipe)
        with pytest.raises(ValueError, match="distill_alpha=1. Set it lower"):
            train(settings("latents_means", class_weights="balanced"), tmp_path / "no", verbose=0)
        assert not (tmp_path / "no").exists()

    def test_views_that_were_added_since(self, settings, place, tmp_path, capsys):
        copy = shutil.copytree(place / "latents_means", tmp_path / "copy")
        on_copy = dataclasses.replace(settings("latents_means", epochs=1), data=str(copy))
        run = tmp_path / "run"
        train(on_copy, run, verbose=0)
        assert json.loads((run / "run.json").read_text())["data"]["views"] == 2
        teacher = open_teacher(place / "means.onnx", NAMES)
        cache_latents(place / "photos", copy, None, teacher=teacher, more_views=1, verbose=0)
        train(on_copy, run, resume=True, verbose=2)
        assert "The cache has 3 views of each photo by now, all of which are used" in capsys.readouterr().out


def stop_after_the_first_epoch(monkeypatch, settings, run, **options):
    save = Checkpoints.save

    def stop(self, epoch, model, record):
        save(self, epoch, model, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, run, verbose=0, **options)


class TestPhotos:
    OPTIONS = {"mixup": 0.8, "cutmix": 1.0, "distill_alpha": 0.7, "distill_temperature": 2.0, "drop_path_rate": 0.2}

    def test_the_teacher_is_asked(self, settings, place, tmp_path, monkeypatch):
        """Interrupted and taken up again it is the run that was not; with another teacher it is refused."""
        teacher = place / "copy.onnx"
        teacher.write_bytes((place / "means.onnx").read_bytes())
        taught = settings(teacher=str(teacher), **self.OPTIONS)
        whole = train(taught, tmp_path / "whole", verbose=0)
        assert set(TAUGHT) <= set(whole[1][0]) and np.isfinite([row["loss"] for row in whole[1]]).all()
        stored = json.loads((tmp_path / "whole" / "run.json").read_text())
        assert stored["data"]["teacher"]["name"] == "means" and stored["data"]["teacher"]["val_top1"] == 1
        assert stored["settings"]["teacher"] == str(teacher) and (tmp_path / "whole" / "teacher.npz").is_file()

        run = tmp_path / "run"
        stop_after_the_first_epoch(monkeypatch, taught, run)
        onnx_file(teacher, metadata={"class_names": list(NAMES), "value_range": [0, 10]}, size=(48, 48))
        with pytest.raises(RunError, match="begun with other data.*teacher.sha256"):
            train(taught, run, resume=True, verbose=0)
        # What the file holds counts, not where it lies. The projection is the one that it was begun with.
        moved = dataclasses.replace(taught, teacher=str(place / "means.onnx"))
        monkeypatch.setattr("keras_ci2p.training.distillation.TeacherTargets.fit", None)
        assert_same(train(moved, run, resume=True, verbose=0), whole)
        assert len(ViT.from_preset(run / "last").weights) == len(whole[0].weights)

    def test_what_is_not_in_its_file(self, settings, place, tmp_path):
        def found(**kwargs):
            chosen = settings(teacher=str(place / "silent.onnx"), **kwargs)
            return find_teacher(chosen, open_data(place / "photos"), 16, tmp_path, None, verbose=False)

        with pytest.raises(ValueError, match="does not say which values it takes.*--teacher-range"):
            found()
        targets, said = found(teacher_range=(0, 10), teacher_features=())
        assert (said["value_range"], said["features"], said["val_top1"]) == ([0, 10], [], 1)
        assert targets.projection.channels == []

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"augment": "device"}, "augmented on the host. Received: augment='device'"),
            ({"num_workers": 2}, "threads of this process. Received: num_workers=2"),
            ({"teacher": None, "teacher_size": 48}, "teacher_size goes with a teacher. Received: teacher_size=48"),
            (
                {"teacher": "none", "teacher_features": ("a",)},
                "teacher_features goes with a teacher. Received: teacher_features=",
            ),
            ({"data": "latents_means", "teacher_range": (0, 1)}, "teacher_range.*not with a latent cache"),
            ({"matmul_precision": "float16"}, "one of float32, tensorfloat32, bfloat16 or none. Received: 'float16'"),
        ],
    )
    def test_settings_that_do_not_go_together(self, settings, wrong, message):
        with pytest.raises(ValueError, match=message):
            settings(**{"teacher": "teacher.onnx", **wrong}).for_data("latents" in wrong.get("data", ""))


def test_runs_of_before_can_be_resumed(settings, tmp_path):
    run = tmp_path / "run"
    train(settings(epochs=1), run, verbose=0)
    config = json.loads((run / "run.json").read_text())
    kept = config["settings"]
    for name in ("teacher", "teacher_size", "teacher_range", "teacher_features", "matmul_precision"):
        del kept[name]
    for name in ("distill_alpha", "distill_temperature", "distill_features"):
        del kept["recipe"][name]
    (run / "run.json").write_text(json.dumps(config))
    _, history = train(settings(epochs=1), run, resume=True, verbose=0)
    assert len(history) == 1
    for changed in ({"teacher": "teacher.onnx"}, {"matmul_precision": "float32"}, {"distill_alpha": 0.5}):
        with pytest.raises(RunError, match=f"{next(iter(changed))}: .*, now"):
            train(settings(epochs=1, **changed), run, resume=True, verbose=0)
