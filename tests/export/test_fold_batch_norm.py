"""Batch normalisation folded into the products before it."""

import keras
import numpy as np
import pytest

from keras_ci2p import CI2PViT, CI2PViTDualScale, ViT
from keras_ci2p.export import fold_batch_norm

COMPRESSOR = {"num_filters": 8, "latent_channels": 12}


def trained(model, rng):
    """The model as training leaves it: normalisations that do something."""
    for layer in model._flatten_layers():
        if isinstance(layer, (keras.layers.BatchNormalization, keras.layers.LayerNormalization)):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def models(nano):
    return {
        "ci2p": lambda **kwargs: CI2PViT((64, 64, 3), 3, compressor=COMPRESSOR, **nano, **kwargs),
        "dual": lambda **kwargs: CI2PViTDualScale(
            (64, 64, 3), 3, compressor=COMPRESSOR, early_dim=16, merge_at=1, **nano, **kwargs
        ),
        "vit": lambda **kwargs: ViT((64, 64, 3), 3, **nano, **kwargs),
    }


@pytest.mark.parametrize(("kind", "count"), [("ci2p", 6), ("dual", 15), ("vit", 0)])
def test_folded_model_computes_the_same(kind, count, nano, rng):
    model = trained(models(nano)[kind](), rng)
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert type(folded) is type(model)

    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(folded.predict(images, verbose=0), expected, atol=1e-6)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # Nothing is normalised any more: the statistics have no say.
    norms = [layer for layer in folded._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == count
    for norm in norms:
        for statistic in (norm.gamma, norm.moving_mean, norm.moving_variance):
            statistic.assign(np.full(statistic.shape, np.nan))
    np.testing.assert_allclose(folded.predict(images, verbose=0), expected, atol=1e-6)


def test_folded_model_is_float32(nano, rng):
    model = models(nano)["ci2p"](dtype="mixed_bfloat16")
    folded = fold_batch_norm(model)
    assert folded.dtype_policy.name == "float32"
    assert all(layer.compute_dtype == "float32" for layer in folded._flatten_layers())
    for ours, theirs in zip(folded.head.get_weights(), model.head.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
