"""Int8 quantisation of the transformer, and presets of quantised models."""

import gc
import json

import keras
import numpy as np
import pytest
from test_fold_batch_norm import models

from keras_ci2p import ViT
from keras_ci2p.layers.core import Dense
from keras_ci2p.presets import PresetError, open_preset
from keras_ci2p.training import TrainConfig, train


@pytest.fixture(params=["ci2p", "dual", "vit"])
def kind(request):
    return request.param


def logits(model, rng):
    return model.predict(rng.uniform(0, 255, (3, 64, 64, 3)).astype("float32"), verbose=0)


def quantised_layers(model):
    return {layer.path for layer in model._flatten_layers() if layer.quantization_mode}


@pytest.mark.once
def test_saved_model_gives_the_same_logits_bit_for_bit(kind, tmp_path, nano):
    model = models(nano)[kind]()
    exact = logits(model, np.random.default_rng(0))
    model.quantize("int8")
    expected = logits(model, np.random.default_rng(0))
    difference = np.abs(expected - exact).max()
    assert 0 < difference < 0.1 * np.ptp(exact)

    # Only the transformer's products: four in each block.
    products = {layer.path for layer in model._flatten_layers() if isinstance(layer, Dense)}
    assert quantised_layers(model) == products
    assert len(products) == 4 * nano["num_layers"]
    for layer in model._flatten_layers():
        if layer.path in products:
            assert keras.backend.standardize_dtype(layer._kernel.dtype) == "int8"

    model.save_to_preset(tmp_path / "preset")
    reloaded = type(model).from_preset(tmp_path / "preset")
    assert quantised_layers(reloaded) == products
    np.testing.assert_array_equal(logits(reloaded, np.random.default_rng(0)), expected)

    # Once more, from the reloaded one, and through Keras's own format.
    reloaded.save_to_preset(tmp_path / "again")
    config, again = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("preset", "again"))
    assert config == again
    assert config["config"]["dtype"]["class_name"] == "DTypePolicyMap"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(loaded, np.random.default_rng(0)), expected)


@pytest.mark.once
def test_quantised_preset_at_another_image_size(tmp_path, nano):
    model = ViT((64, 64, 3), 3, **nano)
    model.quantize("int8")
    model.save_to_preset(tmp_path / "preset")
    larger = ViT.from_preset(tmp_path / "preset", image_shape=(96, 96, 3))
    assert quantised_layers(larger) == quantised_layers(model)
    for name in ("block_0", "block_1"):
        for ours, theirs in zip(larger.get_layer(name).weights, model.get_layer(name).weights, strict=True):
            np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(weight) for weight in (ours, theirs)))


@pytest.mark.once
def test_a_quantised_preset_takes_no_other_dtype_and_no_training(tmp_path, nano):
    model = ViT((32, 32, 3), num_classes=3, class_names=["bird", "cat", "dog"], **nano)
    model.save_to_preset(tmp_path / "whole")
    model.quantize("int8")
    model.save_to_preset(tmp_path / "preset")
    assert open_preset(tmp_path / "preset").is_quantized and not open_preset(tmp_path / "whole").is_quantized
    for dtype in ("float32", "mixed_bfloat16"):
        with pytest.raises(PresetError, match=f"is quantised: .*Received: dtype='{dtype}'"):
            ViT.from_preset(tmp_path / "preset", dtype=dtype)
    settings = TrainConfig("absent", model="vit", init=str(tmp_path / "preset"))
    with pytest.raises(PresetError, match="preset is quantised, so that it cannot be trained"):
        train(settings, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_garbage_is_looked_for_among_new_objects(nano, monkeypatch):
    """Keras asks for it with each weight that it removes, which took all but a thirtieth of the time."""
    # By the tests themselves.
    gc.unfreeze()
    frozen = []
    monkeypatch.setattr(gc, "collect", lambda: frozen.append(gc.get_freeze_count()))
    ViT((32, 32, 3), num_classes=2, **nano).quantize("int8")
    assert len(frozen) == 4 * nano["num_layers"] and min(frozen) > 10_000 and gc.get_freeze_count() == 0
    # What somebody else has frozen stays so.
    gc.freeze()
    model = ViT((32, 32, 3), num_classes=2, **nano)
    before = gc.get_freeze_count()
    try:
        model.quantize("int8")
        assert 0 < gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()


def test_config_of_a_model_that_is_not_quantised_names_its_policy(nano):
    assert ViT((64, 64, 3), 3, dtype="mixed_bfloat16", **nano).get_config()["dtype"] == "mixed_bfloat16"


def test_refused(nano):
    model = ViT((64, 64, 3), 3, **{**nano, "num_layers": 1})
    with pytest.raises(ValueError, match="must be int8"):
        model.quantize("float8")
    with pytest.raises(ValueError, match="must be int8"):
        model.quantize(config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None))
    model.quantize("int8")
    with pytest.raises(ValueError, match="quantised already"):
        model.quantize("int8")
