import importlib.util
import itertools
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

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


@pytest.mark.skipif(os.name != "posix", reason="elsewhere shared memory has no names that could be left")
def test_a_script_that_holds_a_batch_ends_quietly(photos, tmp_path):
    """Also one that has not used up its iterator."""
    script = tmp_path / "script.py"
    script.write_text(
        "from keras_ci2p.data import image_folder\n"
        "if __name__ == '__main__':\n"
        f"    data = iter(image_folder({str(photos)!r}, image_size=128, batch_size=5, num_workers=2).repeat(2))\n"
        "    batches = [next(data) for _ in range(3)]\n"
        "    images, labels = next(data)\n"
        "    assert type(images).__name__ == 'ndarray' and images.sum() > 0 and labels.shape == (5, 3)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_children_get_the_light_backend(monkeypatch):
    # Keras 3.15 has it only where JAX is installed.
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with _numpy_for_children():
        assert os.environ["KERAS_BACKEND"] == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", {"jax": "found"}.get)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with _numpy_for_children():
        assert os.environ["KERAS_BACKEND"] == "numpy"
    assert os.environ["KERAS_BACKEND"] == "jax"
    monkeypatch.delenv("KERAS_BACKEND")
    with _numpy_for_children():
        assert os.environ["KERAS_BACKEND"] == "numpy"
    assert "KERAS_BACKEND" not in os.environ
