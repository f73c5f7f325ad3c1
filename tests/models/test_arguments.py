"""Arguments of the models: each is written once, each takes effect or is an error."""

import inspect
import itertools
import json
import warnings

import keras
import numpy as np
import pytest

import keras_ci2p
from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.presets import PresetError, open_preset

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

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
        for wrong in (np.int64(0), 2.0, np.float32(3), "3", True):
            with pytest.raises(ValueError, match="num_classes"):
                make(num_classes=wrong)
        model = make(np.array([32, 32, 3]), class_names=np.array(["a", "b"]), mlp_dim=np.array(48))
        json.dumps(model.get_config())
        assert model.class_names == ["a", "b"] and type(model.class_names[0]) is str

    def test_numbers_that_are_none(self, make):
        for shape in (64, "64", None, (64, 64), (64.0, 64, 3), ("64", "64", 3), np.array([64.0, 64, 3]), [64, 64, 4]):
            for build in (make, make.model_class.backbone_cls):
                with pytest.raises(ValueError, match="`image_shape` must be"):
                    build(shape)
        for name in ("hidden_dim", "num_layers", "num_heads", "mlp_dim"):
            for wrong in (0, -4, 2.5, "2", True):
                with pytest.raises(ValueError, match=f"`{name}` must be a positive integer. Received: {name}="):
                    make(**{name: wrong})
        for wrong in (1, -0.1, "0.1"):
            with pytest.raises(ValueError, match="`drop_path_rate` must be in"):
                make(drop_path_rate=wrong)

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


class TestClassNames:
    def test_their_number(self, make):
        assert make(class_names=["a", "b"]).num_classes == 2 and make().num_classes == 10
        assert make(class_names=("a", "b"), num_classes=np.int64(2)).class_names == ["a", "b"]

    def test_what_are_none(self, make):
        no_lists = [
            {"a", "b"},
            frozenset("ab"),
            {"a": 0, "b": 1},
            {0: "a", 1: "b"},
            {"a": 0, "b": 1}.keys(),
            "ab",
            b"ab",
        ]
        no_lists += [[0, 1], ["a", None], ["a", ""], np.arange(2), 2, (name for name in "ab"), []]
        wrong = [(names, "list of texts") for names in no_lists]
        wrong += [(["a", "a"], "Received twice: a"), (["a", "b", "c"], "one name for each class")]
        model = make(num_classes=2, class_names=["a", "b"])
        for names, message in wrong:
            with pytest.raises(ValueError, match=f"`class_names` must .*{message}"):
                make(num_classes=2, class_names=names)
            with pytest.raises(ValueError, match=f"`class_names` must .*{message}"):
                model.class_names = names
        assert model.class_names == ["a", "b"]
        for names in (["c", "d"], None):
            model.class_names = names
            assert model.get_config()["class_names"] == names


@pytest.mark.every_backend
class TestAssignment:
    """Of what the layers were made of: an error on every backend, of layers too, which PyTorch would take unasked."""

    def test_of_a_classifier(self, make):
        model = make(num_classes=2)
        names = ["head", "image_shape", "grid_size", "backbone", "num_classes", "activation", "hidden_dim", "variant"]
        for name, value in itertools.product(names, (keras.layers.Dense(5), 5, None)):
            with pytest.raises(AttributeError, match=f"`{name}` of a .* cannot be assigned"):
                setattr(model, name, value)
        assert model.head.units == 2 and model.num_classes == 2
        # As everywhere, what says nothing of the layers.
        model.note = "mine"
        assert model.note == "mine"

    def test_of_a_backbone(self, make):
        backbone = make().backbone
        for name in ("hidden_dim", "num_layers", "drop_path_rate", "image_shape"):
            with pytest.raises(AttributeError, match=f"`{name}` of a .* cannot be assigned"):
                setattr(backbone, name, 1)

    @pytest.mark.parametrize("make", [CI2PViT, CI2PViTDualScale], indirect=True)
    def test_of_the_compressor(self, make):
        model, other = make(), small_compressor().analysis
        before = model.compressor
        for owner in (model, model.backbone):
            for name in ("compressor", "patch_generator", "latent_classifier"):
                with pytest.raises(AttributeError, match=f"`{name}` of a .* cannot be assigned"):
                    setattr(owner, name, other)
        assert model.compressor is before
        model.freeze_compressor = False
        assert not model.compressor.frozen

    def test_of_layers(self):
        """Keras's own tracking refuses it, or it works."""
        embedding, other = keras_ci2p.layers.CI2PPatchEmbedding(16, SMALL_COMPRESSOR), small_compressor().analysis
        embedding.compressor = other
        images = np.ones((1, 32, 32, 3), "float32")
        assert embedding(images).shape == (1, 1, 16) and embedding.compressor is other
        with pytest.raises(ValueError, match="cannot add new elements of state"):
            embedding.compressor = small_compressor().analysis


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

    def test_the_argument_is_to_blame(self, make, preset):
        wrong = [
            ({"image_shape": 96}, "`image_shape` must be"),
            ({"image_shape": "96"}, "`image_shape` must be"),
            ({"image_shape": (40, 40, 3)}, "multiples of"),
            ({"class_names": ["a", "b", "c"]}, "has 2 classes: give `num_classes` too"),
            ({"class_names": {"a", "b"}}, "list of texts"),
            ({"num_classes": "4"}, "`num_classes` must be"),
            ({"num_classes": 3, "class_names": ["a", "b"]}, "one name for each class"),
            ({"dtype": "float7"}, "float7"),
            ({"activation": "nope"}, "nope"),
            ({"drop_path_rate": 2}, "`drop_path_rate` must be"),
            ({"num_heads": 1}, "`num_heads` does not fit the weights.*num_heads=2"),
            ({"hidden_dim": 64}, "`hidden_dim` does not fit the weights.*hidden_dim=32"),
            ({"num_layers": 1}, "`num_layers` does not fit the weights"),
            ({"mlp_dim": "48"}, "`mlp_dim` does not fit the weights"),
        ]
        for arguments, message in wrong:
            with pytest.raises(ValueError, match=message) as caught:
                make.model_class.from_preset(preset, **arguments)
            assert "configuration in" not in str(caught.value)

    def test_sizes(self, make, preset):
        """Of another model's weights some would be left out, or cut into other heads."""
        load = make.model_class.from_preset
        assert load(preset, num_heads=2, num_layers=np.int64(2)).backbone.num_heads == 2
        sizes = {"num_layers": 3, "num_heads": 4}
        model = load(preset, load_weights=False, **sizes)
        assert {name: getattr(model.backbone, name) for name in sizes} == sizes and model.class_names == ["a", "b"]

    def test_the_configuration_is_to_blame(self, make, preset):
        stored = json.loads((preset / "config.json").read_text())
        stored["config"]["num_heads"] = 5
        (preset / "config.json").write_text(json.dumps(stored))
        metadata = json.loads((preset / "metadata.json").read_text())
        metadata["files"]["config.json"] = keras_ci2p.utils.file_sha256(preset / "config.json")
        (preset / "metadata.json").write_text(json.dumps(metadata))
        for arguments in ({}, {"image_shape": (64, 64, 3)}, {"num_classes": 3}):
            with pytest.raises(PresetError, match="The configuration in .* does not fit"):
                make.model_class.from_preset(preset, **arguments)

    def test_metadata_of_numpy(self, make, tmp_path):
        metadata = {"top1": np.float32(0.5), "counts": np.arange(3), "by": {np.int64(1): [np.bool_(True)]}}
        make().save_to_preset(tmp_path / "preset", metadata=metadata)
        written = open_preset(tmp_path / "preset").metadata
        assert {key: written[key] for key in metadata} == {"top1": 0.5, "counts": [0, 1, 2], "by": {"1": [True]}}

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


def doubled(x):
    return 2 * x


@keras.saving.register_keras_serializable("tests")
def increased(x):
    return x + 1


@pytest.mark.parametrize("activation", [lambda x: x, doubled], ids=["lambda", "function"])
def test_an_activation_that_cannot_be_loaded(make, activation, tmp_path):
    model = make(activation=activation)
    with pytest.raises(ValueError, match="activation of the head could not be loaded again"):
        model.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()
    with pytest.warns(UserWarning, match="could not be loaded again.*custom_objects"):
        model.save(tmp_path / "model.keras")
    if activation is doubled:
        custom = {"doubled": doubled}
        assert keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom).head.activation is doubled
    # What Keras finds by its name.
    for known in (increased, keras.layers.ReLU(), keras.ops.relu, "softmax", None):
        model = make(activation=known)
        model.save_to_preset(tmp_path / "preset")
        loaded = make.model_class.from_preset(tmp_path / "preset")
        images = np.ones((1, 32, 32, 3), "float32")
        np.testing.assert_allclose(to_numpy(loaded(images)), to_numpy(model(images)), atol=1e-6)


@pytest.mark.every_backend
def test_loss_and_activation(make):
    """Probabilities taken for logits, or the other way round, train to nothing much."""
    labels = {"sparse_categorical_crossentropy": True, "categorical_crossentropy": True, "mse": None}
    losses = {
        **labels,
        keras.losses.categorical_crossentropy: True,
        keras.losses.CategoricalCrossentropy(): True,
        keras.losses.BinaryCrossentropy(from_logits=True): False,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True): False,
        keras.losses.MeanSquaredError(): None,
        None: None,
    }
    for activation in (None, "softmax", "sigmoid"):
        model = make(activation=activation)
        for loss, takes_probabilities in losses.items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model.compile("sgd", loss)
                model.make_train_function()
            told = [warning for warning in caught if "the loss takes" in str(warning.message)]
            assert bool(told) == (takes_probabilities is not None and takes_probabilities == (activation is None))


def test_compressors_take_numbers_of_numpy(tmp_path):
    compressor = Compressor(
        quality=None, channels=np.array([8, 12]), source={"name": "x", "step": np.int64(3), "bpp": np.array([0.5])}
    )
    compressor.save_to_preset(tmp_path / "preset")
    loaded = Compressor.from_preset(tmp_path / "preset")
    assert (loaded.num_filters, loaded.latent_channels) == (8, 12) and loaded.source["step"] == 3
    assert json.dumps(Compressor(quality=np.int64(1)).get_config())
    for wrong in ({"quality": None, "channels": 8}, {"quality": None, "channels": (8, 12, 3)}, {"quality": "5"}):
        with pytest.raises(ValueError, match="`channels` must be two integers|`quality` of"):
            Compressor(**wrong)
    with pytest.raises(ValueError, match="float7") as caught:
        Compressor.from_preset(tmp_path / "preset", dtype="float7")
    assert "configuration in" not in str(caught.value)


def test_layers_take_numbers_of_numpy():
    """And what is saved of them gives them again."""
    from keras_ci2p import layers

    made = [
        layers.TransformerBlock(np.int64(2), np.int32(8), np.float32(0.5), seed=np.int64(1)),
        layers.PatchGenerator(np.int64(16), strides=np.int8(2)),
        layers.CI2PPatchEmbedding(np.int64(16), {"num_filters": np.int64(8), "latent_channels": np.array(12)}),
        layers.AnalysisTransform(num_filters=np.int64(8), source={"step": np.int64(3)}, frozen=np.True_),
        layers.PositionEmbedding(np.array([2, 3])),
    ]
    for layer in made:
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
        again = keras.saving.deserialize_keras_object(config)
        assert json.loads(json.dumps(keras.saving.serialize_keras_object(again))) == config


def test_load_preset_of_a_compressor(tmp_path):
    from keras_ci2p.models.ci2p_vit import open_classifier, open_preset_model

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
            with pytest.warns(UserWarning, match="random weights"):
                model(np.zeros((1, 32, 32, 3), "uint8"), training=True)

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
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*random weights")
                model(np.zeros((1, 32, 32, 3), "uint8"), training=True)
