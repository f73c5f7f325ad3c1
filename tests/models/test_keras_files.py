"""Keras's own files: those of 0.1.0 load, whichever of Keras and this package is imported first."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ci2p  # noqa: F401

FILES = Path(__file__).parents[1] / "golden" / "keras_files"
EXPECTED = np.load(FILES / "expected.npz")


@pytest.mark.once
@pytest.mark.parametrize("name", ["layers", "dual"])
def test_files_of_0_1_0(name):
    """`layers` is a functional model of our layers, `dual` a `CI2PViTDualScale`; the modules they name have moved."""
    model = keras.saving.load_model(FILES / f"{name}.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(EXPECTED["images"])), EXPECTED[name], atol=1e-5)


# Python's imports are the same on every backend.
@pytest.mark.once
@pytest.mark.parametrize(
    "imports",
    [
        "import keras, keras_ci2p",
        "import keras_ci2p, keras",
        "import keras_ci2p, importlib.util; importlib.util.find_spec('keras'); import keras",
        "from keras_ci2p import CI2PViT; import keras",
        "from keras_ci2p.layers import GDN; from keras_ci2p import list_presets; import keras",
    ],
)
def test_order_of_imports(imports):
    files = [str(FILES / f"{name}.keras") for name in ("layers", "dual")]
    code = f"{imports}\nprint([type(keras.models.load_model(file)).__name__ for file in {files}])"
    # A look for garbage takes a fifth of the start, and NumPy starts fastest.
    code = f"import gc; gc.disable()\n{code}"
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout.strip() == "['Functional', 'CI2PViTDualScale']", done.stderr


# Python's imports are the same on every backend.
@pytest.mark.once
def test_importing_the_package_imports_no_keras():
    code = "import sys, keras_ci2p, keras_ci2p.models; print('keras' in sys.modules, 'load_preset' in dir(keras_ci2p))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "True"], done.stderr
