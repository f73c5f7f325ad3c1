"""Batch normalisation, on torch by PyTorch's kernel, against Keras's own."""

import keras
import numpy as np
import pytest
from gradients import training_step

from keras_ci2p.layers.core import BatchNormalization

to_numpy = keras.ops.convert_to_numpy


def outputs_and_gradients(norm, x, weights):
    """A training step of a product and the norm after it, `(outputs, gradients, moving statistics)`."""
    model = keras.Sequential([keras.layers.Dense(x.shape[-1]), norm])
    model.build(x.shape)
    model.set_weights(weights(model))
    _, outputs, gradients = training_step(model, keras.losses.MeanSquaredError(), x, x + 0.3)
    return outputs.astype("float32"), gradients, [to_numpy(norm.moving_mean), to_numpy(norm.moving_variance)]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("shape", [(9, 4), (3, 7, 4), (2, 3, 5, 4)])
def test_as_keras_has_it(rng, shape, dtype):
    x = rng.standard_normal(shape).astype("float32") + 2

    def weights(model):
        again = np.random.default_rng(5)
        return [np.abs(again.standard_normal(weight.shape)) for weight in model.weights]

    arguments = {"momentum": 0.7, "epsilon": 1e-2, "dtype": dtype}
    ours = outputs_and_gradients(BatchNormalization(**arguments), x, weights)
    theirs = outputs_and_gradients(keras.layers.BatchNormalization(**arguments), x, weights)
    tolerance = 2e-4 if dtype == "float32" else 2e-2
    for own, other in zip(ours, theirs, strict=True):
        for a, b in zip(own, other, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()))
    assert ours[0].std() > 0.1 and all(np.abs(gradient).max() > 1e-4 for gradient in ours[1][2:])


def test_a_constant_channel_has_no_negative_variance():
    norm = BatchNormalization(momentum=0.0, epsilon=1e-5)
    norm(np.full((4, 2, 2, 3), 7, "float32"), training=True)
    assert 0 <= to_numpy(norm.moving_variance).min() <= to_numpy(norm.moving_variance).max() < 1e-5


def test_frozen_or_predicting_it_keeps_its_statistics(rng):
    x = rng.standard_normal((4, 2, 2, 3)).astype("float32")
    norm = BatchNormalization()
    norm(x)
    norm.trainable = False
    np.testing.assert_allclose(to_numpy(norm(x, training=True)), x / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_array_equal(to_numpy(norm.moving_mean), 0)


def test_config():
    norm = BatchNormalization(momentum=0.8, center=False)
    config = norm.get_config()
    assert "axis" not in config and BatchNormalization.from_config(config).get_config() == config


# The kernel is PyTorch's.
@pytest.mark.once
def test_torch_keeps_one_copy_of_the_input(rng):
    import torch

    x = keras.ops.convert_to_tensor(rng.standard_normal((2, 8, 8, 16)).astype("float32")).requires_grad_()
    norm = BatchNormalization()
    norm.build(x.shape)
    kept = set()

    def keep(tensor):
        if tensor.numel() == x.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x, training=True)
    assert kept == {x.untyped_storage().data_ptr()}
