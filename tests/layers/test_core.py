"""Layers that compute otherwise on torch or under JAX on a CPU, against Keras's own."""

import keras
import numpy as np
import pytest

from keras_ci2p.layers import SymmetricConv2D, SymmetricDepthwiseConv2D, core
from keras_ci2p.layers.core import Dense, PointwiseConv2D

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


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"strides": 2}, {"groups": 2}])
def test_pointwise(rng, options):
    x = rng.standard_normal((2, 4, 5, 6)).astype("float32")
    reference = keras.layers.Conv2D(8, 1, use_bias=False, data_format="channels_last", **options)
    compare(PointwiseConv2D(8, **options), reference, x)


def padded(kernel_size, layer):
    rows, columns = (k // 2 for k in ((kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size))
    return keras.Sequential([keras.layers.ZeroPadding2D((rows, columns), data_format="channels_last"), layer])


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, (5, 3)])
def test_depthwise(rng, kernel_size, strides, multiplier):
    x = rng.standard_normal((2, 7, 8, 6)).astype("float32")
    options = {"strides": strides, "activation": "relu", "depth_multiplier": multiplier}
    reference = padded(kernel_size, keras.layers.DepthwiseConv2D(kernel_size, data_format="channels_last", **options))
    compare(SymmetricDepthwiseConv2D(kernel_size, **options), reference, x)


@pytest.mark.parametrize("kernel_size", [1, 3, (5, 3)])
@pytest.mark.parametrize("options", [{"strides": 2}, {"strides": (1, 3), "use_bias": False, "activation": "relu"}])
def test_symmetric_conv(rng, kernel_size, options):
    x = rng.standard_normal((2, 7, 8, 6)).astype("float32")
    reference = padded(kernel_size, keras.layers.Conv2D(4, kernel_size, data_format="channels_last", **options))
    compare(SymmetricConv2D(4, kernel_size=kernel_size, **options), reference, x)


@pytest.mark.parametrize("options", [{}, {"dilation_rate": 2}, {"dilation_rate": (1, 3), "groups": 2}])
def test_symmetric_conv_without_strides(rng, options):
    x = rng.standard_normal((2, 7, 8, 6)).astype("float32")
    reference = keras.layers.Conv2D(4, (3, 5), padding="same", data_format="channels_last", **options)
    compare(SymmetricConv2D(4, kernel_size=(3, 5), **options), reference, x)


INITIALIZERS = [
    ("RandomNormal", {"mean": 0.02, "stddev": 0.02}),
    ("RandomUniform", {"minval": -0.2, "maxval": 0.5}),
    ("VarianceScaling", {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"}),
    ("VarianceScaling", {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform"}),
    ("VarianceScaling", {"scale": 1.0, "mode": "fan_in", "distribution": "truncated_normal"}),
]


@pytest.mark.parametrize(("name", "arguments"), INITIALIZERS)
def test_initial_weights_are_distributed_as_keras_s(name, arguments):
    initializer = getattr(core, name)(**arguments, seed=1)
    shape = (3, 3, 50, 90)
    values, expected = (
        to_numpy(made(shape)) for made in (initializer, getattr(keras.initializers, name)(**arguments, seed=2))
    )
    deciles = np.linspace(0.05, 0.95, 10)
    deviation = expected.std()
    half = initializer(shape, dtype="bfloat16")
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    for drawn in (values, to_numpy(keras.ops.cast(half, "float32"))):
        np.testing.assert_allclose(np.quantile(drawn, deciles), np.quantile(expected, deciles), atol=0.05 * deviation)
        assert drawn.min() >= expected.min() - deviation and drawn.max() <= expected.max() + deviation
    again = keras.initializers.get(keras.initializers.serialize(initializer))
    for same in (initializer, again):
        np.testing.assert_array_equal(to_numpy(same(shape)), values)
    assert (to_numpy(getattr(core, name)(**arguments, seed=3)(shape)) != values).mean() > 0.99
    generator = core.RandomNormal(seed=keras.random.SeedGenerator(1))
    assert (to_numpy(generator((3, 4))) != to_numpy(generator((3, 4)))).any()


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX's compiler")
def test_jax_compiles_nothing_for_initial_weights():
    import jax.monitoring

    compiled = []

    def listen(event, duration, fun_name="", **others):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    # Of a shape that no other test has.
    for name, arguments in INITIALIZERS[:-1]:
        for size in (7, 11):
            getattr(core, name)(**arguments)((size, 13, 17))
    assert not compiled
    keras.initializers.RandomNormal()((7, 13, 19))
    assert compiled
