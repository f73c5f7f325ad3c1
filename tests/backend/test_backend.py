"""The precision of products and the seeds of random numbers, on each backend's own switches."""

import random
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_ci2p.backend import MATMUL_PRECISIONS, set_matmul_precision, set_random_seed

BACKEND = keras.backend.backend()


def state():
    if BACKEND == "torch":
        import torch

        return torch.get_float32_matmul_precision()
    if BACKEND == "jax":
        import jax

        return jax.config.jax_default_matmul_precision
    import tensorflow as tf

    return tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.fixture
def restored():
    before = state()
    yield
    if BACKEND == "torch":
        import torch

        torch.set_float32_matmul_precision(before)
    elif BACKEND == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", before)
    else:
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(before)
    assert state() == before


@pytest.mark.parametrize("precision", MATMUL_PRECISIONS)
def test_matmul_precision(precision, rng, restored):
    if BACKEND == "tensorflow" and precision == "bfloat16":
        with pytest.raises(ValueError, match="no float32 products in bfloat16. Received: matmul_precision='bfloat16'"):
            set_matmul_precision(precision)
        return
    set_matmul_precision(precision)
    in_torch = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}
    expected = {"torch": in_torch[precision], "jax": precision, "tensorflow": precision != "float32"}
    assert state() == expected[BACKEND]
    matrix = rng.normal(size=(256, 256)).astype("float32")
    product = keras.ops.matmul(matrix, matrix)
    assert keras.backend.standardize_dtype(product.dtype) == "float32"
    # Of numbers that are rounded to eight bits, whether this processor does that or not.
    worst = abs(keras.ops.convert_to_numpy(product) - matrix.astype("float64") @ matrix).max()
    assert worst < (0.5 if precision != "float32" else 1e-3)


def test_of_a_run(restored, photos, nano, tmp_path, monkeypatch):
    from keras_ci2p.names import VARIANTS
    from keras_ci2p.training import RECIPES, TrainConfig, train

    monkeypatch.setitem(VARIANTS, "nano", nano)
    recipe = RECIPES["quick"].override({"image_size": 32, "epochs": 1, "batch_size": 8})
    options = {"model": "vit", "variant": "nano", "recipe": recipe}
    settings = TrainConfig(str(photos), matmul_precision="bfloat16", **options)
    run = tmp_path / "run"
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="no float32 products in bfloat16"):
            train(settings, run, verbose=0)
        assert not run.exists()
        return
    train(settings, run, verbose=0)
    assert state() == {"torch": "medium", "jax": "bfloat16"}[BACKEND]
    with pytest.raises(ValueError, match="matmul_precision: 'bfloat16', now None"):
        train(TrainConfig(str(photos), **options), run, resume=True, verbose=0)


def test_random_seed():
    """Weights and dropped values are those of Keras's function."""

    def drawn(set_seed):
        set_seed(7)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dropout(0.5)])
        outputs = keras.ops.convert_to_numpy(model(np.ones((3, 5), "float32"), training=True))
        values = [random.random(), *np.random.rand(2), *model.get_weights()[0].ravel(), *outputs.ravel()]
        if BACKEND == "torch":
            import torch

            values += torch.rand(2).tolist()
        return values

    expected = drawn(keras.utils.set_random_seed)
    assert drawn(set_random_seed) == expected and len(set(expected)) > 20


@pytest.mark.skipif(BACKEND == "tensorflow", reason="of the other backends")
def test_random_seed_imports_no_other_backend():
    code = "import sys\nfrom keras_ci2p.backend import set_random_seed\nset_random_seed(1)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    modules = done.stdout.split()
    assert BACKEND in modules and "tensorflow" not in modules
