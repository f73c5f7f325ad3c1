"""Arguments of the models: each is written once, each takes effect or is an error."""

import inspect
import json
import warnings

import keras
import numpy as np
import pytest

import keras_ci2p
from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.presets import PresetError, open_preset

SMALL_COMPRESSOR = {"num_filters": 8, "latent_channels": 12}
DUAL = {"early_dim": 16, "merge_at": 1}
MODELS = [CI2PViT, CI2PViTDualScale, ViT]


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.fixture(params=MODELS)
def make(request, nano):
    sizes = dict(nano)
    if request.param is not ViT:
        sizes["compressor"] = SMALL_COMPRESSOR
    if request.param is CI2PViTDualScale:
        sizes.update(DUAL)

    def build(image_shape=(32, 32, 3), **kwargs):
        return request.param(image_shape, **{**sizes, **kwargs})

    build.model_class = request.param
    return build


def small_compressor(**kwargs):
    return Compressor(quality=None, channels=(8, 12), **kwargs)


class TestSignature:
    @pytest.mark.parametrize("model_class", MODELS)
    def test_a_configuration_is_the_arguments(self, model_class):
        backbone_class = model_class.backbone_cls
        own = ["image_shape", "num_classes", "variant", "class_names", "activation", "dtype", "name"]
        backbones = list(inspect.signature(backbone_class).parameters)
        assert {*inspect.signature(model_class).parameters} == {*own, *backbones}
        assert set(model_class.variants["tiny"]) <= set(backbones)
        model = model_class(
            (32, 32, 3), variant="tiny", num_layers=2, **({"merge_at": 1} if "merge_at" in backbones else {})
        )
        assert set(model.backbone.get_config()) == set(backbones)
        assert set(model.get_config()) == {*own, *backbones} - {"variant"}

    @pytest.mark.parametrize("model_class", MODELS)
    def test_defaults_are_the_backbones(self, model_class):
        parameters = inspect.signature(model_class).parameters
        for name, parameter in inspect.signature(model_class.backbone_cls).parameters.items():
            if name != "name":
                expected = None if name in model_class.variants["tiny"] else parameter.default
                assert parameters[name].default == expected

    def test_a_misspelt_argument(self, make, tmp_path):
        with pytest.raises(TypeError, match="hiden_dim.*hidden_dim"):
            make(hiden_dim=32)
        with pytest.raises(TypeError, match="hiden_dim"):
            make.model_class.backbone_cls(hiden_dim=32)
        make().save_to_preset(tmp_path / "preset")
        with pytest.raises(TypeError, match="hiden_dim.*hidden_dim"):
            make.model_class.from_preset(tmp_path / "preset", hiden_dim=32)

    def test_none_is_the_variants(self):
        model = CI2PViT((32, 32, 3), variant="tiny", num_layers=1, hidden_dim=None, drop_path_rate=None)
        assert model.backbone.hidden_dim == 192 and model.backbone.drop_path_rate == 0.1

    def test_numbers_of_numpy(self, make):
        sizes = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48}
        if make.model_class is CI2PViTDualScale:
            sizes.update(DUAL)
        for kind in (np.int64, np.uint8):
            numpy_sizes = {key: kind(value) for key, value in sizes.items()}
            model = make((kind(32), 32, 3), num_classes=kind(3), drop_path_rate=np.float32(0.5), **numpy_sizes)
            expected = make(num_classes=3, drop_path_rate=0.5, **sizes)
            assert json.dumps({**model.get_config(), "name": ""}) == json.dumps({**expected.get_config(), "name": ""})
        for wrong in (np.int64(0), 2.0, np.float32(3), "3", None):
            with pytest.raises(ValueError, match="num_classes"):
                make(num_classes=wrong)

    def test_old_names(self):
        from keras_ci2p import models

        with pytest.warns(DeprecationWarning, match="CompressorMixin"):
            former = models.CI2PClassifier
        model = CI2PViT((64, 32, 3), variant="tiny", num_layers=1, compressor=SMALL_COMPRESSOR)
        assert isinstance(model, former) and not issubclass(ViT, former)
        with pytest.warns(DeprecationWarning, match="patch_size"):
            assert model.size_multiple == 32 == CI2PViT.patch_size
        with pytest.warns(DeprecationWarning, match="grid_size"):
            assert model.token_grid == (2, 1)
        assert ViT((64, 32, 3), variant="tiny", num_layers=1, patch_size=8).patch_size == 8


class TestFromPreset:
    @pytest.fixture
    def preset(self, make, tmp_path):
        make(num_classes=2, class_names=["a", "b"], activation="softmax").save_to_preset(tmp_path / "preset")
        return tmp_path / "preset"

    def test_activation(self, make, preset):
        images = np.zeros((1, 32, 32, 3), "uint8")
        load = make.model_class.from_preset
        assert load(preset).activation == "softmax"
        model = load(preset, activation=None)
        assert model.activation is None and model.class_names == ["a", "b"]
        probabilities = to_numpy(load(preset)(images))
        np.testing.assert_allclose(to_numpy(keras.ops.softmax(model(images))), probabilities, atol=1e-6)
        assert load(preset, activation="sigmoid").activation == "sigmoid"
        assert load(preset, num_classes=3, activation=None).activation is None
        assert load(preset, num_classes=3).activation == "softmax"

    def test_class_names(self, make, preset):
        load = make.model_class.from_preset
        assert load(preset, class_names=None).class_names is None
        assert load(preset, class_names=["c", "d"]).class_names == ["c", "d"]

    def test_variant(self, make, preset):
        for load_weights in (True, False):
            with pytest.raises(TypeError, match="variant.*'base'"):
                make.model_class.from_preset(preset, load_weights=load_weights, variant="base")

    def test_load_preset(self, make, preset, tmp_path):
        loaded = keras_ci2p.load_preset(preset)
        assert type(loaded) is make.model_class and loaded.class_names == ["a", "b"]
        assert keras_ci2p.load_preset(str(preset), activation=None).activation is None
        # A run stands for its best model.
        (tmp_path / "run").mkdir()
        preset.rename(tmp_path / "run" / "best")
        assert type(keras_ci2p.load_preset(tmp_path / "run")) is make.model_class
        with pytest.raises(TypeError, match="hiden_dim"):
            keras_ci2p.load_preset(tmp_path / "run", hiden_dim=1)


def test_load_preset_of_a_compressor(tmp_path):
    from keras_ci2p.models.loading import open_classifier, open_preset_model

    small_compressor().save_to_preset(tmp_path / "compressor")
    assert type(keras_ci2p.load_preset(tmp_path / "compressor")) is Compressor
    model, preset = open_preset_model(tmp_path / "compressor", dtype="mixed_bfloat16")
    assert model.dtype_policy.name == "mixed_bfloat16" and preset.directory == tmp_path / "compressor"
    assert type(open_preset_model(preset)[0]) is Compressor
    with pytest.raises(PresetError, match="is a compressor"):
        open_classifier(tmp_path / "compressor")
    with pytest.raises(PresetError, match="Unknown preset"):
        keras_ci2p.load_preset(tmp_path / "absent")


@pytest.mark.parametrize("make", [CI2PViT, CI2PViTDualScale], indirect=True)
class TestCompressor:
    def test_by_name(self, make, tmp_path):
        """As in `from_preset`."""
        compressor = small_compressor()
        compressor.save_to_preset(tmp_path / "compressor")
        make().save_to_preset(tmp_path / "preset")
        for given in (tmp_path / "compressor", str(tmp_path / "compressor"), compressor, compressor.analysis):
            for model in (make(compressor=given), make.model_class.from_preset(tmp_path / "preset", compressor=given)):
                assert model.compressor.weights_hash() == compressor.analysis.weights_hash()
                assert model.compressor is not compressor.analysis
        for load in (
            lambda **kwargs: make(**kwargs),
            lambda **kwargs: make.model_class.from_preset(tmp_path / "preset", **kwargs),
        ):
            with pytest.raises(PresetError, match="^Unknown preset 'absent'"):
                load(compressor="absent")
            with pytest.raises(ValueError, match="`compressor` must be"):
                load(compressor=3)

    @pytest.mark.parametrize("source", [{"sha256": "ab"}, {}, {"name": "x"}, None])
    def test_source_without_a_name(self, make, source, tmp_path):
        model = make(compressor=small_compressor(source=source))
        model.save_to_preset(tmp_path / "preset")
        named = (source or {}).get("name")
        assert open_preset(tmp_path / "preset").metadata.get("compressor") == named
        assert make.model_class.from_preset(tmp_path / "preset").compressor.source == source

    def test_random_stays_random(self, make, tmp_path):
        model = make()
        model.save(tmp_path / "model.keras")
        model.save_to_preset(tmp_path / "preset")
        model.save_to_preset(tmp_path / "compact", storage="int8")
        model.save_weights(tmp_path / "model.weights.h5")
        other = make()
        other.load_weights(tmp_path / "model.weights.h5")
        small_compressor().save_to_preset(tmp_path / "compressor", storage="int8")
        loaded = [
            other,
            keras.saving.load_model(tmp_path / "model.keras"),
            make.model_class.from_preset(tmp_path / "preset"),
            make.model_class.from_preset(tmp_path / "compact"),
            make.model_class.from_preset(tmp_path / "preset", compressor=SMALL_COMPRESSOR),
            make(compressor=tmp_path / "compressor"),
        ]
        loaded.append(make(compressor=loaded[2].compressor))
        for model in loaded:
            assert model.compressor.is_randomly_initialized
            model.compile("adam", "mse")
            with pytest.warns(UserWarning, match="random weights"):
                model.make_train_function()

    def test_trained_stays_trained(self, make, tmp_path):
        """Also where it was random when it was loaded."""
        make().save_to_preset(tmp_path / "random")
        model = make.model_class.from_preset(tmp_path / "random")
        model.compressor.set_weights([to_numpy(weight) + 1 for weight in model.compressor.weights])
        model.save_to_preset(tmp_path / "trained")
        loaded = [model, make.model_class.from_preset(tmp_path / "trained")]
        loaded.append(make.model_class.from_preset(tmp_path / "random", compressor=model.compressor))
        for model in loaded:
            assert not model.compressor.is_randomly_initialized
            model.compile("adam", "mse")
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*random weights")
                model.make_train_function()
