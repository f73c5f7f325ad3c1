import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import NANO, once
from PIL import Image

import keras_ci2p
from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT, presets
from keras_ci2p.convert import CheckpointError, from_compressai, from_mmpretrain, read_compressor
from keras_ci2p.export import export
from keras_ci2p.presets import PresetError
from keras_ci2p.training import open_teacher

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

FORMAT_TEST = Path(__file__).parent / "golden" / "preset_v1"
SMALL_COMPRESSOR = {"num_filters": 8, "latent_channels": 12}
DUAL = {"early_dim": 16, "merge_at": 1}


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.fixture
def model(request, nano):
    """A `CI2PViT`, or of the class that a test asks for."""
    model_class = getattr(request, "param", CI2PViT)
    if model_class is CI2PViTDualScale:
        nano.update(DUAL)
    return model_class(
        (64, 64, 3),
        num_classes=3,
        class_names=["a", "b", "c"],
        compressor=SMALL_COMPRESSOR,
        activation="softmax",
        **nano,
    )


@pytest.fixture
def preset(model, tmp_path):
    model.save_to_preset(tmp_path / "preset", metadata={"note": "kept"})
    return tmp_path / "preset"


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, 64, 64, 3)).astype("uint8")


def test_layout(preset):
    names = {path.name for path in preset.iterdir()}
    assert names == {"config.json", "metadata.json", "model.weights.h5", "task.json", "task.weights.h5"}
    metadata = json.loads((preset / "metadata.json").read_text())
    assert metadata["format_version"] == 1 and metadata["note"] == "kept"
    assert set(metadata["files"]) == names - {"metadata.json"}
    assert json.loads((preset / "config.json").read_text())["registered_name"] == "keras_ci2p.hub>CI2PViTBackbone"
    task = json.loads((preset / "task.json").read_text())
    assert task["config"]["class_names"] == ["a", "b", "c"]
    assert [path.name for path in preset.parent.iterdir()] == ["preset"]


@pytest.mark.every_backend
@pytest.mark.parametrize("model", [CI2PViT, once(CI2PViTDualScale)], indirect=True)
def test_round_trip(model, preset, images):
    loaded = type(model).from_preset(preset)
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(to_numpy(loaded(images)), to_numpy(model(images)))


@pytest.mark.every_backend
def test_a_preset_of_another_backend_gives_its_predictions():
    """`preset_v1` was written once, on one backend, with its predictions beside it."""
    expected = np.load(FORMAT_TEST.with_suffix(".npz"))
    model = CI2PViT.from_preset(FORMAT_TEST)
    assert model.class_names == ["cat", "dog", "owl"]
    np.testing.assert_allclose(to_numpy(model(expected["images"])), expected["logits"], atol=1e-5)


@pytest.mark.every_backend
def test_fresh_head(preset, model, images):
    loaded = CI2PViT.from_preset(preset, num_classes=3)
    assert loaded.class_names is None
    assert (to_numpy(loaded.head.kernel) != to_numpy(model.head.kernel)).any()
    np.testing.assert_array_equal(to_numpy(loaded.backbone(images)), to_numpy(model.backbone(images)))
    assert CI2PViT.from_preset(preset, num_classes=7).num_classes == 7


def test_arguments(preset, model):
    random = CI2PViT.from_preset(preset, load_weights=False)
    kernels = [to_numpy(m.get_layer("block_0").qkv.kernel) for m in (random, model)]
    assert (kernels[0] != kernels[1]).any()
    other = CI2PViT.from_preset(preset, image_shape=(96, 32, 3), dtype="mixed_bfloat16")
    assert other.image_shape == (96, 32, 3) and other.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(to_numpy(other.get_layer("block_0").qkv.kernel), kernels[1])


@pytest.mark.every_backend
@pytest.mark.parametrize("model_class", [ViT, once(CI2PViTDualScale)])
def test_position_embedding_is_resized_with_the_image(model_class, nano, tmp_path):
    from keras_ci2p.layers.embedding import resize_position_embedding

    if model_class is CI2PViTDualScale:
        nano.update(DUAL, compressor=SMALL_COMPRESSOR)
    model = model_class((64, 64, 3), **nano)
    model.save_to_preset(tmp_path / "preset")
    larger = model_class.from_preset(tmp_path / "preset", image_shape=(96, 64, 3))
    for layer, stored in zip(larger.layers, model.layers, strict=True):
        expected = [to_numpy(weight) for weight in stored.weights]
        if layer.name == "position_embedding":
            expected = [resize_position_embedding(expected[0], (4, 4), (6, 4))]
        for weight, value in zip(layer.weights, expected, strict=True):
            np.testing.assert_allclose(to_numpy(weight), value, atol=1e-7)
    assert larger(np.zeros((1, 96, 64, 3), "uint8")).shape == (1, 10)


def test_names():
    assert "ci2p_vit_base" in keras_ci2p.list_presets()
    with pytest.raises(PresetError, match="Unknown preset 'ci2p_vit_bass'.*ci2p_vit_base"):
        CI2PViT.from_preset("ci2p_vit_bass")


@pytest.mark.parametrize("load", [CI2PViT.from_preset, Compressor.from_preset, keras_ci2p.load_preset, read_compressor])
def test_compressais_names_are_listed_too(load):
    """Where a name is unknown, whoever was to load it."""
    with pytest.raises(
        PresetError, match="Unknown preset 'bmshj'.*CompressAI's compressors: .*mbt2018-mean-mse-1 to 8"
    ):
        load("bmshj")
    with pytest.raises(PresetError, match="Did you mean 'bmshj2018-factorized-mse-5'"):
        load("bmshj2018-factorized-mse5")


def test_home_directory(model, tmp_path, monkeypatch, images):
    """Whatever takes a path of models; of data, files and settings `tests/plain/test_utils.py` tries it."""
    home, here = tmp_path / "home", tmp_path / "here"
    for directory in (home, here):
        directory.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    model.save_to_preset("~/model")
    for load in (CI2PViT.from_preset, keras_ci2p.load_preset):
        np.testing.assert_array_equal(to_numpy(load("~/model")(images)), to_numpy(model(images)))
    Compressor(quality=None, channels=(8, 12)).save_to_preset("~/compressor")
    compressor = read_compressor("~/compressor")
    weights = CI2PViT((64, 64, 3), 3, compressor="~/compressor", **NANO).compressor.get_weights()
    for ours, theirs in zip(weights, compressor.analysis.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    Image.fromarray(images[0]).save(home / "image.png")
    assert model.classify("~/image.png") == model.classify(images[0])
    for name in ("model.onnx", "checkpoint.pth"):
        (home / name).write_bytes(b"1234")
    with pytest.raises(FileExistsError, match=f"{home}/model.onnx exists already"):
        export(model, "~/model.onnx", "onnx")
    for read in (read_compressor, from_compressai, from_mmpretrain):
        with pytest.raises(CheckpointError, match=f"{home}/checkpoint.pth"):
            read("~/checkpoint.pth")
    with pytest.raises(FileNotFoundError, match=f"{home}/absent.keras"):
        open_teacher("~/absent.keras", ["cat"])
    assert not list(here.iterdir())


def test_second_names(tmp_path, monkeypatch, model):
    from keras_ci2p import presets as locations

    model.save_to_preset(tmp_path / "one")
    (tmp_path / "aliases.json").write_text('{"best": "one", "dangling": "absent"}')
    monkeypatch.setattr(locations, "weights_directory", lambda: tmp_path)
    assert keras_ci2p.list_presets() == ["best", "one"]
    assert CI2PViT.from_preset("best").class_names == ["a", "b", "c"]
    with pytest.raises(PresetError, match="Unknown preset 'dangling'"):
        CI2PViT.from_preset("dangling")


def test_architecture_preset():
    with pytest.warns(UserWarning, match="without weights"):
        model = CI2PViT.from_preset("ci2p_vit_base", num_classes=4)
    assert model.backbone.hidden_dim == 768 and model.num_classes == 4


def test_only_our_own_checkout_offers_its_weights(tmp_path, monkeypatch):
    from keras_ci2p import presets as locations

    (tmp_path / "keras_ci2p" / "presets").mkdir(parents=True)
    (tmp_path / "weights" / "some").mkdir(parents=True)
    (tmp_path / "weights" / "some" / "metadata.json").write_text("{}")
    monkeypatch.setattr(locations, "__file__", str(tmp_path / "keras_ci2p" / "presets.py"))
    assert locations.weights_directory() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert locations.list_presets() == []
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "keras_ci2p"\n')
    assert locations.list_presets() == ["some"]


class TestBadPresets:
    def test_absent(self, tmp_path):
        with pytest.raises(PresetError, match="Unknown preset"):
            CI2PViT.from_preset(tmp_path / "absent")
        with pytest.raises(PresetError, match="no metadata.json"):
            CI2PViT.from_preset(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "task.json", "model.weights.h5", "task.weights.h5"])
    def test_missing_or_truncated_file(self, preset, name):
        path = preset / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(PresetError, match=f"{name} is damaged"):
            CI2PViT.from_preset(preset)
        path.unlink()
        with pytest.raises(PresetError, match=f"lacks its file {name}"):
            CI2PViT.from_preset(preset)

    def test_foreign_file(self, preset, nano, tmp_path):
        CI2PViT((32, 32, 3), compressor=SMALL_COMPRESSOR, **nano).save_to_preset(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "task.weights.h5", preset)
        with pytest.raises(PresetError, match="from another preset"):
            CI2PViT.from_preset(preset)

    def test_another_model(self, preset):
        for other in (ViT, CI2PViTDualScale):
            with pytest.raises(PresetError, match=f"does not describe a {other.__name__}"):
                other.from_preset(preset)

    def test_metadata(self, preset):
        path = preset / "metadata.json"
        metadata = json.loads(path.read_text())
        path.write_text(json.dumps({**metadata, "format_version": 99}))
        with pytest.raises(PresetError, match="format 99"):
            CI2PViT.from_preset(preset)
        path.write_text(json.dumps({**metadata, "files": {**metadata["files"], "../secret": "0"}}))
        with pytest.raises(PresetError, match="outside"):
            CI2PViT.from_preset(preset)
        path.write_text("{")
        with pytest.raises(PresetError, match="not valid JSON"):
            CI2PViT.from_preset(preset)

    def rewrite(self, preset, name, value):
        """Changes a file and its checksum, as someone who writes presets by hand would."""
        from keras_ci2p.utils import file_sha256 as sha256

        (preset / name).write_text(json.dumps(value))
        metadata = json.loads((preset / "metadata.json").read_text())
        metadata["files"][name] = sha256(preset / name)
        (preset / "metadata.json").write_text(json.dumps(metadata))

    def test_configuration_cannot_name_code(self, preset):
        config = json.loads((preset / "config.json").read_text())
        self.rewrite(preset, "config.json", {**config, "registered_name": "keras.layers>Lambda"})
        with pytest.raises(PresetError, match="does not describe a CI2PViT"):
            CI2PViT.from_preset(preset)

    def test_configuration_that_does_not_fit(self, preset):
        config = json.loads((preset / "config.json").read_text())
        wrong = {**config, "config": {**config["config"], "hidden_dim": 64}}
        self.rewrite(preset, "config.json", wrong)
        with pytest.raises(PresetError, match=r"model.weights.h5 does not fit"):
            CI2PViT.from_preset(preset)
        wrong["config"]["surprise"] = 1
        self.rewrite(preset, "config.json", wrong)
        with pytest.raises(PresetError, match="surprise"):
            CI2PViT.from_preset(preset)


class TestWriting:
    def test_replaces_a_preset_but_nothing_else(self, model, preset, tmp_path):
        before = (preset / "metadata.json").read_text()
        model.save_to_preset(preset)
        assert (preset / "metadata.json").read_text() != before
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_text("mine")
        with pytest.raises(FileExistsError, match="no preset"):
            model.save_to_preset(tmp_path / "photos")
        assert (tmp_path / "photos" / "cat.jpg").read_text() == "mine"

    def test_a_failure_leaves_the_old_preset_whole(self, model, preset, monkeypatch, images):
        def fail(file):
            file.write(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(model.backbone, "save_weights", fail)
        with pytest.raises(OSError, match="disk full"):
            model.save_to_preset(preset)
        monkeypatch.undo()
        assert [path.name for path in preset.parent.iterdir()] == ["preset"]
        CI2PViT.from_preset(preset)

    def test_killed_writers_are_cleaned_up(self, preset, model):
        from keras_ci2p.utils import clean_up

        preset.rename(preset.with_name("preset.replaced-1234"))
        preset.with_name("preset.partial-5678").mkdir()
        clean_up(preset.parent)
        assert [path.name for path in preset.parent.iterdir()] == ["preset"]
        assert presets.open_preset(preset).has_weights
