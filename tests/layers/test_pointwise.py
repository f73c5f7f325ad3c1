"""Layers that compute otherwise under JAX on a CPU, against Keras's own."""

import keras
import numpy as np
import pytest

from keras_ci2p.layers import SymmetricDepthwiseConv2D
from keras_ci2p.layers.pointwise import Dense, PointwiseConv2D

to_numpy = keras.ops.convert_to_numpy


def compare(ours, reference, x):
    ours.build(x.shape)
    reference.build(x.shape)
    for weight, other in zip(ours.weights, reference.weights, strict=True):
        value = np.random.default_rng(3).standard_normal(weight.shape)
        weight.assign(value)
        other.assign(value)
    expected = to_numpy(reference(x))
    np.testing.assert_allclose(to_numpy(ours(x)), expected, rtol=1e-4, atol=1e-4)
    assert ours.compute_output_shape(x.shape) == expected.shape
    again = type(ours).from_config(ours.get_config())
    assert again.get_config() == ours.get_config()


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (2, 3, 5, 6)])
def test_dense(rng, shape):
    x = rng.standard_normal(shape).astype("float32")
    compare(Dense(7, activation="gelu"), keras.layers.Dense(7, activation="gelu"), x)


def test_pointwise(rng):
    x = rng.standard_normal((2, 4, 5, 6)).astype("float32")
    compare(PointwiseConv2D(7), keras.layers.Conv2D(7, 1, use_bias=False, data_format="channels_last"), x)


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, (5, 3)])
def test_depthwise(rng, kernel_size, strides):
    x = rng.standard_normal((2, 7, 8, 6)).astype("float32")
    rows, columns = (k // 2 for k in ((kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size))
    reference = keras.Sequential(
        [
            keras.layers.ZeroPadding2D((rows, columns), data_format="channels_last"),
            keras.layers.DepthwiseConv2D(kernel_size, strides=strides, activation="relu", data_format="channels_last"),
        ]
    )
    compare(SymmetricDepthwiseConv2D(kernel_size, strides=strides, activation="relu"), reference, x)
