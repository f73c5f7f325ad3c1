import csv
import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import NANO, once, write_photos
from tiny_teacher import onnx_file

from keras_ci2p import CI2PViT, Compressor, ViT, presets
from keras_ci2p.data import CROP_AND_FLIP, Augmentation, DataError, image_folder
from keras_ci2p.data.loader import LoadImage
from keras_ci2p.layers import AnalysisTransform
from keras_ci2p.models import CLASSIFIERS
from keras_ci2p.names import VARIANTS
from keras_ci2p.training import (
    RECIPES,
    LatentCacheConfig,
    RunError,
    TrainConfig,
    cache_latents,
    evaluate,
    open_teacher,
    read_recipe,
    train,
)
from keras_ci2p.training.configs import DEFAULT_COMPRESSOR
from keras_ci2p.training.run_dir import run_lock


@pytest.fixture
def settings(photos, nano, monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", nano)

    def make(**kwargs):
        """Keyword arguments of `TrainConfig` and numbers of the recipe, mixed."""
        own = {"data": str(photos), "variant": "nano", "model": "vit"}
        recipe = {"image_size": 32, "epochs": 2, "batch_size": 8, "warmup_epochs": 0.5}
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        for key, value in kwargs.items():
            (own if key in names else recipe)[key] = value
        return TrainConfig(recipe=RECIPES["quick"].override(recipe), **own)

    return make


@pytest.mark.once
def test_a_run_leaves_its_record(settings, photos, tmp_path):
    run = tmp_path / "run"
    model, history = train(settings(model="ci2p"), run, verbose=0)
    names = {"best", "last", "checkpoints", "run.json", "recipe.toml", "history.csv", "curves.png"}
    assert {path.name for path in run.iterdir()} == names
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    names = "epoch loss top1 top5 val_loss val_top1 val_top5 learning_rate seconds images_per_second waiting"
    assert list(rows[0]) == names.split()
    assert all(float(row["images_per_second"]) > 0 and 0 <= float(row["waiting"]) < 1 for row in rows)
    assert read_recipe(run / "recipe.toml") == settings().recipe
    assert float(rows[1]["val_top1"]) == history[1]["val_top1"]
    config = json.loads((run / "run.json").read_text())
    assert config["settings"]["variant"] == "nano"
    assert model.freeze_compressor and model.compressor.origin["name"] == DEFAULT_COMPRESSOR
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


@pytest.mark.once
def test_which_compressor(settings, tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "latents.json").touch()
    assert settings(model="ci2p_dual").for_data(False).compressor == DEFAULT_COMPRESSOR
    assert settings(model="ci2p", compressor="my.pth").for_data(False).compressor == "my.pth"
    assert settings(model="ci2p", variant=None, init="my_preset").for_data(False).compressor is None
    assert settings(model="vit").for_data(False).compressor is None
    assert TrainConfig(str(tmp_path / "latents")).for_data(True).compressor is None
    with pytest.raises(ValueError, match="that of init or data"):
        train(TrainConfig(str(tmp_path / "latents"), compressor="none"), tmp_path / "no", verbose=0)
    model, _ = train(settings(model="ci2p", compressor="none", epochs=1), tmp_path / "run", verbose=0)
    assert not model.freeze_compressor and model.compressor.origin is None


@pytest.mark.once
def test_learns_what_is_easy(settings, tmp_path):
    _, history = train(settings(epochs=12, learning_rate=3e-3), tmp_path / "run", verbose=0)
    assert max(row["val_top1"] for row in history) == 1


@pytest.mark.once
def test_existing_directories(settings, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").touch()
    with pytest.raises(RunError, match="exists already"):
        train(settings(), run, verbose=0)
    with pytest.raises(RunError, match="no training run"):
        train(settings(), run, resume=True, verbose=0)
    (run / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        train(settings(), run, resume=True, verbose=0)
    assert {path.name for path in run.iterdir()} == {"mine.txt", "run.json"}


@pytest.mark.once
def test_only_the_same_run_can_be_resumed(settings, photos, tmp_path):
    run = tmp_path / "run"
    train(settings(epochs=1), run, verbose=0)
    with pytest.raises(RunError, match="other settings.*recipe.batch_size: 8, now 4"):
        train(settings(epochs=1, batch_size=4), run, resume=True, verbose=0)
    _, history = train(settings(epochs=1, num_workers=3), run, resume=True, verbose=0)
    assert len(history) == 1, "it was finished"
    (photos / "cat" / "000.png").unlink()
    with pytest.raises(RunError, match="other data"):
        train(settings(epochs=1), run, resume=True, verbose=0)


@pytest.mark.once
def test_a_run_goes_on_wherever_its_files_lie_now(settings, photos, tmp_path, monkeypatch):
    """By another spelling, from another directory, or moved: contents decide, and others are refused."""
    ViT((32, 32, 3), num_classes=3, class_names=["bird", "cat", "dog"], **NANO).save_to_preset(tmp_path / "first")
    run, one_epoch = tmp_path / "run", {"epochs": 1, "variant": None}
    begun = settings(**one_epoch, init=str(tmp_path / "first"))
    train(begun, run, verbose=0)

    def resume(**changes):
        return train(dataclasses.replace(begun, **changes), run, resume=True, verbose=0)[1]

    shutil.copytree(tmp_path / "first", tmp_path / "moved" / "first")
    assert len(resume(init=str(tmp_path / "moved" / "first"))) == 1
    monkeypatch.chdir(tmp_path / "moved")
    assert len(resume(data="../photos/", init="first")) == 1
    photos.rename(tmp_path / "elsewhere")
    assert len(resume(data=str(tmp_path / "elsewhere"))) == 1
    write_photos(tmp_path / "photos", count=11)
    with pytest.raises(RunError, match="other data"):
        resume()
    ViT((32, 32, 3), num_classes=3, **NANO).save_to_preset(tmp_path / "other")
    with pytest.raises(RunError, match="begun with init .*first', which holds something else than .*other'"):
        resume(data=str(tmp_path / "elsewhere"), init=str(tmp_path / "other"))
    with pytest.raises(RunError, match="other settings.*init: .*first', now None"):
        resume(data=str(tmp_path / "elsewhere"), init=None, variant="nano")
    with pytest.raises(RunError, match="recipe.epochs: 1, now 2.*To train its model further.*--init RUN"):
        train(settings(**{**one_epoch, "epochs": 2}, init=begun.init), run, resume=True, verbose=0)
    # 0.1.0 did not record what `init` held: its path counts.
    record = json.loads((run / "run.json").read_text())
    del record["data"]["init"]
    (run / "run.json").write_text(json.dumps(record))
    assert len(resume(data=str(tmp_path / "elsewhere"))) == 1
    with pytest.raises(RunError, match="holds something else"):
        resume(data=str(tmp_path / "elsewhere"), init="first")


@pytest.mark.once
def test_a_run_on_images_is_none_on_latents(settings, photos, tmp_path, nano_compressor):
    run, cache = tmp_path / "run", tmp_path / "cache"
    on_images = settings(model="ci2p", epochs=1, compressor=str(nano_compressor))
    train(on_images, run, verbose=0)
    views = LatentCacheConfig(views=1, image_size=32, augmentation=on_images.recipe.augmentation)
    cache_latents(photos, cache, Compressor.from_preset(nano_compressor), views, verbose=0)
    on_latents = dataclasses.replace(on_images, data=str(cache))
    with pytest.raises(RunError, match="on images cannot go on with latents"):
        train(on_latents, run, resume=True, verbose=0)
    train(on_latents, tmp_path / "latents", verbose=0)
    with pytest.raises(RunError, match="on images cannot go on with latents"):
        train(on_images, tmp_path / "latents", resume=True, verbose=0)


@pytest.mark.once
def test_wrong_sizes_are_refused_before_anything_is_written(settings, tmp_path):
    with pytest.raises(ValueError, match="multiples of 32"):
        train(settings(model="ci2p", image_size=48), tmp_path / "run", verbose=0)
    with pytest.raises(ValueError, match="variant"):
        train(settings(variant="huge"), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_averaged_weights_are_validated_and_kept(settings, photos, tmp_path):
    run = tmp_path / "run"
    model, history = train(settings(ema=0.9, epochs=2, learning_rate=1e-2), run, verbose=0)
    last = ViT.from_preset(run / "last")
    np.testing.assert_array_equal(last.head.get_weights()[0], model.head.get_weights()[0])
    report = evaluate(last, photos, verbose=0)
    assert report["top1"] == pytest.approx(history[-1]["val_top1"])
    # The checkpoint goes on from the weights themselves, and a finished run ends with the averages again.
    again, _ = train(settings(ema=0.9, epochs=2, learning_rate=1e-2), run, resume=True, verbose=0)
    np.testing.assert_allclose(again.head.get_weights()[0], model.head.get_weights()[0], rtol=0, atol=0)
    with np.load(run / "checkpoints" / "epoch-0002" / "state.npz") as state:
        kept = [array for array in state.values() if array.shape == (32, 3)]
    assert not any(np.array_equal(kept[0], array) for array in kept[1:])
    assert not np.array_equal(kept[0], model.head.get_weights()[0]), (
        "the checkpoint holds the weights, not the averages"
    )


@pytest.mark.once
def test_early_stopping(settings, tmp_path):
    run = tmp_path / "run"
    slow = {"patience": 2, "epochs": 9, "learning_rate": 1e-12}
    _, history = train(settings(**slow), run, verbose=0)
    assert len(history) == 3, "the first epoch stays the best, then two more"
    _, history = train(settings(**slow), run, resume=True, verbose=0)
    assert len(history) == 3, "it was finished"


@pytest.mark.once
def test_fine_tuning(settings, tmp_path):
    run = tmp_path / "run"
    trained, _ = train(settings(epochs=1), run, verbose=0)
    still = {"epochs": 1, "learning_rate": 1e-12, "variant": None, "init": str(run / "last")}
    tuned, _ = train(settings(**still), tmp_path / "same", verbose=0)
    for before, after in zip(trained.weights, tuned.weights, strict=True):
        np.testing.assert_allclose(before.numpy(), after.numpy(), atol=1e-6)
    folder = write_photos(tmp_path / "others", ("cat", "horse"))
    tuned, _ = train(dataclasses.replace(settings(**still), data=str(folder)), tmp_path / "other", verbose=0)
    assert tuned.class_names == ["cat", "horse"] and tuned.head.kernel.shape == (32, 2)
    block = tuned.get_layer("block_0").get_weights(), trained.get_layer("block_0").get_weights()
    np.testing.assert_allclose(block[0][0], block[1][0], atol=1e-6)
    with pytest.raises(ValueError, match="size is that of init"):
        settings(init="preset")


@pytest.mark.once
def test_class_weights(settings, photos, tmp_path):
    for i in range(5):
        (photos / "cat" / f"{i:03d}.png").unlink()
    model, _ = train(settings(class_weights={"cat": 30}, epochs=1), tmp_path / "run", verbose=0)
    assert model.loss.class_weights == [1, 30, 1]
    model, _ = train(settings(class_weights="balanced", epochs=1), tmp_path / "balanced", verbose=0)
    np.testing.assert_allclose(model.loss.class_weights, [20 / 24, 20 / 12, 20 / 24])
    with pytest.raises(RunError, match="cow, which .* does not have"):
        train(settings(class_weights={"cow": 2}), tmp_path / "wrong", verbose=0)


@pytest.mark.parametrize(
    ("dtype", "kind"), [("mixed_bfloat16", "ci2p"), pytest.param("mixed_float16", "vit", marks=pytest.mark.once)]
)
def test_mixed_precision(settings, nano_compressor, tmp_path, dtype, kind):
    run = tmp_path / "run"
    options = {"dtype": dtype, "model": kind, "ema": 0.9, "learning_rate": 3e-3, "epochs": 3}
    options |= {"compressor": str(nano_compressor)} if kind == "ci2p" else {}
    model, history = train(settings(**options), run, verbose=0)
    assert all(np.isfinite(row[key]) for row in history for key in ("loss", "val_loss"))
    assert history[-1]["loss"] < history[0]["loss"]
    assert model.get_layer("block_0").compute_dtype == dtype.removeprefix("mixed_")
    assert all(np.isfinite(w.numpy()).all() for w in CLASSIFIERS[kind].from_preset(run / "last").weights)


@pytest.mark.parametrize("dtype", [once("float32"), "mixed_float16"])
def test_a_nan_ends_the_run_and_the_last_good_weights_are_kept(settings, tmp_path, monkeypatch, dtype):
    run, collate = tmp_path / "run", LoadImage.collate

    def damaged(self, elements):
        images, labels = collate(self, elements)
        # What is read once an epoch has ended.
        return (np.full_like(images, np.nan) if (run / "history.csv").exists() else images), labels

    monkeypatch.setattr(LoadImage, "collate", damaged)
    with pytest.raises(RunError, match="no longer finite: nan.*last good epoch are kept"):
        train(settings(epochs=20, dtype=dtype), run, verbose=0)
    history = list(csv.DictReader((run / "history.csv").open()))
    assert 1 <= len(history) < 20
    assert all(np.isfinite(w.numpy()).all() for w in ViT.from_preset(run / "best").weights)
    with np.load(run / "checkpoints" / f"epoch-{len(history):04d}" / "state.npz") as state:
        assert all(np.isfinite(array).all() for array in state.values())


@pytest.fixture
def small_compressor():
    compressor = AnalysisTransform(num_filters=8, latent_channels=12)
    compressor.build((None, None, None, 3))
    return compressor


def test_training_on_latents(settings, photos, tmp_path, small_compressor):
    cache, run = tmp_path / "cache", tmp_path / "run"
    views = LatentCacheConfig(views=2, image_size=32, augmentation=CROP_AND_FLIP, batch_size=8)
    cache_latents(photos, cache, small_compressor, views, verbose=0)
    on_latents = settings(model="ci2p", data=str(cache), mixup=0.8, epochs=2)
    model, history = train(on_latents, run, verbose=0)
    # The model is whole: it has the compressor of the cache and classifies photos as it classified latents.
    assert model.freeze_compressor and model.compressor.latent_channels == 12
    np.testing.assert_array_equal(model.compressor.get_weights()[0], small_compressor.get_weights()[0])
    report = evaluate(CI2PViT.from_preset(run / "last"), photos, verbose=0)
    assert report["top1"] == pytest.approx(history[-1]["val_top1"])
    config = json.loads((run / "run.json").read_text())
    assert config["data"]["latents"]["views"] == 2 and config["data"]["photos"]["cat"] == 10

    tuned = dataclasses.replace(on_latents, init=str(run / "best"), variant=None)
    assert len(train(tuned, tmp_path / "more", verbose=0)[1]) == 2
    other = CI2PViT((32, 32, 3), num_classes=3, compressor={"num_filters": 8, "latent_channels": 12}, **NANO)
    other.save_to_preset(tmp_path / "other")
    with pytest.raises(DataError, match="made with another compressor"):
        train(dataclasses.replace(tuned, init=str(tmp_path / "other")), tmp_path / "no", verbose=0)
    for wrong in ({"model": "vit"}, {"freeze_compressor": False}, {"augment": "device"}):
        with pytest.raises(ValueError, match=f"latent cache.*{next(iter(wrong))}"):
            train(dataclasses.replace(on_latents, **wrong), tmp_path / "no", verbose=0)
    assert not (tmp_path / "no").exists()


def test_augmentation_on_the_device(settings, tmp_path):
    run = tmp_path / "run"
    options = {"augment": "device", "in_memory": True, "mixup": 0.8, "cutmix": 1.0, "learning_rate": 3e-3, "epochs": 2}
    options["augmentation"] = Augmentation().to_dict()
    model, history = train(settings(**options), run, verbose=0)
    assert history[1]["loss"] < history[0]["loss"]
    last = ViT.from_preset(run / "last")
    np.testing.assert_array_equal(last.head.get_weights()[0], model.head.get_weights()[0])
    train(settings(**options), run, resume=True, verbose=0)


@pytest.mark.once
class TestFromProbabilities:
    """A preset that gives probabilities is taken up as a model of logits, which the loss wants."""

    @pytest.fixture
    def softmax(self, tmp_path, small_compressor):
        """The preset of a CI2P-ViT that gives probabilities."""
        compressor = {"num_filters": 8, "latent_channels": 12}
        model = CI2PViT(
            (32, 32, 3), 3, activation="softmax", class_names=["bird", "cat", "dog"], compressor=compressor, **NANO
        )
        model.compressor.set_weights(small_compressor.get_weights())
        model.save_to_preset(tmp_path / "softmax")
        return str(tmp_path / "softmax")

    def options(self, softmax, **kwargs):
        return {"model": "ci2p", "variant": None, "init": softmax, "epochs": 1, **kwargs}

    def check(self, run, softmax, model):
        """The head is the preset's, and the model, as trained and as written, gives logits."""
        last = CI2PViT.from_preset(run / "last")
        assert model.activation is None and last.activation is None
        assert json.loads((run / "best" / "task.json").read_text())["config"]["activation"] is None
        for kept, given in zip(model.head.get_weights(), CI2PViT.from_preset(softmax).head.get_weights(), strict=True):
            np.testing.assert_allclose(kept, given, atol=1e-6)
        images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
        logits = last.predict_on_batch(images)
        assert np.abs(logits.sum(-1) - 1).min() > 0.1, "no probabilities"
        np.testing.assert_allclose(model.predict_on_batch(images), logits, atol=1e-5)

    def test_images(self, settings, softmax, tmp_path):
        run = tmp_path / "run"
        still = settings(**self.options(softmax, learning_rate=1e-12))
        model, history = train(still, run, verbose=0)
        self.check(run, softmax, model)
        # The loss is that of the model's own probabilities.
        images, labels = next(iter(image_folder(still.data, image_size=32, split="val", batch_size=6)))
        probabilities = keras.ops.softmax(model.predict_on_batch(images))
        expected = keras.losses.categorical_crossentropy(labels, probabilities, label_smoothing=0.1)
        assert history[0]["val_loss"] == pytest.approx(float(np.mean(keras.ops.convert_to_numpy(expected))), abs=1e-4)
        again, _ = train(still, run, resume=True, verbose=0)
        self.check(run, softmax, again)

    def test_other_classes(self, settings, softmax, tmp_path):
        folder = write_photos(tmp_path / "others", ("cat", "horse"))
        options = dataclasses.replace(settings(**self.options(softmax)), data=str(folder))
        model, _ = train(options, tmp_path / "run", verbose=0)
        assert model.activation is None and model.num_classes == 2

    @pytest.mark.parametrize("taught", [False, True])
    @pytest.mark.filterwarnings("ignore:The latents are made with a compressor of random weights")
    def test_latents(self, settings, photos, softmax, small_compressor, tmp_path, taught):
        teacher = None
        if taught:
            metadata = {"class_names": ["bird", "cat", "dog"], "value_range": [0, 10]}
            onnx_file(tmp_path / "means.onnx", metadata=metadata, size=(48, 48))
            teacher = open_teacher(tmp_path / "means.onnx", ("bird", "cat", "dog"))
        views = LatentCacheConfig(views=1, image_size=32, augmentation=CROP_AND_FLIP, batch_size=8)
        cache_latents(photos, tmp_path / "cache", small_compressor, views, teacher=teacher, verbose=0)
        options = self.options(softmax, learning_rate=1e-12, data=str(tmp_path / "cache"))
        model, history = train(settings(**options), tmp_path / "run", verbose=0)
        assert ("teacher_loss" in history[0]) == taught
        self.check(tmp_path / "run", softmax, model)


@pytest.mark.once
@pytest.mark.parametrize("init", [False, True])
def test_one_model_is_built_and_read_once(settings, photos, tmp_path, monkeypatch, init):
    options = {"epochs": 1}
    if init:
        ViT((32, 32, 3), 2, class_names=["cat", "horse"], **NANO).save_to_preset(tmp_path / "preset")
        options.update(variant=None, init=str(tmp_path / "preset"))
    built, read = [], []
    build, has_sha256, fit = keras.layers.Dense.build, presets.has_sha256, ViT.fit

    def counting_build(self, input_shape):
        built.extend([1] if self.name == "head" else [])
        build(self, input_shape)

    def count(path, digest):
        read.append(Path(path).name)
        return has_sha256(path, digest)

    def counting_fit(self, *args, **kwargs):
        assert len(built) == 1
        weights = [name for name in read if name.endswith(".h5")]
        assert len(weights) == len(set(weights)) and bool(weights) == init
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(presets, "has_sha256", count)
    monkeypatch.setattr(keras.layers.Dense, "build", counting_build)
    monkeypatch.setattr(ViT, "fit", counting_fit)
    train(settings(**options), tmp_path / "run", verbose=0)


@pytest.mark.once
class TestSettledByTheCache:
    """Image size and augmentation are those that the latents were made with."""

    @pytest.fixture
    def cache(self, photos, tmp_path, small_compressor):
        with pytest.warns(UserWarning, match="random weights"):
            views = LatentCacheConfig(views=1, image_size=64, augmentation=Augmentation(flip=0.25), batch_size=8)
            cache_latents(photos, tmp_path / "cache", small_compressor, views, verbose=0)
        return str(tmp_path / "cache")

    def test_they_are_recorded(self, settings, cache, tmp_path):
        """Also where a record of 0.1.0 says something else."""
        run, asked = tmp_path / "run", settings(model="ci2p", data=cache, image_size=256, epochs=1)
        train(asked, run, verbose=0)
        record = json.loads((run / "run.json").read_text())
        written = read_recipe(run / "recipe.toml")
        assert record["settings"]["recipe"]["image_size"] == written.image_size == 64
        assert record["settings"]["recipe"]["augmentation"]["flip"] == written.augmentation.flip == 0.25
        assert json.loads((run / "best" / "config.json").read_text())["config"]["image_shape"] == [64, 64, 3]
        (run / "run.json").unlink()
        record["settings"]["recipe"].update(asked.recipe.as_dict())
        (run / "config.json").write_text(json.dumps(record))
        assert len(train(asked, run, resume=True, verbose=0)[1]) == 1

    @pytest.mark.parametrize("wrong", [{"image_size": 512}, {"augmentation": {"flip": 0.123}}])
    def test_others_are_refused(self, settings, cache, tmp_path, wrong):
        (name,) = wrong
        options = settings(**{"model": "ci2p", "data": cache, "image_size": 64, **wrong})
        with pytest.raises(ValueError, match=f"latent cache, made with {name} .*can no longer be changed"):
            train(options, tmp_path / "run", verbose=0)
        assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_two_processes_do_not_take_up_one_run(settings, tmp_path):
    run = tmp_path / "run"
    train(settings(epochs=1), run, verbose=0)
    with run_lock(run), pytest.raises(RunError, match="in use by process"):
        train(settings(epochs=1), run, resume=True, verbose=0)
    assert not (run / "run.lock").exists()
    assert len(train(settings(epochs=1), run, resume=True, verbose=0)[1]) == 1


@pytest.mark.once
def test_tensorboard(settings, tmp_path):
    pytest.importorskip("tensorboardX")
    train(settings(epochs=1, tensorboard=True), tmp_path / "run", verbose=0)
    (log,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"top1/validation" in log.read_bytes()


def test_a_loss_that_is_not_finite_ends_the_run(settings, tmp_path):
    with pytest.raises(RunError, match="no longer finite: nan in step . of epoch 1"):
        train(settings(learning_rate=1e30), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.once
@pytest.mark.parametrize("wrong", [{"seed": -1}, {"augment": "gpu"}, {"num_workers": -1}, {"class_weights": "even"}])
def test_bad_settings(settings, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
