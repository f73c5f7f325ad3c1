import keras
import numpy as np
import pytest

from keras_ci2p import CI2PViT, ViT
from keras_ci2p.data import Augmentation, image_folder, scan_folder
from keras_ci2p.data.augmentation import CROP_AND_FLIP, AugmentParams, SampleMixup, collate_params
from keras_ci2p.data.loader import DataLoader, LoadRawImage
from keras_ci2p.models.augmented_classifier import AugmentedClassifier
from keras_ci2p.training.run_dir import Checkpoints

SIZE = (32, 32)
COMPRESSOR = {"num_filters": 4, "latent_channels": 8}


@pytest.fixture
def manifest(photos):
    return scan_folder(photos)


def train_data(manifest, augmentation, mix=None):
    examples = LoadRawImage(manifest.split("train"), SIZE, augmentation)
    return DataLoader(examples, batch_size=8, shuffle=True, drop_remainder=True, seed=0, mix=mix, num_threads=1)


def make(nano, model_class=ViT, **kwargs):
    model = model_class((*SIZE, 3), num_classes=3, **{**nano, "num_layers": 1}, **kwargs)
    wrapper = AugmentedClassifier(model, SIZE, seed=1)
    wrapper.compile(
        keras.optimizers.AdamW(3e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalCrossentropy(from_logits=True, name="metric")],
    )
    return wrapper, model


@pytest.mark.once
def test_fit_with_validation(nano, manifest, tmp_path):
    """Augmented and mixed batches to train on, images to validate on; saved and taken up again in between."""
    wrapper, model = make(nano, CI2PViT, compressor=COMPRESSOR)
    compressor = [weight.numpy() for weight in model.compressor.weights]
    val = image_folder(manifest, image_size=SIZE, batch_size=6, split="val", patch_size=32)
    data = train_data(manifest, Augmentation(), SampleMixup(0.8, 1.0, SIZE))
    history = wrapper.fit(
        data.repeat(),
        steps_per_epoch=3,
        validation_data=val.repeat(),
        validation_steps=1,
        shuffle=False,
        verbose=0,
    ).history
    assert set(history) == {"loss", "metric", "val_loss", "val_metric"} and np.isfinite(history["loss"]).all()
    for before, after in zip(compressor, model.compressor.weights, strict=True):
        np.testing.assert_array_equal(before, after)

    noise = wrapper.augmentation.seed_generator.state
    # With the random generators of drop path.
    assert {id(v) for v in [*model.variables, noise]} <= {id(v) for v in wrapper.variables}
    used = keras.ops.convert_to_numpy(noise)
    assert (used != keras.ops.convert_to_numpy(keras.random.SeedGenerator(1).state)).any()
    Checkpoints(tmp_path).save(1, wrapper, {"epoch": 1})
    again, _ = make(nano, CI2PViT, compressor=COMPRESSOR)
    assert Checkpoints(tmp_path).restore(again) == {"epoch": 1}
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(again.augmentation.seed_generator.state), used)
    for old, new in zip(wrapper.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.once
def test_the_loss_falls(nano, manifest):
    wrapper, _ = make(nano, drop_path_rate=0.0)
    data = train_data(manifest, CROP_AND_FLIP)
    losses = wrapper.fit(data.repeat(), steps_per_epoch=3, epochs=8, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_loss_and_metrics_get_mixed_labels(nano, rng):
    wrapper, model = make(nano)
    # A fresh head answers nearly alike to everything.
    model.head.kernel.assign(100 * model.head.kernel)
    images = rng.integers(0, 256, (3, *SIZE, 3)).astype("uint8")
    labels = np.eye(3, dtype="float32")
    warp = np.tile(np.array([[1 / 32, 0, 0], [0, 1 / 32, 0]], "float32"), (3, 1, 1))
    partner = np.array([1, 2, 0], "int32")
    mix = {
        "partner": partner,
        "weight": np.full(3, 0.3, "float32"),
        "box": np.zeros((3, 4), "int32"),
        "label_weight": np.full(3, 0.3, "float32"),
    }
    mixed = 0.3 * images + 0.7 * images[partner]
    targets = 0.3 * labels + 0.7 * labels[partner]
    results = wrapper.evaluate({"images": images, "warp": warp, **mix}, labels, verbose=0, return_dict=True)
    expected = wrapper.evaluate(mixed.astype("float32"), targets, verbose=0, return_dict=True)
    assert results == pytest.approx(expected, rel=1e-4)
    unmixed = wrapper.evaluate({"images": images, "warp": warp}, labels, verbose=0, return_dict=True)
    plain = wrapper.evaluate(images.astype("float32"), labels, verbose=0, return_dict=True)
    assert unmixed == pytest.approx(plain, rel=1e-4)
    assert all(abs(unmixed[name] - results[name]) > 2e-3 * results[name] for name in results)
    np.testing.assert_allclose(wrapper.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)


def test_pixels_and_positions_stay_in_32_bits(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    wrapper = AugmentedClassifier(keras.Sequential([keras.layers.Flatten(dtype="float32", autocast=False)]), SIZE)
    images = rng.integers(0, 256, (2, *SIZE, 3)).astype("uint8")
    draw = AugmentParams((0, 0, 32, 32), True, (), False, 0.0, 256, None)
    pixels = wrapper.predict(
        {"images": images, **collate_params(CROP_AND_FLIP, [draw] * 2, [SIZE] * 2, SIZE)}, verbose=0
    )
    np.testing.assert_array_equal(pixels.reshape(images.shape), images[:, :, ::-1])


def test_config(nano):
    wrapper, model = make(nano)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(wrapper))
    assert again.augmentation.image_size == SIZE and again.augmentation.seed == 1
    assert again.classifier.get_config() == model.get_config()
