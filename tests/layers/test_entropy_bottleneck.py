import keras
import numpy as np
import pytest
from gradients import gradients_of

from keras_ci2p.layers import EntropyBottleneck


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.fixture
def layer(rng):
    layer = EntropyBottleneck(seed=1)
    layer.build((None, 4))
    layer.quantiles.assign(np.tile([-10, 0.3, 10], (4, 1, 1)) + 0.1 * np.arange(4)[:, None, None])
    for factor in layer.factors:
        factor.assign(0.1 * rng.standard_normal(factor.shape))
    return layer


def test_rounds_about_the_median(layer, rng):
    x = 3 * rng.standard_normal((2, 5, 4)).astype("float32")
    values, likelihoods = layer(x)
    medians = np.array([0.3, 0.4, 0.5, 0.6], "float32")
    np.testing.assert_allclose(to_numpy(values), np.round(x - medians) + medians, atol=1e-6)
    assert likelihoods.shape == x.shape


def test_likelihoods_are_a_distribution(layer):
    """Over all integers they sum to one."""
    x = np.tile(np.arange(-300.0, 301.0)[:, None], (1, 4)).astype("float32")
    total = to_numpy(layer.likelihood(x)).sum(0)
    np.testing.assert_allclose(total, 1, atol=1e-4)
    far = to_numpy(layer.likelihood(np.full((1, 4), 1e6, "float32")))
    np.testing.assert_allclose(far, 1e-9, rtol=1e-3)


def test_noise_in_training(layer):
    x = np.zeros((1000, 4), "float32")
    noise = to_numpy(layer(x, training=True)[0])
    assert -0.5 <= noise.min() < -0.49 and 0.49 < noise.max() < 0.5
    given = np.linspace(-0.5, 0.5, 4000).reshape(1000, 4).astype("float32")
    np.testing.assert_allclose(to_numpy(layer(x, noise=given, training=True)[0]), given)


def test_auxiliary_loss_teaches_only_the_quantiles(layer):
    loss, gradients = gradients_of(layer, layer.auxiliary_loss)
    assert loss > 0
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        changed = gradient is not None and np.abs(gradient).max() > 0
        assert changed == ("quantiles" in variable.path), variable.path


def test_config(layer):
    assert EntropyBottleneck.from_config(layer.get_config()).seed == 1
