import importlib
import itertools
import os
import re
import sys
import threading
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

import keras_ci2p
from keras_ci2p.data import DataError, image_folder, scan_folder
from keras_ci2p.data.manifest import in_threads

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once


def collect(dataset):
    images, labels = zip(*dataset, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def folder(photos, **kwargs):
    return image_folder(photos, **{"image_size": 32, "batch_size": 8, **kwargs})


def test_batches(photos):
    dataset = folder(photos)
    assert dataset.class_names == ("bird", "cat", "dog") and dataset.steps_per_epoch == 3
    batches = list(dataset)
    assert len(batches) == 3
    for images, labels in batches:
        assert images.shape == (8, 32, 32, 3) and images.dtype == "float32"
        assert images.min() >= 0 and 100 < images.max() <= 255
        assert labels.shape == (8, 3) and labels.dtype == "float32"
        np.testing.assert_array_equal(labels.sum(1), 1)
        # The class is the brightest channel: images and labels belong together.
        np.testing.assert_array_equal(images.mean((1, 2)).argmax(1), labels.argmax(1))


def test_its_length_is_the_number_of_batches(photos):
    for split, size, count in (("train", 8, 3), ("val", 4, 2), ("all", 8, 4)):
        dataset = folder(photos, split=split, batch_size=size)
        assert len(dataset) == dataset.steps_per_epoch == count == len(list(dataset))


@pytest.mark.every_backend
def test_class_names_of_a_model(photos):
    """In its order, and with one that the data have no images of."""
    names = ("dog", "eel", "bird", "cat")
    expected, dataset = folder(photos, split="all"), folder(photos, split="all", class_names=names)
    assert dataset.class_names == names
    places = [names.index(name) for name in expected.class_names]
    for (images, labels), (same, fewer) in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels[:, places], fewer)
        assert labels.shape[1] == 4 and not labels[:, 1].any()
    # The split is that of the data.
    train = folder(photos, class_names=names).manifest
    assert sorted(train.files) == sorted(folder(photos).manifest.files)
    with pytest.raises(DataError, match="not among those asked for: dog. Asked for: bird, cat"):
        folder(photos, class_names=["bird", "cat"])


def test_validation_is_whole_ordered_and_unchanged(photos):
    dataset = folder(photos, split="val", batch_size=4, image_size=(32, 64))
    assert dataset.steps_per_epoch == 2
    first, again = collect(dataset), collect(dataset)
    assert first[0].shape == (6, 32, 64, 3)
    np.testing.assert_array_equal(first[1].argmax(1), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(first[0], again[0])


def test_each_epoch_is_new_and_the_same_for_the_same_seed(photos):
    def order(epoch):
        return epoch[1].argmax(1).tolist()

    runs = []
    for seed in (0, 0, 1):
        dataset = folder(photos, seed=seed)
        runs.append([collect(dataset) for _ in range(3)])
        assert dataset.epoch == 3
    for epoch, repeated in zip(runs[0], runs[1], strict=True):
        np.testing.assert_array_equal(epoch[0], repeated[0])
        np.testing.assert_array_equal(epoch[1], repeated[1])
    orders = [order(epoch) for epoch in runs[0] + runs[2]]
    assert len({tuple(o) for o in orders}) == 6


def test_augmentation_is_new_in_each_epoch(photos):
    """The same photo, found again by its unaugmented pixels' class and order, is cropped anew."""
    seen = []

    def remember(image, image_size, rng):
        seen.append((np.asarray(image).sum(), rng.random()))
        return np.zeros((*image_size, 3), "uint8")

    dataset = folder(photos, augment=remember, num_threads=1)
    collect(dataset), collect(dataset)
    draws = {}
    for photo, draw in seen:
        draws.setdefault(photo, set()).add(draw)
    assert sum(len(values) > 1 for values in draws.values()) > 15
    assert len({draw for _, draw in seen}) == len(set(seen))


def test_each_photo_once_in_an_epoch(photos):
    dataset = folder(photos, augment=False, batch_size=24)
    images, _ = collect(dataset)
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 24


def test_looking_at_the_first_batches_does_not_use_up_an_epoch(photos):
    dataset = folder(photos)
    list(itertools.islice(dataset, 2))
    assert dataset.epoch == 0
    first = collect(dataset)
    np.testing.assert_array_equal(first[0], collect(folder(photos))[0])


def test_repeated_begins_at_any_epoch(photos):
    dataset = folder(photos)
    epochs = [collect(dataset) for _ in range(3)]
    repeated = iter(dataset.repeat(initial_epoch=1))
    for epoch in epochs[1:]:
        images, labels = collect(itertools.islice(repeated, 3))
        np.testing.assert_array_equal(images, epoch[0])
        np.testing.assert_array_equal(labels, epoch[1])


def test_the_number_of_threads_changes_nothing(photos):
    one, many = (collect(folder(photos, num_threads=n)) for n in (1, 5))
    np.testing.assert_array_equal(one[0], many[0])


def test_state_of_an_iterator_can_be_restored(photos):
    dataset = folder(photos)
    iterator = iter(dataset)
    next(iterator)
    state = iterator.get_state()
    expected = next(iterator)
    other = iter(folder(photos))
    other.set_state(state)
    np.testing.assert_array_equal(next(other)[0], expected[0])


def test_photos_that_vanish_are_left_out(photos):
    manifest = scan_folder(photos)
    (photos / manifest.split("val").files[0]).unlink()
    (photos / manifest.split("val").files[1]).write_bytes(b"")
    with pytest.warns(UserWarning, match="can no longer be read"):
        images, labels = collect(folder(manifest, split="val"))
    assert len(images) == len(labels) == 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_batch_is_empty(photos, num_workers):
    """A whole batch of validation images vanishes: an epoch leaves it out; without end, another image stands for it."""
    manifest = scan_folder(photos)
    for file in manifest.split("val").files[2:4]:
        (photos / file).unlink()
    val = folder(manifest, split="val", batch_size=2, num_workers=num_workers)
    assert val.steps_per_epoch == 3
    images, labels = zip(*val, strict=True)
    assert [len(batch) for batch in images] == [2, 2]
    np.testing.assert_array_equal(np.concatenate(labels).argmax(1), [0, 0, 2, 2])
    endless = list(itertools.islice(val.repeat(), 6))
    assert [len(images) for images, _ in endless] == [2, 1, 2] * 2
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in endless]).argmax(1), [0, 0, 0, 2, 2] * 2)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("take", [iter, lambda data: iter(data.repeat())])
def test_nothing_readable_is_left(photos, split, take):
    manifest = scan_folder(photos)
    photos.rename(photos.with_name("elsewhere"))
    with pytest.raises(DataError, match="None of the .* images of .*photos can be read any longer"):
        next(take(folder(manifest, split=split, batch_size=6)))


def test_a_training_batch_keeps_its_size(photos):
    manifest = scan_folder(photos)
    for file in manifest.split("train").files[:5]:
        (photos / file).unlink()
    with pytest.warns(UserWarning, match="can no longer be read"):
        assert [len(images) for images, _ in folder(manifest)] == [8, 8, 8]


def test_more_batch_than_photos(photos):
    assert folder(photos, batch_size=1000).steps_per_epoch == 1


def test_fit_evaluate_and_predict(photos, nano):
    """As a user would, on the backend at hand; each epoch of `fit` takes the next epoch of the data."""
    model = keras_ci2p.ViT((32, 32, 3), num_classes=3, **nano)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    train, val = folder(photos), folder(photos, split="val")
    with warnings.catch_warnings():
        # As Keras has them for data that it would shuffle, or that end too soon.
        warnings.simplefilter("error", UserWarning)
        history = model.fit(train, validation_data=val, epochs=2, verbose=0).history
        assert len(history["loss"]) == 2 and np.isfinite(history["val_loss"]).all()
        assert train.epoch == 2
        model.fit(train.repeat(2), steps_per_epoch=train.steps_per_epoch, epochs=2, verbose=0)
        model.evaluate(val, verbose=0)
        assert model.predict(val, verbose=0).shape == (6, 3)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(train, steps_per_epoch=2 * len(train), verbose=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.5}, "`batch_size` must be a positive integer"),
        ({"seed": -1}, "`seed` must be an integer in 0"),
        ({"augment": "yes"}, "`augment` must be an `Augmentation`"),
        ({"class_names": "bird"}, "`class_names` must be a list of texts"),
        ({"class_names": {"bird", "cat", "dog"}}, "`class_names` must be a list of texts"),
        ({"class_names": ["bird", "cat", "dog", "cat"]}, "`class_names` must be a list of texts"),
        ({"image_size": True}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (32, 40)}, "multiples of 16"),
        ({"image_size": 32.0}, "image_size=32.0"),
        ({"image_size": (32, 32, 32)}, "one or two"),
        ({"augment_on": "gpu"}, "augment_on='gpu'"),
        ({"patch_size": 64}, "of 64"),
        ({"split": "held out"}, "train, val, test, all"),
        ({"split": "test"}, "no image of the split test"),
        ({"in_memory": True}, "in_memory.*goes with augment_on"),
        ({"in_memory": True, "augment_on": "device", "num_workers": 2}, "num_workers=2"),
        ({"augment_on": "device", "augment": len}, "is an `Augmentation`"),
    ],
)
def test_bad_arguments(photos, kwargs, message):
    with pytest.raises(DataError, match=message):
        folder(photos, **kwargs)


@pytest.mark.parametrize("name", ["image_folder", "latent_folder"])
def test_a_missing_extra_is_named(monkeypatch, name):
    # The package binds what is imported anew.
    monkeypatch.setattr(keras_ci2p, "data", keras_ci2p.data)
    for module in [module for module in sys.modules if re.match(r"keras_ci2p\.data\b", module)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grain", None)
    data = importlib.import_module("keras_ci2p.data")
    with pytest.raises(ImportError, match=r"keras_ci2p\[train\]"):
        getattr(data, name)


def test_former_names(photos):
    with pytest.warns(DeprecationWarning, match="now called `patch_size`"), pytest.raises(DataError, match="of 64"):
        folder(photos, size_multiple=64)
    with pytest.warns(DeprecationWarning, match=r"now called `repeat\(\)`"):
        repeated = folder(photos).repeated(1)
    np.testing.assert_array_equal(next(iter(repeated))[0], next(iter(folder(photos).repeat(1)))[0])
    manifest = scan_folder(photos)
    with pytest.warns(DeprecationWarning, match="now called `hashes`"):
        assert manifest.digests == manifest.hashes


@pytest.mark.parametrize("integer", [int, np.int64, np.int32, np.uint8])
def test_any_integer_is_a_size(photos, integer):
    for size in (integer(32), (integer(32), integer(32)), np.array([32, 32], integer)):
        assert next(iter(folder(photos, image_size=size)))[0].shape == (8, 32, 32, 3)
    with pytest.raises(DataError, match="multiples of 16"):
        folder(photos, image_size=integer(40))


def test_threads_are_those_that_the_process_may_use(photos, monkeypatch):
    """Affinity counts, not the machine's CPUs."""
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert folder(photos)._read_options.num_threads == 1
        names = set()
        list(in_threads(lambda item: names.add(threading.get_ident()), range(500)))
        assert len(names) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_any_mode_becomes_rgb(photos):
    Image.new("L", (50, 50), 7).save(photos / "cat" / "grey.png")
    assert len(scan_folder(photos)) == 31
    assert all(images.shape[-1] == 3 for images, _ in folder(photos, split="all"))
