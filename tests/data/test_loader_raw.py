import dataclasses

import keras
import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import CROP_AND_FLIP, Augmentation, DataError, scan_folder
from keras_ci2p.data.augmentation import AugmentParams, MixParams, Mixup, SampleMixup, collate_mix, collate_params
from keras_ci2p.data.loader import DataLoader, LoadImage, LoadRawImage
from keras_ci2p.data.transforms import augment
from keras_ci2p.layers.batch_augmentation import BatchAugmentation, BatchMixing

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

SIZE = (32, 48)
# Without noise, which host and device draw for themselves.
AUGMENTATION = Augmentation(erasing=0.0)


@pytest.fixture
def manifest(photos):
    return scan_folder(photos)


def dataset(examples, mix=None, seed=3):
    return DataLoader(examples, batch_size=5, shuffle=True, drop_remainder=True, seed=seed, mix=mix, num_threads=2)


def equal(one, other):
    return all(np.array_equal(one[0][key], other[0][key]) for key in one[0]) and np.array_equal(one[1], other[1])


def test_batches(manifest):
    raw = LoadRawImage(manifest, SIZE, Augmentation(randaugment_ops=3))
    batches = list(dataset(raw, SampleMixup(0.8, 1.0, SIZE)))
    assert len(batches) == 6
    for inputs, labels in batches:
        signature = {name: (value.shape[1:], value.dtype.name) for name, value in inputs.items()}
        assert signature == {
            "images": ((48, 72, 3), "uint8"),
            "warp": ((2, 3), "float32"),
            "operations": ((3,), "int32"),
            "values": ((3,), "float32"),
            "frames": ((3, 2, 3), "float32"),
            "grayscale": ((), "bool"),
            "blur": ((), "float32"),
            "solarize": ((), "float32"),
            "erase": ((4,), "int32"),
            "partner": ((), "int32"),
            "weight": ((), "float32"),
            "box": ((4,), "int32"),
            "label_weight": ((), "float32"),
        }
        assert {len(value) for value in inputs.values()} == {5}
        assert labels.shape == (5, 3) and labels.dtype == "float32"
        # The class is the brightest channel; labels are mixed later, with the images.
        np.testing.assert_array_equal(inputs["images"].mean((1, 2)).argmax(1), labels.argmax(1))


def test_the_same_for_the_same_seed_and_new_in_each_epoch(manifest):
    def epochs(seed):
        data = dataset(LoadRawImage(manifest, SIZE, AUGMENTATION), SampleMixup(0.8, 1.0, SIZE), seed)
        return [list(data) for _ in range(2)]

    runs = [epochs(seed) for seed in (3, 3, 4)]
    for one, other in zip(runs[0], runs[1], strict=True):
        assert all(equal(*pair) for pair in zip(one, other, strict=True))
    for other in (runs[0][1], runs[2][0]):
        for name in ("warp", "label_weight"):
            assert not any(np.array_equal(a[0][name], b[0][name]) for a, b in zip(runs[0][0], other, strict=True))


@pytest.mark.every_backend
def test_what_host_and_device_make_of_the_same_seed(tmp_path):
    """The same photos in the same order with the same draws: the batches agree but for resampling."""
    manifest = scan_folder(write_photos(tmp_path / "photos", count=5))
    for i, file in enumerate(manifest.files):
        smooth = np.random.default_rng(i).integers(40, 216, (4, 5, 3)).astype("uint8")
        Image.fromarray(smooth).resize((90, 70), Image.Resampling.BICUBIC).save(manifest.root / file)

    def transform(image, image_size, rng):
        return augment(image, image_size, rng, AUGMENTATION)

    host = dataset(LoadImage(manifest, SIZE, transform), Mixup(0.8, 1.0))
    device = dataset(LoadRawImage(manifest, SIZE, AUGMENTATION), SampleMixup(0.8, 1.0, SIZE))
    augmentation, mixing = BatchAugmentation(SIZE), BatchMixing()
    for (images, labels), (inputs, own_labels) in zip(host, device, strict=True):
        mixed, targets = mixing({**inputs, "images": augmentation(inputs), "labels": own_labels})
        difference = np.abs(keras.ops.convert_to_numpy(mixed) - images)
        assert np.median(difference) < 1.5 and difference.mean() < 4
        assert np.abs(images - images[::-1]).mean() > 20
        np.testing.assert_allclose(keras.ops.convert_to_numpy(targets), labels, atol=1e-6)


def test_photos_in_memory_are_read_once(manifest, monkeypatch):
    reads = []
    open_photo = type(manifest).open
    monkeypatch.setattr(type(manifest), "open", lambda self, index: reads.append(index) or open_photo(self, index))
    kept, fresh = (
        dataset(LoadRawImage(manifest, SIZE, AUGMENTATION, in_memory=in_memory)) for in_memory in (True, False)
    )
    epochs = [list(kept), list(kept)]
    assert sorted(reads) == list(range(30))
    for epoch in epochs:
        assert all(equal(*pair) for pair in zip(epoch, fresh, strict=True))


def test_others_take_the_place_of_an_unreadable_photo(manifest):
    (manifest.root / manifest.files[7]).write_bytes(b"")
    for file in manifest.files[20:]:
        (manifest.root / file).unlink()
    raw = LoadRawImage(manifest, (14, 16), Augmentation(), in_memory=True)
    with pytest.warns(UserWarning, match="can no longer be read"):
        elements = [raw(i, np.random.default_rng(i)) for i in range(30)]
    inputs, labels = raw.collate(elements[:10])
    assert inputs["images"].shape == (10, 21, 24, 3) and labels.shape == (10, 3)
    for value in inputs.values():
        np.testing.assert_array_equal(value[9], value[0])
    # Where none of a batch is left, the data's first one takes all places.
    others, labels = raw.collate(elements[20:])
    assert labels.shape == (10, 3) and (labels == labels[0]).all()
    assert (others["images"] == inputs["images"][0]).all()
    for name, value in inputs.items():
        assert others[name].shape == value.shape and others[name].dtype == value.dtype
    for file in manifest.files[:20]:
        (manifest.root / file).unlink()
    with pytest.raises(DataError, match="None of the 30 images of .*photos can be read any longer"):
        LoadRawImage(manifest, SIZE, Augmentation()).collate(elements[20:])


def test_collate():
    """Each entry by hand, for a photo of 100 x 200 and a result of 10 x 20."""
    draw = AugmentParams(
        box=(50, 20, 100, 40),
        flip=True,
        ops=(("translate_x", 0.25), ("posterize", 2.1), ("color", -0.5)),
        grayscale=True,
        blur=1.5,
        solarize=128,
        erase=(1, 2, 3, 4),
    )
    parameters = collate_params(Augmentation(randaugment_ops=4), [draw], [(100, 200)], (10, 20))
    # 5 pixels to the left, mirrored, then the box: x from 0.75 down to 0.25, y from 0.2 up to 0.6.
    np.testing.assert_allclose(parameters["warp"], [[[-0.5 / 20, 0, 0.75 - 0.125], [0, 0.4 / 10, 0.2]]], rtol=1e-6)
    np.testing.assert_array_equal(parameters["operations"], [[0, 4, 7, 0]])
    np.testing.assert_allclose(parameters["values"], [[0, 32, 0.5, 0]])
    frame = np.array([[1 / 20, 0, 0], [0, 1 / 10, 0]])
    np.testing.assert_allclose(parameters["frames"][0, 0], frame + [[0, 0, 0.25], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(parameters["frames"][0, 1:], [frame] * 3, rtol=1e-6)
    assert parameters["grayscale"] == [True] and parameters["blur"] == [1.5] and parameters["solarize"] == [128]
    np.testing.assert_array_equal(parameters["erase"], [[1, 2, 4, 6]])
    few = collate_params(dataclasses.replace(CROP_AND_FLIP, blur=0.5), [draw._replace(ops=())], [(100, 200)], (10, 20))
    assert set(few) == {"warp", "blur"}


def test_collate_mix():
    parameters = collate_mix(MixParams(np.array([1, 0], "int32"), 1.0, (1, 2, 3, 4), 0.75))
    assert {name: value.tolist() for name, value in parameters.items()} == {
        "partner": [1, 0],
        "weight": [1, 1],
        "box": [[1, 2, 3, 4]] * 2,
        "label_weight": [0.75, 0.75],
    }
