import keras
import numpy as np
import pytest
from keras.src import testing

from keras_ci2p.layers import GDN
from keras_ci2p.layers.compression_layers import PEDESTAL


class GDNLayerTest(testing.TestCase):
    def test_layer(self):
        for inverse in (False, True):
            self.run_layer_test(
                GDN,
                init_kwargs={"inverse": inverse, "beta_min": 1e-5, "gamma_init": 0.2},
                input_shape=(2, 4, 5, 3),
                expected_output_shape=(2, 4, 5, 3),
                expected_num_trainable_weights=2,
                expected_num_non_trainable_weights=0,
                expected_num_seed_generators=0,
                supports_masking=False,
            )


def effective(raw, minimum=0.0):
    return np.maximum(raw, np.sqrt(minimum + PEDESTAL)) ** 2 - PEDESTAL


@pytest.mark.parametrize("inverse", [False, True])
def test_formula(inverse, rng):
    x = rng.standard_normal((2, 3, 4, 5)).astype("float32")
    layer = GDN(inverse=inverse)
    layer.build(x.shape)
    beta, gamma = rng.uniform(-0.2, 1, 5), rng.uniform(-0.2, 0.5, (5, 5))
    layer.beta.assign(beta)
    layer.gamma.assign(gamma)
    norm = np.sqrt(effective(beta, 1e-6) + np.einsum("bhwj,ji->bhwi", x.astype("float64") ** 2, effective(gamma)))
    expected = x * norm if inverse else x / norm
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), expected, rtol=1e-5, atol=1e-5)


def test_initial_values():
    layer = GDN()
    layer.build((None, 3))
    np.testing.assert_allclose(effective(keras.ops.convert_to_numpy(layer.beta)), np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(effective(keras.ops.convert_to_numpy(layer.gamma)), 0.1 * np.eye(3), atol=1e-7)


def test_inverse_undoes_with_a_diagonal_of_zero(rng):
    x = rng.standard_normal((2, 4)).astype("float32")
    y = GDN(inverse=True, gamma_init=0.0)(GDN(gamma_init=0.0)(x))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(y), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("raw", "direction", "moves"),
    [
        # `direction` is the sign in which the loss wants `beta` to go.
        (-0.5, +1, True),
        (-0.5, -1, False),
        (1.0, +1, True),
        (1.0, -1, True),
    ],
)
def test_clamp_gradient_in_a_train_step(raw, direction, moves):
    """Below the bound a raw value moves only upwards; above it, both ways. Gradients reach the stored variable."""
    inputs = keras.Input((1,))
    layer = GDN()
    model = keras.Model(inputs, layer(inputs))
    layer.beta.assign([raw])
    # y = x / sqrt(beta + ...): a larger beta makes y smaller.
    model.compile(keras.optimizers.SGD(1.0), loss=lambda target, y: keras.ops.mean(y * target))
    model.train_on_batch(np.full((4, 1), 0.5, "float32"), np.full((4, 1), float(direction), "float32"))
    change = float(keras.ops.convert_to_numpy(layer.beta)[0]) - raw
    assert (change * direction > 1e-8) if moves else change == 0


def test_frozen_gives_the_same_values(rng):
    x = rng.standard_normal((2, 4, 4, 6)).astype("float32")
    layer = GDN()
    trainable = keras.ops.convert_to_numpy(layer(x))
    layer.trainable = False
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), trainable)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_normaliser_is_float32_under_16_bit_policies(policy, rng):
    # 300**2 overflows float16, and bfloat16 has three digits.
    x = rng.uniform(100, 300, (2, 4, 4, 6)).astype("float32")
    half, full = GDN(dtype=policy), GDN(dtype="float32")
    full.build(x.shape)
    half.build(x.shape)
    full.gamma.assign(rng.uniform(0.1, 0.5, (6, 6)))
    half.set_weights(full.get_weights())
    rounded = keras.ops.cast(keras.ops.cast(x, half.compute_dtype), "float32")
    expected = keras.ops.convert_to_numpy(full(rounded))
    y = half(x)
    assert keras.backend.standardize_dtype(y.dtype) == half.compute_dtype
    y = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
    np.testing.assert_allclose(y, expected, rtol=2**-8 if "bf" in policy else 2**-11)


@pytest.mark.parametrize("arguments", [{"beta_min": 0}, {"gamma_init": -1}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="Received"):
        GDN(**arguments)
