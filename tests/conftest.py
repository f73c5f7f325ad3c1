import functools
import gc
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

# Before Keras is imported anywhere; here that is within functions, as the process that shares out the tests needs none.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parent
PLAIN = TESTS / "plain"
# What takes longest comes first: several processes share the files out, and the last of them should not wait for one.
LONGEST = (
    # One of its tests took 1.7 s in a new process with JAX, 195 s in one that had run all the others.
    "test_weight_storage.py",
    "benchmarks/test_benchmarks.py",
    "models/test_keras_doors.py",
    "models/test_arguments.py",
    "export/test_export.py",
    "examples/test_examples.py",
    "training/test_train.py",
    "examples/test_docstrings.py",
    "cli/test_full_disk.py",
    "backend/test_devices.py",
    "models/test_freezing.py",
    "hub/test_hub_presets.py",
    "hub/test_hub_conformance.py",
    "models/test_models.py",
    "models/test_hyperpriors.py",
    "models/test_rate_distortion.py",
    "cli/test_train_compressor.py",
    "models/test_inputs.py",
    "layers/test_layers.py",
    "convert/test_compressai.py",
    "cli/test_resume.py",
)
# Indexes of folders and compiled code of these tests, and of the processes that they start, are nobody else's.
_CACHE = tempfile.TemporaryDirectory()
os.environ["KERAS_CI2P_CACHE"] = _CACHE.name
NANO = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48}


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Looks for no garbage while everything is imported, and never again among what was."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Nor among what the tests of other files have left."""
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_ignore_collect(collection_path):
    """Leaves to NumPy, which Keras cannot train with, the tests that need no backend."""
    import keras

    if keras.backend.backend() == "numpy" and collection_path.is_file() and PLAIN not in collection_path.parents:
        return True
    return None


class NoTests(pytest.Module):
    """A file of tests that is not imported."""

    def collect(self):
        return []


def pytest_pycollect_makemodule(module_path, parent):
    """As `pytest_ignore_collect`, which is not asked about files that the command line names."""
    import keras

    if keras.backend.backend() == "numpy" and PLAIN not in module_path.parents:
        return NoTests.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(config, items):
    """Leaves to torch, which compiles nothing, the tests marked as the same on every backend; sorts the rest."""
    import keras

    if keras.backend.backend() != "torch":
        once = {item for item in items if item.get_closest_marker("once")}
        once -= {item for item in items if item.get_closest_marker("every_backend")}
        # A case may be the same although its test is not.
        once |= {item for item in items if any(mark.name == "once" for mark in parameter_marks(item))}
        items[:] = [item for item in items if item not in once]
        config.hook.pytest_deselected(items=list(once))
    order = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def once(value):
    """A case that is the same on every backend if the others are."""
    return pytest.param(value, marks=pytest.mark.once)


def parameter_marks(item):
    return item.callspec.marks if hasattr(item, "callspec") else ()


@pytest.fixture(scope="session", autouse=True)
def nothing_in_vain():
    """Leaves out what Keras and JAX do again and again for nothing."""
    import keras
    from keras.src.saving import saving_lib
    from keras.src.utils import rng_utils

    # Keras looks for its list of a layer's own attributes under another name than it keeps it, and so makes a layer
    # anew for each that it saves or loads: half the time of both.
    saving_lib.get_attr_skipset = functools.cache(saving_lib.get_attr_skipset)
    if keras.backend.backend() != "tensorflow":
        # `set_random_seed` imports TensorFlow on other backends too.
        rng_utils.tf = SimpleNamespace(available=False)
    if keras.backend.backend() == "jax":
        from jax._src.interpreters import mlir

        # A new context for each program takes most of lowering one of a single operation.
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)


@pytest.fixture(autouse=True)
def fixed_seed():
    import keras
    from keras.src.backend.common import global_state

    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    if global_state.get_global_attribute("uninitialized_variables"):
        # Of models made without weights: Keras would make up for it in another test, all of ViT-B/16's at once.
        keras.utils.clear_session(free_memory=False)


@pytest.fixture
def nano():
    """Sizes of a model small enough for any test."""
    return dict(NANO)


@pytest.fixture(scope="session")
def nano_compressor(tmp_path_factory):
    """The preset of a compressor small enough for any test, whose weights are random."""
    from keras_ci2p import Compressor

    path = tmp_path_factory.mktemp("nano") / "compressor"
    Compressor("bmshj2018-factorized", quality=None, channels=(8, 12)).save_to_preset(path)
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_photos(root, classes=("bird", "cat", "dog"), count=10, size=(48, 40)):
    """A folder of pictures whose classes differ in colour."""
    rng = np.random.default_rng(1)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 80, (size[1], size[0], 3))
            pixels[:, :, label % 3] += 150
            Image.fromarray(pixels.astype("uint8")).save(root / name / f"{i:03d}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")
