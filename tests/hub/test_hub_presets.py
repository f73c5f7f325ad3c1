"""Presets that both libraries read and write."""

import json
import warnings

import keras
import keras_hub
import numpy as np
import pytest
from conftest import once
from keras_hub.src.utils import preset_utils
from nano_models import DUAL, PLAIN, assert_same_weights, our_model, to_numpy

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, hub
from keras_ci2p.presets import PresetError, open_preset
from keras_ci2p.utils import file_sha256 as sha256
from keras_ci2p.weight_storage import STORAGES

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once
# What KerasHub does with it differs from the other in nothing that a backend would see.
DUAL_SCALE = once(CI2PViTDualScale)

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")


@pytest.fixture
def preset(tmp_path):
    """One that `CI2PViT` has saved."""
    our_model().save_to_preset(tmp_path / "ours")
    return str(tmp_path / "ours")


@pytest.mark.every_backend
@pytest.mark.parametrize("our_class", [CI2PViT, DUAL_SCALE])
def test_there_and_back(our_class, tmp_path):
    ours = our_model(our_class, freeze_compressor=False, activation="softmax")
    ours.save_to_preset(tmp_path / "ours")
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "ours"))
    assert type(theirs).__name__ == f"{our_class.__name__}ImageClassifier"
    assert theirs.class_names == ["cat", "dog", "owl"] and theirs.activation == "softmax"
    assert not theirs.freeze_compressor and theirs.preprocessor.image_size == (64, 64)
    assert_same_weights(theirs, ours)

    theirs.save_to_preset(tmp_path / "theirs")
    again = our_class.from_preset(tmp_path / "theirs")
    assert {**again.get_config(), "name": ""} == {**ours.get_config(), "name": ""}
    assert_same_weights(again, ours)


@pytest.mark.parametrize("storage", STORAGES)
def test_stored_in_fewer_bits(storage, tmp_path):
    ours = our_model(hidden_dim=64)
    ours.save_to_preset(tmp_path / "ours", storage=storage)
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "ours"))
    assert_same_weights(theirs, CI2PViT.from_preset(tmp_path / "ours"))
    rounded = any((to_numpy(a) != to_numpy(b)).any() for a, b in zip(theirs.weights, ours.weights, strict=True))
    assert rounded == (storage != "float32")


def test_quantised(tmp_path):
    ours = our_model()
    ours.quantize("int8")
    ours.save_to_preset(tmp_path / "ours")
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "ours"))
    assert theirs.get_layer("block_1").qkv.quantization_mode == "int8"
    np.testing.assert_allclose(to_numpy(theirs(IMAGES)), to_numpy(ours(IMAGES)), atol=1e-5)
    theirs.save_to_preset(tmp_path / "theirs")
    assert_same_weights(CI2PViT.from_preset(tmp_path / "theirs"), ours)


@pytest.mark.parametrize("model_class", [CI2PViT, DUAL_SCALE])
def test_quantize(model_class, tmp_path):
    """As of our own classifiers, where Keras would reach the head alone."""
    ours = our_model(model_class)
    ours.save_to_preset(tmp_path / "whole")
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "whole"))
    for model in (ours, theirs):
        model.quantize("int8")
    assert_same_weights(theirs, ours)
    expected = to_numpy(theirs(IMAGES))
    np.testing.assert_allclose(expected, to_numpy(ours(IMAGES)), atol=1e-5)
    theirs.save_to_preset(tmp_path / "theirs")
    for load in (keras_hub.models.ImageClassifier.from_preset, model_class.from_preset):
        loaded = load(str(tmp_path / "theirs"))
        assert_same_weights(loaded, theirs)
        np.testing.assert_allclose(to_numpy(loaded(IMAGES)), expected, atol=1e-5)
    theirs.compile("sgd", "mse", metrics=["mae"])
    with pytest.raises(ValueError, match="is quantised.*do not learn"):
        theirs.fit(IMAGES, np.zeros((len(IMAGES), 3)), verbose=0)
    with pytest.raises(ValueError, match="quantised already"):
        theirs.backbone.quantize("int8")
    backbone = keras_hub.models.Backbone.from_preset(str(tmp_path / "whole"))
    backbone.quantize("int8")
    assert backbone.get_layer("block_1").qkv.quantization_mode == "int8"
    np.testing.assert_allclose(to_numpy(backbone(IMAGES)), to_numpy(theirs.backbone(IMAGES)), atol=1e-5)


@pytest.mark.every_backend
def test_predictions_of_images_of_any_size(preset):
    theirs = keras_hub.models.ImageClassifier.from_preset(preset)
    large = np.full((1, 100, 80, 3), 200, "uint8")
    expected = to_numpy(theirs(np.full((1, 64, 64, 3), 200, "uint8")))
    np.testing.assert_allclose(theirs.predict(large, verbose=0), expected, atol=1e-6)
    with pytest.raises(ValueError, match="multiples of 32"):
        hub.CI2PViTBackbone(**{**PLAIN, "image_shape": (None, None, 3)})(np.zeros((1, 48, 48, 3)))


def test_arguments(preset):
    theirs = keras_hub.models.ImageClassifier.from_preset(
        preset, num_classes=5, image_shape=(96, 32, 3), dtype="mixed_bfloat16"
    )
    assert theirs.num_classes == 5 and theirs.class_names is None
    assert theirs.backbone.image_shape == (96, 32, 3) and theirs.preprocessor.image_size == (96, 32)
    assert theirs.dtype_policy.name == "mixed_bfloat16" and theirs.get_layer("head").compute_dtype == "float32"
    assert_same_weights(theirs.backbone, CI2PViT.from_preset(preset).backbone)
    # Keras would pass over these.
    for wrong in ({"num_class": 4}, {"variant": "small"}, {"hidden_dim": 64}):
        with pytest.raises(TypeError, match=f"has no argument '{next(iter(wrong))}', and its sizes are the backbone's"):
            keras_hub.models.ImageClassifier.from_preset(preset, **wrong)
        with pytest.raises(TypeError, match=f"has no argument '{next(iter(wrong))}'"):
            hub.CI2PViTImageClassifier(theirs.backbone, num_classes=3, **wrong)


def test_a_backbone_alone(tmp_path):
    backbone = hub.CI2PViTBackbone(**PLAIN, dtype="mixed_bfloat16")
    backbone.save_to_preset(tmp_path / "preset")
    ours = CI2PViT.from_preset(tmp_path / "preset", num_classes=4, dtype="float32")
    assert_same_weights(ours.backbone, backbone)
    theirs = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "preset"), num_classes=4)
    assert isinstance(theirs, hub.CI2PViTImageClassifier) and theirs.preprocessor.image_size == (64, 64)


def test_theirs_have_checksums(preset, tmp_path):
    theirs = keras_hub.models.ImageClassifier.from_preset(preset)
    theirs.save_to_preset(tmp_path / "theirs")
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert names >= {"preprocessor.json", "image_converter.json"}
    # The preprocessor may be edited.
    assert set(open_preset(tmp_path / "theirs").metadata["files"]) == {
        "config.json",
        "task.json",
        "model.weights.h5",
        "task.weights.h5",
    }
    path = tmp_path / "theirs" / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PresetError, match="model.weights.h5 is damaged"):
        CI2PViT.from_preset(tmp_path / "theirs")


def test_weights_in_several_files(tmp_path):
    backbone = hub.CI2PViTBackbone(**PLAIN)
    backbone.save_to_preset(tmp_path / "preset", max_shard_size=1e-4)
    shards = list((tmp_path / "preset").glob("model_*.weights.h5"))
    assert len(shards) > 1
    ours = CI2PViT.from_preset(tmp_path / "preset", num_classes=3)
    assert_same_weights(ours.backbone, backbone)
    shards[0].unlink()
    with pytest.raises(PresetError, match=f"lacks its file {shards[0].name}"):
        CI2PViT.from_preset(tmp_path / "preset", num_classes=3)


def test_presets_that_name_our_own_classes(preset, tmp_path):
    """As those are that were written before `keras_ci2p.hub`."""
    expected = CI2PViT.from_preset(preset)
    directory = tmp_path / "ours"
    config = json.loads((directory / "config.json").read_text())
    assert config["registered_name"] == "keras_ci2p.hub>CI2PViTBackbone"
    config["registered_name"] = "keras_ci2p>CI2PViTBackbone"
    config["config"]["dtype"] = "float32"
    (directory / "config.json").write_text(json.dumps(config))
    metadata = json.loads((directory / "metadata.json").read_text())
    metadata["files"] = {name: sha256(directory / name) for name in metadata["files"]}
    (directory / "metadata.json").write_text(json.dumps(metadata))
    assert open_preset(directory).registered_name() == "keras_ci2p>CI2PViTBackbone"
    assert CI2PViT.from_preset(directory).get_config() == expected.get_config()


def test_another_kind(preset):
    with pytest.raises(ValueError, match="Unable to find a subclass of CI2PViTDualScaleImageClassifier"):
        hub.CI2PViTDualScaleImageClassifier.from_preset(preset)
    with pytest.raises(PresetError, match="does not describe a CI2PViTDualScale"):
        CI2PViTDualScale.from_preset(preset)


class TestOnline:
    """Handles of Hugging Face and Kaggle, whose clients are stood in for by a directory."""

    def test_hugging_face(self, preset, monkeypatch):
        asked = []

        def download(repo_id, filename):
            asked.append((repo_id, filename))
            return existing(preset, filename, preset_utils.EntryNotFoundError("404"))

        monkeypatch.setattr(preset_utils.huggingface_hub, "hf_hub_download", download)
        self.check("hf://someone/animals", preset)
        assert ("someone/animals", "model.weights.h5") in asked

    def test_kaggle(self, preset, monkeypatch):
        asked = []

        def download(handle, path):
            asked.append((handle, path))
            return existing(preset, path, preset_utils.KaggleApiHTTPError("404 Client Error"))

        monkeypatch.setattr(preset_utils.kagglehub, "model_download", download)
        self.check("kaggle://someone/ci2p/keras/animals", preset)
        assert ("someone/ci2p/keras/animals", "model.weights.h5") in asked

    def check(self, handle, preset):
        theirs = keras_hub.models.ImageClassifier.from_preset(handle)
        assert isinstance(theirs, hub.CI2PViTImageClassifier)
        assert_same_weights(theirs, CI2PViT.from_preset(preset))


def existing(directory, name, error):
    path = f"{directory}/{name}"
    try:
        open(path).close()
    except FileNotFoundError:
        raise error from None
    return path


@pytest.mark.every_backend
def test_frozen_and_lora(preset):
    theirs = keras_hub.models.ImageClassifier.from_preset(preset)
    compressor = {weight.path for weight in theirs.get_layer("compressor").weights}
    assert compressor.isdisjoint(weight.path for weight in theirs.trainable_weights)
    theirs.freeze_compressor = False
    assert compressor <= {weight.path for weight in theirs.trainable_weights}
    theirs.backbone.enable_lora(2)
    assert {weight.path.split("/")[-2] for weight in theirs.backbone.trainable_weights} == {"qkv"}


def test_dual_scale_positions_are_not_resized_by_kerashub(tmp_path):
    our_model(CI2PViTDualScale).save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError):
        keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"), image_shape=(96, 96, 3))
    larger = CI2PViTDualScale.from_preset(tmp_path / "preset", image_shape=(96, 96, 3))
    larger.save_to_preset(tmp_path / "larger")
    theirs = keras_hub.models.Backbone.from_preset(str(tmp_path / "larger"))
    assert theirs.image_shape == (96, 96, 3) and theirs.early_dim == DUAL["early_dim"]


def test_compressor(tmp_path):
    """KerasHub's models warn of a random compressor and have a latent classifier, as ours."""
    Compressor(quality=None, channels=(8, 12)).save_to_preset(tmp_path / "compressor")
    backbone = hub.CI2PViTBackbone(**{**PLAIN, "compressor": str(tmp_path / "compressor")})
    theirs = hub.CI2PViTImageClassifier(backbone, num_classes=np.int64(3))
    latents = theirs.compressor.encode(IMAGES)
    np.testing.assert_allclose(to_numpy(theirs.latent_classifier(latents)), to_numpy(theirs(IMAGES)), atol=1e-5)
    with pytest.warns(UserWarning, match="random weights"):
        theirs(IMAGES, training=True)


def test_home_directory(tmp_path, monkeypatch):
    """KerasHub itself would write to a folder called "~"."""
    home, here = tmp_path / "home", tmp_path / "here"
    for directory in (home, here):
        directory.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    backbone = hub.CI2PViTBackbone(**PLAIN)
    model = hub.CI2PViTImageClassifier(backbone, num_classes=3)
    for kind, each in (("Backbone", backbone), ("ImageClassifier", model)):
        each.save_to_preset(f"~/{kind}")
        loaded = getattr(hub, f"CI2PViT{kind}").from_preset(f"~/{kind}")
        assert loaded.count_params() == each.count_params()
    assert not list(here.iterdir())


def test_an_activation_that_cannot_be_loaded_is_refused():
    with pytest.raises(ValueError, match="activation of the head could not be loaded again"):
        hub.CI2PViTImageClassifier(hub.CI2PViTBackbone(**PLAIN), num_classes=3, activation=lambda logits: logits)


def test_loss_and_activation():
    """As of our own classifiers."""
    for activation, loss in (
        (None, "sparse_categorical_crossentropy"),
        ("softmax", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    ):
        model = hub.CI2PViTImageClassifier(hub.CI2PViTBackbone(**PLAIN), num_classes=3, activation=activation)
        model.compile("sgd", loss)
        with pytest.warns(UserWarning, match="the loss takes"):
            model.make_train_function()
        model.compile("sgd")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.make_train_function()
