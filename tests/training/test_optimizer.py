import keras
import numpy as np
import pytest

from keras_ci2p.training.optimizer import make_optimizer


def rate(optimizer, step):
    return float(keras.ops.convert_to_numpy(optimizer._learning_rate(step)))


def test_warm_up_and_cosine():
    optimizer = make_optimizer(1e-4, 0.05, steps_per_epoch=10, epochs=300, warmup_epochs=20)
    assert optimizer.weight_decay == 0.05
    np.testing.assert_allclose(rate(optimizer, 0), 1e-4 / 3, rtol=1e-4)
    np.testing.assert_allclose(rate(optimizer, 100), (1e-4 / 3 + 1e-4) / 2, rtol=1e-3)
    np.testing.assert_allclose(rate(optimizer, 200), 1e-4, rtol=1e-3)
    np.testing.assert_allclose(rate(optimizer, 1600), (1e-4 + 1.25e-6) / 2, rtol=1e-3)
    np.testing.assert_allclose(rate(optimizer, 3000), 1.25e-6, rtol=1e-3)


@pytest.mark.parametrize("warmup", [0, 5, 100])
def test_short_runs(warmup):
    optimizer = make_optimizer(1e-3, 0.05, steps_per_epoch=1, epochs=2, warmup_epochs=warmup)
    assert all(0 < rate(optimizer, step) <= 1e-3 * 1.001 for step in range(3))
