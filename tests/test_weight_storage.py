import json
import time

import h5py
import keras
import numpy as np
import pytest
from conftest import once

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.layers import GDN
from keras_ci2p.presets import open_preset
from keras_ci2p.weight_storage import LARGEST_ERROR, SMALLEST, STORAGES, compact_array, compact_weights

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def channel_error(stored, values):
    """Largest relative error of the channels, which are along the last axis."""
    error = np.square(stored.astype("float64") - values).reshape(-1, values.shape[-1]).sum(0)
    return np.sqrt(error / np.square(values).reshape(-1, values.shape[-1]).sum(0)).max()


class TestArrays:
    @pytest.fixture
    def values(self, rng):
        """A kernel whose channels are of very different sizes."""
        return (rng.normal(size=(3, 3, 16, 64)) * 10.0 ** rng.uniform(-3, 1, 64)).astype("float32")

    def test_float16(self, values):
        stored = compact_array(values, "float16")
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored.astype("float32"), values, rtol=2**-11, atol=3e-8)

    def test_int8(self, values):
        stored = compact_array(values, "int8")
        assert stored.dtype == np.float16
        largest = np.abs(values).max((0, 1, 2))
        # Half a step, where 127 steps reach at most twice as far as the largest weight.
        assert (np.abs(stored - values) <= largest / 127).all()
        assert channel_error(stored, values) < 1.1 * 2**-6
        for channel in np.moveaxis(stored.astype("float64"), -1, 0):
            # Whole multiples of a power of two, of which eight bits and a sign suffice.
            step = max(s for s in 2.0 ** np.arange(-24, 10) if (channel % s == 0).all())
            assert np.abs(channel).max() / step < 256

    @pytest.mark.parametrize("shape", [(3, 3, 16, 64), (5, 5, 256, 1)])
    def test_int8_weights_are_not_rounded_again(self, rng, shape):
        """Though their size may have passed the next power of two by rounding."""
        for _ in range(20):
            values = (rng.normal(size=shape) * 2.0 ** rng.uniform(-3, 1, (shape[2], shape[3]))).astype("float32")
            once = compact_array(values, "int8").astype("float32")
            np.testing.assert_array_equal(compact_array(once, "int8"), once)

    def test_depthwise_kernels_have_their_channels_before_the_last_axis(self, rng):
        values = (rng.normal(size=(5, 5, 256, 1)) * np.logspace(-4, 0, 256)[:, None]).astype("float32")
        stored = compact_array(values, "int8")
        largest = np.abs(values).max((0, 1, 3), keepdims=True)
        assert stored.dtype == np.float16 and (np.abs(stored - values) <= largest / 127).all()

    @pytest.mark.parametrize("storage", ["float16", "int8"])
    @pytest.mark.parametrize("scale", [1e-9, 1e6, np.nan])
    def test_what_16_bits_do_not_hold_stays(self, rng, storage, scale):
        values = rng.normal(size=(64, 64)).astype("float32")
        values[:, 3] *= scale
        assert compact_array(values, storage) is values

    def test_an_outlier_leaves_its_channel_enough_steps(self, rng):
        values = rng.normal(size=(512, 16)).astype("float32")
        values[0, 0] = 100
        stored = compact_array(values, "int8")
        assert stored.dtype == np.float16 and channel_error(stored, values) < 2**-6
        # Of 512 weights, which 16-bit floats would tell apart.
        assert len(np.unique(stored[:, 1])) < 200
        # By 127 steps alone, of size 1, it would be three times as much.
        assert channel_error(np.rint(values[:, :1]), values[:, :1]) > 3 * 2**-6

    def test_what_is_exact_already_stays_so_where_asked(self, values):
        once = compact_array(values, "float16").astype("float32")
        for storage in ("float16", "int8"):
            again = compact_array(once, storage, exact=True)
            assert again.dtype == np.float16
            np.testing.assert_array_equal(again, once)
        assert (compact_array(once, "int8") != once).any()
        # Nothing that 16 bits do not hold is exempt from rounding.
        np.testing.assert_array_equal(compact_array(values, "int8", exact=True), compact_array(values, "int8"))

    def test_zeros_and_others(self):
        assert (compact_array(np.zeros((64, 64), "float32"), "int8") == 0).all()
        for untouched in (
            np.ones(2 * SMALLEST, "float32"),
            np.ones((1, SMALLEST, 1), "float32"),
            np.ones((8, 8), "float32"),
            np.ones((64, 64), "int32"),
            np.ones((64, 64), "float64"),
        ):
            assert compact_array(untouched, "int8") is untouched


def trained_gamma(rng):
    """Like those of trained normalisations: many entries are as small as can be."""
    return np.where(np.eye(64) > 0, 0.3, rng.choice([2.0**-18, 0.02], (64, 64))).astype("float32")


@pytest.fixture
def compressor(rng):
    model = Compressor("bmshj2018-factorized", quality=None, channels=(64, 72))
    for variable in model.weights:
        if variable.name == "gamma":
            variable.assign(trained_gamma(rng))
        if variable.name == "beta":
            variable.assign(10 ** rng.uniform(-4, 1, 64))
    return model


@pytest.fixture
def classifier(rng):
    model = CI2PViT(
        (32, 32, 3),
        num_classes=3,
        hidden_dim=64,
        num_layers=1,
        num_heads=2,
        mlp_dim=96,
        compressor={"num_filters": 8, "latent_channels": 12},
    )
    for variable in model.weights:
        if variable.name == "moving_variance":
            variable.assign(10 ** rng.uniform(-9, 6, variable.shape))
    return model


def check_same_weights(model, loaded, storage):
    for variable, other in zip(model.weights, loaded.weights, strict=True):
        values, stored = to_numpy(variable), to_numpy(other)
        assert values.dtype == stored.dtype == np.float32
        if storage == "float32" or values.size < SMALLEST or values.ndim < 2:
            np.testing.assert_array_equal(stored, values, err_msg=variable.path)
        else:
            axis = max(axis for axis, side in enumerate(values.shape) if side > 1)
            error = channel_error(np.moveaxis(stored, axis, -1), np.moveaxis(values, axis, -1))
            assert 0 < error <= LARGEST_ERROR[storage], variable.path


@pytest.mark.every_backend
@pytest.mark.parametrize("kind", ["compressor", once("classifier")])
def test_presets_of_both_kinds(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    sizes = {}
    for storage in STORAGES:
        path = tmp_path / storage
        model.save_to_preset(path, storage=storage)
        assert open_preset(path).storage == json.loads((path / "metadata.json").read_text())["storage"] == storage
        sizes[storage] = sum(file.stat().st_size for file in path.glob("*.h5"))
        check_same_weights(model, type(model).from_preset(path), storage)
    # Of models so small, much is vectors and HDF5's own.
    most = {"compressor": {"float16": 0.5, "int8": 0.35}, "classifier": {"float16": 0.6, "int8": 0.5}}[kind]
    assert all(sizes[storage] < share * sizes["float32"] for storage, share in most.items())


@pytest.mark.parametrize("model_class", [CI2PViT, CI2PViTDualScale])
def test_a_classifier_keeps_the_weights_of_the_shipped_compressor(model_class, nano, tmp_path):
    """Latents and files of one serve the other, however it is stored and however often."""
    compressor = Compressor.from_preset("bmshj2018-factorized-mse-5-photos")
    more = {"early_dim": 32, "merge_at": 1} if model_class is CI2PViTDualScale else {}
    model = model_class((32, 32, 3), num_classes=3, compressor=compressor, **{**nano, **more, "hidden_dim": 64})
    expected = compressor.analysis.weights_hash()
    for first, second in (("float16", "int8"), ("int8", "float16"), ("float32", "int8")):
        model.save_to_preset(tmp_path / "once", storage=first)
        once = model_class.from_preset(tmp_path / "once")
        once.save_to_preset(tmp_path / "again", storage=second)
        again = model_class.from_preset(tmp_path / "again")
        assert once.compressor.weights_hash() == again.compressor.weights_hash() == expected
        # Its own weights are rounded as asked.
        kernels = [to_numpy(loaded.get_layer("block_1").weights[2]) for loaded in (model, again)]
        assert kernels[0].size >= SMALLEST and (kernels[0] != kernels[1]).any()


@pytest.mark.parametrize(("storage", "bound"), [("float16", 2**-11), ("int8", 2**-5)])
def test_normalisation_by_compact_parameters(rng, storage, bound):
    gdn = GDN()
    gdn.build((None, 64))
    gdn.gamma.assign(trained_gamma(rng))
    x = rng.normal(size=(2, 64)).astype("float32")
    expected = to_numpy(gdn(x))
    gamma = compact_array(to_numpy(gdn.gamma), storage)
    assert gamma.dtype == np.float16
    gdn.gamma.assign(gamma)
    np.testing.assert_allclose(to_numpy(gdn(x)), expected, rtol=bound)


def test_files_of_equal_weights_are_equal(compressor, tmp_path):
    compressor.save_weights(tmp_path / "a.weights.h5")
    # HDF5's times are whole seconds.
    time.sleep(1.1)
    compressor.save_weights(tmp_path / "b.weights.h5")
    for name in ("a", "b"):
        compact_weights(tmp_path / f"{name}.weights.h5", "int8")
        time.sleep(1.1)
    once = (tmp_path / "a.weights.h5").read_bytes()
    assert once == (tmp_path / "b.weights.h5").read_bytes()


@pytest.mark.every_backend
def test_a_file_of_any_keras_model(tmp_path, rng):
    """Variables that are no 32-bit floats stay, whatever their size, and so do the attributes."""

    class Mixed(keras.layers.Layer):
        def build(self, _):
            shape = (64, 64)
            self.kernel = self.add_weight(shape=shape, initializer="random_normal", name="kernel")
            for dtype in ("uint8", "int32", "bfloat16", "float16"):
                weight = self.add_weight(shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=dtype)
                weight.assign(rng.integers(0, 100, shape))

        def call(self, x):
            return x @ self.kernel

    def make():
        return keras.Sequential([keras.Input((64,)), Mixed()])

    model, path = make(), tmp_path / "model.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        file["layers/mixed/vars"].attrs["note"] = "kept"
    compact_weights(path, "int8")
    with h5py.File(path) as file:
        assert file["layers/mixed/vars"].attrs["note"] == "kept"
        assert file["layers/mixed/vars/0"].dtype == np.float16
    loaded = make()
    loaded.load_weights(path)
    kernel, *others = loaded.get_weights()
    assert np.abs(kernel - model.get_weights()[0]).max() < 1e-3
    for before, after in zip(model.get_weights()[1:], others, strict=True):
        assert after.dtype == before.dtype and (after == before).all()
    assert [file.name for file in tmp_path.iterdir()] == ["model.weights.h5"]


def test_unknown_storage(tmp_path, nano):
    model = ViT((32, 32, 3), num_classes=3, **nano)
    for action in (
        lambda: model.save_to_preset(tmp_path / "preset", storage="int4"),
        lambda: Compressor("bmshj2018-factorized", quality=None, channels=(4, 6)).save_to_preset(
            tmp_path / "preset", storage="int4"
        ),
        lambda: compact_weights(tmp_path / "absent.weights.h5", "int4"),
    ):
        with pytest.raises(ValueError, match="float32, float16, int8.*'int4'"):
            action()
    assert not list(tmp_path.iterdir())
