"""The formats, and which of Keras's backends can write them."""

import importlib.util
from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Format:
    """One format of `FORMATS`.

    Attributes:
        backends: Those of Keras that can write it, the better one first.
        packages: What it needs besides the backend, to be written and to be run.
        suffix: Of the file; None where it is a directory.
        main_file: In the directory; None where it is a file.
    """

    backends: tuple
    packages: tuple = ()
    suffix: str | None = None
    main_file: str | None = None


# Keras 3.15 and the converters of the day. ONNX: tf2onnx has no Erfc, which an exact GELU needs; jax2onnx has no
# reshaping that joins the batch with another axis. OpenVINO reads what torch and TensorFlow make, not jax2tf's calls of
# XLA; neither is a SavedModel of these for every device.
FORMATS = {
    "onnx": Format(("torch",), ("onnx", "onnxscript", "onnxruntime"), suffix=".onnx"),
    "tf_saved_model": Format(("tensorflow",), main_file="saved_model.pb"),
    "openvino": Format(("torch", "tensorflow"), ("openvino",), main_file="openvino_model.xml"),
    "torch": Format(("torch",), suffix=".pt2"),
    "litert": Format(("tensorflow",), ("ai_edge_litert",), suffix=".tflite"),
}


def writing_backend(name):
    """The backend to write the format `name` with: the current one where it can, else the first that is installed.

    Raises:
        ImportError: None of those that can is installed, or a package that the format needs is missing.
    """
    form = FORMATS[name]
    missing = [package for package in form.packages if not _is_installed(package)]
    if missing:
        raise ImportError(
            f"The format {name} needs {', '.join(missing)}, which is not installed: pip install 'keras_ci2p[export]'"
        )
    current = keras.backend.backend()
    for backend in sorted(form.backends, key=lambda backend: backend != current):
        if _is_installed(backend):
            return backend
    raise ImportError(
        f"The format {name} is written by {' or '.join(form.backends)}, which is not installed beside {current}: "
        f"pip install 'keras_ci2p[{form.backends[0]}]'. It need not be the backend that Keras uses."
    )


def _is_installed(package):
    # Looking is enough: importing TensorFlow takes seconds, and disturbs torch.
    return importlib.util.find_spec(package) is not None


def output_name(model):
    """What the output is called in the formats that let it be named."""
    return "logits" if model.activation is None else "probabilities"
