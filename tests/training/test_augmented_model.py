import keras
import numpy as np
import pytest

from keras_ci2p import CI2PViT, ViT
from keras_ci2p.data import Augmentation, image_folder, scan_folder
from keras_ci2p.data.augmentation import CROP_AND_FLIP
from keras_ci2p.data.grain_dataset import EpochDataset
from keras_ci2p.data.raw_examples import DrawMix, RawExamples
from keras_ci2p.training.augmented_model import AugmentedClassifier
from keras_ci2p.training.checkpoint import Checkpoints

SIZE = (32, 32)


@pytest.fixture
def manifest(photos):
    return scan_folder(photos)


def train_data(manifest, augmentation, mix=None):
    examples = RawExamples(manifest.split("train"), SIZE, augmentation)
    return EpochDataset(examples, batch_size=8, shuffle=True, drop_remainder=True, seed=0, mix=mix, num_threads=1)


def make(nano, model_class=ViT, **kwargs):
    model = model_class((*SIZE, 3), num_classes=3, **nano, **kwargs)
    wrapper = AugmentedClassifier(model, SIZE, seed=1)
    wrapper.compile(
        keras.optimizers.AdamW(3e-3),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="top1")],
    )
    return wrapper, model


def test_fit_with_validation(nano, manifest, tmp_path):
    """Augmented and mixed batches to train on, images to validate on; saved and taken up again in between."""
    wrapper, model = make(nano, CI2PViT, freeze_compressor=True)
    compressor = [weight.numpy() for weight in model.compressor.weights]
    val = image_folder(manifest, image_size=SIZE, batch_size=4, split="val", size_multiple=32)
    data = train_data(manifest, Augmentation(), DrawMix(0.8, 1.0, SIZE))
    options = {"steps_per_epoch": 3, "validation_data": val.repeated(), "validation_steps": 2, "verbose": 0}
    history = wrapper.fit(data.repeated(), epochs=1, **options).history
    assert set(history) == {"loss", "top1", "val_loss", "val_top1"} and np.isfinite(history["loss"]).all()
    for before, after in zip(compressor, model.compressor.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    images = np.concatenate([images for images, _ in val])
    np.testing.assert_allclose(wrapper.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)

    seeds = [generator.state for generator in wrapper._flatten_seed_generators()]
    own = {id(variable) for variable in wrapper.variables}
    assert {id(weight) for weight in model.weights} <= own and {id(state) for state in seeds} <= own
    noise = wrapper.augmentation.seed_generator.state
    used = noise.numpy()
    assert (used != keras.random.SeedGenerator(1).state.numpy()).any(), "the noise was drawn in the compiled step"
    Checkpoints(tmp_path).save(1, wrapper, {"epoch": 1})
    again, _ = make(nano, CI2PViT, freeze_compressor=True)
    assert Checkpoints(tmp_path).restore(again) == {"epoch": 1}
    np.testing.assert_array_equal(again.augmentation.seed_generator.state, used)
    np.testing.assert_allclose(again.predict(images, verbose=0), wrapper.predict(images, verbose=0), atol=1e-5)


def test_the_loss_falls(nano, manifest):
    wrapper, _ = make(nano, drop_path_rate=0.0)
    data = train_data(manifest, CROP_AND_FLIP)
    losses = wrapper.fit(data.repeated(), steps_per_epoch=3, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_loss_and_metrics_get_mixed_labels(nano, rng):
    wrapper, model = make(nano)
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
    assert results["loss"] == pytest.approx(expected["loss"], rel=1e-4) and results["top1"] == expected["top1"]
    unmixed = wrapper.evaluate({"images": images, "warp": warp}, labels, verbose=0, return_dict=True)
    plain = wrapper.evaluate(images.astype("float32"), labels, verbose=0, return_dict=True)
    assert unmixed["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert abs(unmixed["loss"] - results["loss"]) > 1e-4


def test_config(nano):
    wrapper, model = make(nano)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(wrapper))
    assert again.augmentation.image_size == SIZE and again.augmentation.seed == 1
    assert again.classifier.get_config() == model.get_config()
