import itertools
import multiprocessing
import os

import numpy as np

from keras_ci2p.data import Augmentation, image_folder
from keras_ci2p.data.workers import _numpy_for_children


def test_worker_processes_change_nothing(photos):
    """The same batches in the same order as threads make; a state can be restored; the processes end."""
    folder = {"image_size": 32, "batch_size": 5, "augment": Augmentation(), "mixup": 0.8, "cutmix": 1.0}
    expected = list(itertools.islice(image_folder(photos, **folder).repeat(1), 8))
    others = multiprocessing.active_children()
    backend = os.environ.get("KERAS_BACKEND")
    batches = iter(image_folder(photos, num_workers=2, **folder).repeat(1))
    assert_same([next(batches) for _ in range(3)], expected[:3])
    assert os.environ.get("KERAS_BACKEND") == backend
    state = batches.get_state()
    assert_same([next(batches) for _ in range(5)], expected[3:])
    batches.set_state(state)
    assert_same([next(batches)], expected[3:4])
    assert len(multiprocessing.active_children()) == len(others) + 2
    batches.close()
    assert multiprocessing.active_children() == others


def assert_same(batches, expected):
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_children_get_the_light_backend(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with _numpy_for_children():
        assert os.environ["KERAS_BACKEND"] == "numpy"
    assert os.environ["KERAS_BACKEND"] == "jax"
    monkeypatch.delenv("KERAS_BACKEND")
    with _numpy_for_children():
        assert os.environ["KERAS_BACKEND"] == "numpy"
    assert "KERAS_BACKEND" not in os.environ
