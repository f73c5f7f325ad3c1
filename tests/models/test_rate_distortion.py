"""Training of compressors."""

import h5py
import keras
import numpy as np
import pytest
from compressor_steps import (
    AUXILIARY_LEARNING_RATE,
    BATCH,
    CASES,
    CLIP_NORM,
    LEARNING_RATE,
    make_batches,
    make_compressor,
)
from conftest import once
from golden_weights import GOLDEN

from keras_ci2p import Compressor
from keras_ci2p.codec import ms_ssim
from keras_ci2p.models.rate_distortion import LAMBDAS, distortion, psnr, rate_distortion_optimizer

to_numpy = keras.ops.convert_to_numpy


def small(**arguments):
    return Compressor("bmshj2018-factorized", quality=None, channels=(6, 8), **arguments)


@pytest.mark.parametrize("case", [CASES[0], *map(once, CASES[1:-1]), CASES[-1]], ids=lambda case: case.name)
def test_first_steps_are_those_of_compressai(case):
    """CompressAI's own layers, loss and two optimizers, with the same noise (`tests/oracle/training.py`)."""
    golden = np.load(GOLDEN / "compressor_steps.npz")
    golden = {key.rsplit("/", 1)[1]: golden[key] for key in golden.files if key.startswith(case.name)}
    compressor = make_compressor(case)
    optimizer = rate_distortion_optimizer(LEARNING_RATE, AUXILIARY_LEARNING_RATE, CLIP_NORM)
    compressor.compile(optimizer, lmbda=case.lmbda, metric=case.metric)
    rows = []
    for batch in make_batches(case):
        logs = compressor.train_on_batch(batch, return_dict=True)
        rows.append({name: float(value) for name, value in logs.items()})
        compressor.reset_metrics()
    for name in ("cost", "bpp"):
        np.testing.assert_allclose([row[name] for row in rows], golden[name], rtol=1e-3, err_msg=name)
    auxiliary = [row["loss"] - row["cost"] for row in rows]
    np.testing.assert_allclose(auxiliary, golden["auxiliary"], rtol=1e-3)
    assert rows[-1]["cost"] < (0.8 if case.steps == 20 else 1) * rows[0]["cost"], "it learns"
    latents = to_numpy(compressor.encode(batch["images"]))[:, ::3, ::3]
    np.testing.assert_allclose(latents, golden["latents"], atol=5e-3 * np.abs(golden["latents"]).max())
    quantiles = to_numpy(compressor.entropy_bottleneck.quantiles)
    # CompressAI moves the quantiles after the other weights of the same step, we with them.
    np.testing.assert_allclose(quantiles, golden["quantiles"], atol=3 * AUXILIARY_LEARNING_RATE)


@pytest.mark.once
def test_ms_ssim(rng):
    """The NumPy one by `keras.ops`; unlike images have a finite gradient."""
    images = rng.integers(0, 256, (2, 164, 175, 3)).cumsum(axis=2) % 256
    others = np.clip(images + rng.normal(0, 20, images.shape), 0, 255)
    images, others = images.astype("float32"), others.astype("float32")
    values = to_numpy(distortion(images, others, "ms-ssim"))
    expected = [1 - ms_ssim(*pair) for pair in zip(images, others, strict=True)]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    compressor = small()
    compressor.compile(keras.optimizers.SGD(1e-3, clipnorm=1.0), metric="ms-ssim", lmbda=10)
    images = np.pad(images, [(0, 0), (0, 12), (0, 1), (0, 0)], "reflect")
    logs = compressor.test_on_batch(images, return_dict=True)
    x_hat = to_numpy(compressor(images)["x_hat"])
    error, clipped = (
        np.mean([1 - ms_ssim(*pair) for pair in zip(images, x, strict=True)]) for x in (x_hat, x_hat.clip(0, 255))
    )
    assert float(logs["ms_ssim"]) == pytest.approx(1 - clipped, abs=1e-4)
    assert float(logs["cost"]) == pytest.approx(10 * error + compressor.bits_per_pixel(images), rel=1e-4)
    compressor.train_on_batch(images)
    assert all(np.isfinite(weight).all() for weight in compressor.get_weights())


@pytest.mark.once
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


def same_images_weighed(compressor, images, **arguments):
    return compressor.evaluate(images, batch_size=4, verbose=0, return_dict=True, **arguments)


@pytest.mark.once
def test_sample_weights(rng):
    """An image of weight 0 counts for nothing, one of weight 2 as two; `class_weight` gives them by the labels."""
    images = rng.integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    compressor = small()
    compressor.compile(rate_distortion_optimizer(1e-3), lmbda=0.01)
    weights = np.array([2, 1, 1, 0], "float32")
    weighed = same_images_weighed(compressor, images, sample_weight=weights)
    as_often = same_images_weighed(compressor, images[[0, 0, 1, 2]])
    assert weighed == pytest.approx(as_often, rel=1e-4)
    assert weighed["cost"] != pytest.approx(same_images_weighed(compressor, images)["cost"], rel=1e-3)
    column = same_images_weighed(compressor, images, sample_weight=weights[:, None])
    assert column == pytest.approx(weighed, rel=1e-6)
    with pytest.raises(ValueError, match="give these too, as `y`"):
        compressor.fit(images, class_weight={0: 2.0}, verbose=0)

    inputs = {"images": images, "noise": rng.uniform(-0.5, 0.5, (4, 2, 2, 8)).astype("float32")}
    start, labels, ends = compressor.get_weights(), np.array([[0], [1], [1], [2]]), []
    for arguments in ({"class_weight": {0: 2.0, 2: 0.0}}, {"sample_weight": weights}, {}):
        compressor.set_weights(start)
        compressor.compile(keras.optimizers.SGD(1e-3, clipnorm=1.0), lmbda=0.01)
        validation = (images, None, weights)
        history = compressor.fit(
            inputs, labels, batch_size=4, shuffle=False, verbose=0, validation_data=validation, **arguments
        ).history
        end = same_images_weighed(compressor, images, sample_weight=weights)
        assert history["val_cost"] == pytest.approx([end["cost"]], rel=1e-4)
        ends.append(compressor.get_weights())
    assert all(np.array_equal(one, other) for one, other in zip(*ends[:2], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(*ends[1:], strict=True))
    with pytest.raises(ValueError, match="one number for each image"):
        same_images_weighed(compressor, images, sample_weight=np.ones((4, 3)))


@pytest.mark.once
def test_regularizers_and_further_losses_count(rng):
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    compressor = small()
    compressor.compile(lmbda=0.01)
    plain = compressor.evaluate(images, verbose=0, return_dict=True)
    kernel = compressor.synthesis.stages[0].kernel
    kernel.regularizer = keras.regularizers.L2(0.5)
    compressor.compile(lmbda=0.01)
    squares = 0.5 * np.square(to_numpy(kernel)).sum()
    regular = compressor.evaluate(images, verbose=0, return_dict=True)
    assert regular["loss"] == pytest.approx(plain["loss"] + squares, rel=1e-4)
    assert regular["cost"] == pytest.approx(plain["cost"], rel=1e-6)
    kernel.regularizer = None

    class Further(Compressor):
        def call(self, images, noise=None, training=False):
            self.add_loss(keras.ops.convert_to_tensor(7.0))
            return super().call(images, noise, training)

    more = Further("bmshj2018-factorized", quality=None, channels=(6, 8))
    more.set_weights(compressor.get_weights())
    more.compile(lmbda=0.01)
    assert more.evaluate(images, verbose=0)[0] == pytest.approx(plain["loss"] + 7, rel=1e-4)


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


@pytest.mark.once
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


@pytest.mark.once
def test_a_saved_model_is_compiled_again(tmp_path, rng):
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    compressor = small()
    compressor.compile(rate_distortion_optimizer(1e-3), lmbda=0.05, metric="mse")
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
    compressor.compile(metric="ms-ssim")
    assert compressor.lmbda == 4.58


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="lmbda"):
        small().compile()
    with pytest.raises(ValueError, match="positive"):
        small().compile(lmbda=0)
    with pytest.raises(ValueError, match="`metric` must be one of mse, ms-ssim"):
        small().compile(lmbda=1, metric="ssim")
    for own in ({"loss": "mse"}, {"loss_weights": [1]}, {"metrics": ["mse"]}, {"weighted_metrics": ["mse"]}):
        with pytest.raises(ValueError, match=f"own loss and metrics.*Received: {next(iter(own))}="):
            small().compile(lmbda=1, **own)
    for wrong in ("mse", keras.losses.MeanSquaredError(), float("nan"), float("inf"), -1):
        with pytest.raises(ValueError, match="`lmbda`, after the optimizer, .* has its own loss"):
            small().compile("adam", wrong)
    small().compile("adam", np.float32(0.5))
    with pytest.raises(ValueError, match="cannot be trained"):
        Compressor("cheng2020-anchor", quality=1).compile()
    with pytest.raises(ValueError, match="cannot be trained"):
        Compressor("mbt2018", quality=1).compile()
