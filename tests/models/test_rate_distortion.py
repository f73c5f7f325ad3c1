"""Training of compressors."""

import h5py
import keras
import numpy as np
import pytest
from compressor_steps import (
    AUXILIARY_LEARNING_RATE,
    BATCH,
    CLIP_NORM,
    LEARNING_RATE,
    LMBDA,
    make_batches,
    make_compressor,
)
from golden_weights import GOLDEN

from keras_ci2p import Compressor
from keras_ci2p.models.rate_distortion import LAMBDAS, psnr, rate_distortion_optimizer

to_numpy = keras.ops.convert_to_numpy


def small(**arguments):
    return Compressor("bmshj2018-factorized", quality=None, channels=(6, 8), **arguments)


def test_twenty_steps_are_those_of_compressai():
    """CompressAI's own layers, loss and two optimizers, with the same noise (`tests/oracle/training.py`)."""
    golden = np.load(GOLDEN / "compressor_steps.npz")
    compressor = make_compressor()
    compressor.compile(rate_distortion_optimizer(LEARNING_RATE, AUXILIARY_LEARNING_RATE, CLIP_NORM), lmbda=LMBDA)
    rows = []
    for images, noise in make_batches():
        logs = compressor.train_on_batch({"images": images, "noise": noise}, return_dict=True)
        rows.append({name: float(value) for name, value in logs.items()})
        compressor.reset_metrics()
    for name in ("cost", "bpp"):
        np.testing.assert_allclose([row[name] for row in rows], golden[name], rtol=1e-3, err_msg=name)
    auxiliary = [row["loss"] - row["cost"] for row in rows]
    np.testing.assert_allclose(auxiliary, golden["auxiliary"], rtol=1e-3)
    assert rows[-1]["cost"] < 0.8 * rows[0]["cost"], "it learns"
    latents = to_numpy(compressor.encode(images))
    np.testing.assert_allclose(latents, golden["latents"], atol=5e-3 * np.abs(golden["latents"]).max())
    quantiles = to_numpy(compressor.entropy_bottleneck.quantiles)
    # CompressAI moves the quantiles after the other weights of the same step, we with them.
    np.testing.assert_allclose(quantiles, golden["quantiles"], atol=3 * AUXILIARY_LEARNING_RATE)


def test_metrics_by_hand(rng):
    images = rng.integers(0, 256, (3, 32, 48, 3)).astype("uint8")
    compressor = small()
    compressor.compile(lmbda=0.01)
    logs = compressor.evaluate(images, batch_size=2, verbose=0, return_dict=True)
    restored = to_numpy(compressor(images)["x_hat"])
    mse = np.square(restored - images).mean((1, 2, 3))
    bpp = np.mean([compressor.bits_per_pixel(images[i : i + 1]) for i in range(3)])
    assert logs["bpp"] == pytest.approx(bpp, rel=1e-4)
    assert logs["cost"] == pytest.approx(0.01 * mse.mean() + bpp, rel=1e-4)
    clipped = np.square(restored.clip(0, 255) - images).mean((1, 2, 3))
    assert logs["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / clipped)), rel=1e-4)


def test_psnr():
    assert float(psnr(np.float32(255**2))) == pytest.approx(0)
    assert float(psnr(np.float32(65.025))) == pytest.approx(30, abs=1e-4)
    assert float(psnr(np.float32(0))) == pytest.approx(120, abs=1e-3)


def test_fit_on_images_alone_draws_new_noise(rng):
    images = rng.integers(0, 256, (8, 32, 32, 3)).astype("uint8")
    compressor = small()
    compressor.compile(lmbda=0.025)
    history = compressor.fit(images, batch_size=BATCH, epochs=2, verbose=0).history
    assert history["cost"][1] < history["cost"][0]
    a, b = (to_numpy(compressor(images, training=True)["x_hat"]) for _ in range(2))
    assert np.abs(a - b).max() > 0


def test_a_preset_of_a_compiled_compressor_holds_its_weights_only(tmp_path, rng):
    plain, compiled = small(), small()
    compiled.compile(lmbda=0.025)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    compiled.fit(images, verbose=0)
    # A random compressor's file says that it is one.
    plain.set_weights([1.01 * weight for weight in plain.get_weights()])
    plain.save_to_preset(tmp_path / "plain")
    compiled.save_to_preset(tmp_path / "compiled")
    assert _entries(tmp_path / "compiled") == _entries(tmp_path / "plain")
    loaded = Compressor.from_preset(tmp_path / "compiled")
    np.testing.assert_array_equal(to_numpy(loaded(images)["x_hat"]), to_numpy(compiled(images)["x_hat"]))


def _entries(preset):
    names = []
    with h5py.File(preset / "model.weights.h5") as file:
        file.visit(names.append)
    return names


def test_a_saved_model_is_compiled_again(tmp_path, rng):
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    compressor = small()
    compressor.compile(rate_distortion_optimizer(1e-3), lmbda=0.05)
    compressor.fit(images, verbose=0)
    compressor.save(tmp_path / "compressor.keras")
    loaded = keras.saving.load_model(tmp_path / "compressor.keras")
    assert loaded.lmbda == 0.05
    expected = compressor.evaluate(images, verbose=0, return_dict=True)
    assert loaded.evaluate(images, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)


def test_lambda_is_that_of_the_quality():
    compressor = Compressor("bmshj2018-factorized-relu", quality=2)
    compressor.compile()
    assert compressor.lmbda == LAMBDAS[2] == 0.0035


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="lmbda"):
        small().compile()
    with pytest.raises(ValueError, match="positive"):
        small().compile(lmbda=0)
    with pytest.raises(ValueError, match="own loss"):
        small().compile(lmbda=1, loss="mse")
    with pytest.raises(ValueError, match="cannot be trained"):
        Compressor("cheng2020-anchor", quality=1).compile()
    with pytest.raises(ValueError, match="cannot be trained"):
        Compressor("bmshj2018-hyperprior", quality=1).compile()
