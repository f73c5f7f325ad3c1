"""Against the paper's PyTorch code: every stage, and one training step, with reproducible weights."""

import json

import keras
import numpy as np
import pytest
from conftest import once
from golden_weights import GOLDEN, golden_state_dict
from gradients import training_step

from keras_ci2p.convert import from_mmpretrain
from keras_ci2p.convert.mmpretrain import mmpretrain_entries

FEATURES, LOGITS = {"base_gdn": 2e-4, "dual_scale": 5e-4, "vit_b16": 2e-4}, 1e-4
# Relative, of the gradients' norms. In dual_scale one activation of the merge (channel 507 of its depthwise stage) is 3
# up to rounding errors, where hard-swish has a kink: 2.99999 on torch as in the reference, 3.00002 in float64, on whose
# side JAX and TensorFlow are. That is worth 1.3e-3 in the layers before it.
GRADIENTS = {"base_gdn": 1e-3, "dual_scale": 2e-3, "vit_b16": 1e-3}
# Pixels of a batch behind each convolution of the patch generator's last block.
PIXELS = {
    "base_gdn": {"expand": 2 * 16 * 16, "depthwise": 2 * 8 * 8, "linear": 2 * 8 * 8},
    "dual_scale": dict.fromkeys(("expand", "depthwise", "linear"), 2 * 16 * 16),
}


@pytest.fixture(scope="module", params=["base_gdn", "dual_scale", once("vit_b16")])
def reference(request):
    """`(name, expected arrays, model)`; stochastic depth off, as the reference step was computed."""
    expected = np.load(GOLDEN / f"{request.param}.npz")
    return request.param, expected, from_mmpretrain(golden_state_dict(request.param), drop_path_rate=0.0)


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def close(actual, expected, tolerance):
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=0, atol=tolerance)


def test_every_stage(reference):
    name, expected, model = reference
    names = ["flatten" if name == "vit_b16" else "patch_generator", "block_0", "block_5", "block_6", "norm", "pool"]
    stages = keras.Model(model.input, [model.get_layer(n).output for n in names] + [model.output])
    patches, block0, block5, block6, features, pooled, logits = stages.predict_on_batch(expected["images"])
    tolerance = FEATURES[name]
    close(patches[:, ::4, ::4], expected["patches"], tolerance)
    close(block0[:, ::8, ::8], expected["block00"], tolerance)
    close(block5[:, ::8, ::8], expected["block05"], tolerance)
    close(block6[:, ::8, ::8], expected["block06"], tolerance)
    close(features[:, ::4, ::4], expected["features"], tolerance)
    close(pooled, expected["pooled"], tolerance)
    close(logits, expected["logits"], LOGITS)


@pytest.mark.parametrize("reference", ["base_gdn", once("dual_scale")], indirect=True)
def test_latents_and_latent_classifier(reference):
    name, expected, model = reference
    latents = model.compressor.encode(expected["images"])
    close(latents[:, ::3, ::3, ::4], expected["latent"], FEATURES[name])
    close(model.latent_classifier.predict_on_batch(latents), expected["logits"], LOGITS)


def test_training_step(reference):
    """Last of the module: it changes the running statistics."""
    name, expected, model = reference
    entries = {entry.key: entry for entry in mmpretrain_entries(model)}
    before = {key: to_numpy(entry.variable) for key, entry in entries.items() if "running_" in key}
    loss_fn = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    targets = np.eye(10, dtype="float32")[expected["train_labels"]]
    loss, logits, gradients = training_step(model, loss_fn, expected["images"].astype("float32"), targets)

    assert abs(loss / expected["train_loss"] - 1) < 1e-4
    close(logits, expected["train_logits"], 10 * LOGITS)
    gradient_of = {id(v): g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    assert all(gradient is not None for gradient in gradients)
    assert len(gradients) == len(expected["gradnorm_keys"])
    for key, norm in zip(expected["gradnorm_keys"], expected["gradnorm"], strict=True):
        actual = np.linalg.norm(gradient_of[id(entries[str(key)].variable)])
        assert abs(actual - norm) <= GRADIENTS[name] * max(norm, 0.01), key

    compressor = [v for key, v in entries.items() if ".compressai." in key]
    assert not any(id(entry.variable) in gradient_of for entry in compressor)

    after = [key for key in expected.files if key.startswith("after/")]
    assert len(after) == (0 if name == "vit_b16" else 6)
    for key in after:
        key = key.removeprefix("after/")
        increment = to_numpy(entries[key].variable) - 0.9 * before[key]
        if key.endswith("running_var"):
            # Keras keeps the biased variance, PyTorch the unbiased one.
            n = PIXELS[name][key.split(".")[-3].removesuffix("_conv")]
            increment = increment * n / (n - 1)
        np.testing.assert_allclose(
            increment, expected[f"after/{key}"] - 0.9 * before[key], rtol=2e-3, atol=2e-5, err_msg=key
        )


def test_every_key_is_wanted():
    """The reference's parameters and the model's variables are the same set, once each."""
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
    assert {name: len(keys) for name, keys in shapes.items()} == {"base_gdn": 218, "dual_scale": 433, "vit_b16": 151}
