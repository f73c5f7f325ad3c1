import keras
import numpy as np

from keras_ci2p.data.augmentation import MixParams, collate_mix, mix, sample_mix
from keras_ci2p.layers.batch_augmentation import BatchMixing


def run(images, labels, draw):
    inputs = {"images": images, "labels": labels, **collate_mix(draw)}
    return [keras.ops.convert_to_numpy(value) for value in BatchMixing()(inputs)]


def test_mixup():
    images = np.stack([np.full((2, 2, 3), value, "float32") for value in (0, 100, 200)])
    labels = np.eye(3, dtype="float32")
    draw = MixParams(np.array([1, 2, 0], "int32"), 0.25, (0, 0, 0, 0), 0.25)
    mixed, targets = run(images, labels, draw)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [75, 175, 50])
    np.testing.assert_array_equal(mixed, mixed[:, :1, :1, :1] * np.ones((1, 2, 2, 3)))
    np.testing.assert_allclose(targets, [[0.25, 0.75, 0], [0, 0.25, 0.75], [0.75, 0, 0.25]])


def test_cutmix():
    images = np.stack([np.full((4, 5, 3), value, "float32") for value in (10, 20)])
    labels = np.eye(2, dtype="float32")
    draw = MixParams(np.array([1, 0], "int32"), 1.0, (1, 2, 3, 5), 0.7)
    mixed, targets = run(images, labels, draw)
    expected = np.full((4, 5), 10)
    expected[1:3, 2:5] = 20
    np.testing.assert_array_equal(mixed[0, :, :, 1], expected)
    np.testing.assert_array_equal(mixed[1], 30 - mixed[0])
    np.testing.assert_allclose(targets, [[0.7, 0.3], [0.3, 0.7]], rtol=1e-6)


def test_the_same_as_on_the_host(rng):
    images = rng.uniform(0, 255, (5, 8, 6, 3)).astype("float32")
    labels = rng.dirichlet(np.ones(4), 5).astype("float32")
    for _ in range(6):
        draw = sample_mix(0.8, 1.0, 5, (8, 6), rng)
        for here, there in zip(run(images, labels, draw), mix(images, labels, draw), strict=True):
            assert here.dtype == there.dtype
            np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-4)


def test_the_layer_is_not_cast_to_16_bits(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    images = rng.uniform(0, 255, (2, 4, 4, 3)).astype("float32")
    mixed, _ = run(images, np.eye(2, dtype="float32"), MixParams(np.array([0, 1], "int32"), 1.0, (0, 0, 0, 0), 1.0))
    np.testing.assert_array_equal(mixed, images)


def test_config():
    layer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(BatchMixing(name="m")))
    assert isinstance(layer, BatchMixing) and layer.name == "m"
    shapes = layer.compute_output_shape({"images": (None, 4, 4, 3), "labels": (None, 2)})
    assert shapes == ((None, 4, 4, 3), (None, 2))
