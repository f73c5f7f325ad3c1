import keras
import numpy as np
import pytest

from keras_ci2p.training.optim import SoftTargetCrossentropy, balanced_weights

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], "float32")
LOG_SHARES = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


def loss(targets, **kwargs):
    return float(SoftTargetCrossentropy(**kwargs)(np.array(targets, "float32"), LOGITS))


def test_hard_targets():
    np.testing.assert_allclose(loss([[1, 0, 0], [0, 0, 1]]), -(LOG_SHARES[0, 0] + LOG_SHARES[1, 2]) / 2, rtol=1e-6)


def test_smoothing_of_mixed_targets():
    """0.9 * target + 0.1 / 3, written out."""
    targets = [[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]
    smooth = np.array([[0.9 * 0.7 + 0.1 / 3, 0.9 * 0.3 + 0.1 / 3, 0.1 / 3], [0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]])
    expected = -(smooth * LOG_SHARES).sum(-1).mean()
    np.testing.assert_allclose(loss(targets, label_smoothing=0.1), expected, rtol=1e-6)


def test_class_weights_of_mixed_targets():
    targets = np.array([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    weights = [2.0, 4.0, 0.5]
    each = -(targets * LOG_SHARES).sum(-1)
    expected = (each[0] * (0.25 * 2 + 0.75 * 4) + each[1] * 0.5) / 2
    np.testing.assert_allclose(loss(targets, class_weights=weights), expected, rtol=1e-6)


def test_balanced_weights_make_classes_count_alike():
    weights = balanced_weights([10, 30, 60])
    np.testing.assert_allclose(np.multiply(weights, [10, 30, 60]), 100 / 3)


def test_config():
    stored = keras.saving.serialize_keras_object(SoftTargetCrossentropy(0.1, [1, 2, 3]))
    again = keras.saving.deserialize_keras_object(stored)
    assert again.label_smoothing == 0.1 and again.class_weights == pytest.approx([1, 2, 3])
