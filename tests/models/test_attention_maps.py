"""Attention maps are the weights that the fused attention of the model itself uses."""

import keras
import numpy as np
import pytest
from conftest import once

from keras_ci2p import CI2PViT, ViT
from keras_ci2p.layers.transformer import TransformerBlock, attention_rollout
from keras_ci2p.models import CI2PViTDualScale

SMALL_COMPRESSOR = {"num_filters": 8, "latent_channels": 12}
to_numpy = keras.ops.convert_to_numpy


def sharpen(block):
    """Fresh weights attend nearly evenly to all tokens, and hardly change them: that would hide mistakes."""
    rng = np.random.default_rng(1)
    for layer in (block.qkv, block.attention_output):
        layer.kernel.assign(rng.normal(0, 0.5, layer.kernel.shape))


def make(kind, nano, image_shape=(64, 96, 3), **kwargs):
    if kind == "ci2p":
        model = CI2PViT(image_shape, compressor=SMALL_COMPRESSOR, **nano, **kwargs)
    else:
        model = ViT(image_shape, **nano, **kwargs)
    for i in range(nano["num_layers"]):
        sharpen(model.get_layer(f"block_{i}"))
    return model


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, 64, 96, 3)).astype("uint8")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", *map(once, ("mixed_float16", "float64"))])
def test_scores_and_values_give_the_output_of_the_block(rng, policy):
    block = TransformerBlock(num_heads=2, mlp_dim=12, dtype=policy)
    x = rng.standard_normal((3, 5, 8)).astype("float32")
    block.build(x.shape)
    sharpen(block)
    scores = to_numpy(block.attention_scores(x))
    assert scores.shape == (3, 2, 5, 5) and scores.dtype == "float32"
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)

    def error(scores):
        values = to_numpy(block.qkv(block.attention_norm(x))).astype("float32").reshape(3, 5, 3, 2, 4)[:, :, 2]
        attended = np.einsum("bhqk,bkhd->bqhd", scores, values).reshape(3, 5, 8)
        tokens = x + to_numpy(block.attention_output(attended)).astype("float32")
        tokens = tokens + to_numpy(block.mlp_output(block.mlp_hidden(block.mlp_norm(tokens)))).astype("float32")
        return np.abs(tokens - to_numpy(block(x)).astype("float32")).max()

    tolerance = {"mixed_bfloat16": 0.05, "mixed_float16": 0.005}.get(policy, 1e-5)
    assert error(scores) < tolerance
    for wrong in (np.full_like(scores, 1 / 5), scores.swapaxes(2, 3), scores[:, ::-1]):
        assert error(wrong) > 5 * tolerance


@pytest.mark.parametrize(("kind", "grid"), [("ci2p", (2, 3)), pytest.param("vit", (4, 6), marks=pytest.mark.once)])
def test_maps_of_all_layers(nano, images, kind, grid):
    model = make(kind, nano)
    assert model.grid_size == grid
    maps = model.attention_maps(images)
    tokens = grid[0] * grid[1]
    assert isinstance(maps, np.ndarray) and maps.dtype == "float32"
    assert maps.shape == (2, 2, 2, tokens, tokens)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    assert (maps >= 0).all()
    # Each layer's, of the tokens that reach it.
    to_first_block = keras.Model(model.input, model.get_layer("block_0").input)
    x = to_first_block(images)
    for i in range(2):
        block = model.get_layer(f"block_{i}")
        np.testing.assert_allclose(maps[:, i], to_numpy(block.attention_scores(x)), atol=1e-4)
        x = block(x)
    assert np.abs(maps[:, 0] - maps[:, 1]).max() > 0.01

    # Of the weights as they are now.
    block.qkv.kernel.assign(np.zeros(block.qkv.kernel.shape))
    now = model.attention_maps(images)
    np.testing.assert_allclose(now[:, 1], 1 / tokens, rtol=1e-5)
    np.testing.assert_allclose(now[:, 0], maps[:, 0], atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", once("mixed_float16")])
def test_16_bit_policies(nano, images, policy):
    maps = make("vit", nano, dtype=policy).attention_maps(images)
    assert maps.dtype == "float32"
    # Softmax in 16 bits would miss 1 by more.
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


def test_any_size(nano, images):
    model = make("ci2p", nano, image_shape=(None, None, 3))
    assert model.grid_size == (None, None)
    maps = model.attention_maps(images)
    assert maps.shape == (2, 2, 2, 6, 6)
    fixed = make("ci2p", nano)
    fixed.set_weights(model.get_weights())
    np.testing.assert_allclose(fixed.attention_maps(images), maps, atol=1e-4)


@pytest.mark.once
def test_two_scales(nano, images):
    model = CI2PViTDualScale((64, 96, 3), compressor=SMALL_COMPRESSOR, **nano, early_dim=16, merge_at=1)
    maps = model.attention_maps(images)
    assert model.grid_size == (2, 3) and maps.shape == (2, 1, 2, 6, 6), "the block after the merge"
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ci2p", "vit"])
def test_wrong_images(nano, kind):
    model = make(kind, nano)
    for shape in [(64, 96, 3), (2, 64, 96, 4), (2, 64, 100, 3), (2, 96, 64, 3)]:
        with pytest.raises(ValueError, match="shape"):
            model.attention_maps(np.zeros(shape, "float32"))
    with pytest.raises(ValueError, match="multiples of 32"):
        make("ci2p", nano, image_shape=(None, None, 3)).attention_maps(np.zeros((1, 48, 64, 3)))


def test_maps_do_not_disturb_the_model(nano, images):
    model = make("ci2p", nano)
    before, weights = to_numpy(model(images)), len(model.weights)
    model.attention_maps(images)
    assert len(model.weights) == weights and len(model.latent_classifier.weights)
    np.testing.assert_array_equal(to_numpy(model(images)), before)
    model.attention_maps(images)


def test_rollout():
    first = np.array([[1, 0, 0], [0, 0, 1], [0.5, 0.5, 0]])
    second = np.array([[0, 1, 0], [0, 1, 0], [0.2, 0.2, 0.6]])
    # Two heads, whose mean counts.
    maps = np.stack([[first + 0.1, first - 0.1], [second, second]])[None]
    rollout = attention_rollout(maps)
    np.testing.assert_allclose(rollout[0], (second + np.eye(3)) / 2 @ (first + np.eye(3)) / 2)
    np.testing.assert_allclose(rollout.sum(-1), 1)
    # The third token reaches the first output through the second token of the second layer alone.
    assert rollout[0, 0, 2] == pytest.approx(0.5 * 0.5)
