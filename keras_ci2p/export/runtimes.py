"""Running exported files with the runtimes that they are for."""

from pathlib import Path

from keras_ci2p.export.formats import FORMATS
from keras_ci2p.extras import require


def open_exported(path, format):
    """An exported model as a function, on the CPU and in float32.

    Not every runtime is for every process: TensorFlow before torch's compiler ends it, and OpenVINO forks when it is
    imported, which JAX does not bear.

    Args:
        path: What `export` wrote.
        format: One of `FORMATS`.

    Returns:
        A function of float32 images `(batch, height, width, 3)`, RGB in 0..255, that gives `(batch, num_classes)`.

    Raises:
        ImportError: The runtime is not installed.
    """
    return _OPEN[format](Path(path))


def _onnx(path):
    onnxruntime = require("onnxruntime", extra="export")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _tf_saved_model(path):
    tensorflow = require("tensorflow", extra="tensorflow")
    loaded = tensorflow.saved_model.load(str(path))
    return lambda images: loaded.serve(images).numpy()


def _openvino(path):
    openvino = require("openvino", extra="export")
    # By default some processors compute in bfloat16.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(path / FORMATS["openvino"].main_file, "CPU", settings)
    return lambda images: compiled(images)[0]


def _torch(path):
    torch = require("torch", extra="torch")
    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).numpy()


def _litert(path):
    interpreter = require("ai_edge_litert.interpreter", extra="export").Interpreter(str(path))
    signature = interpreter.get_signature_runner()
    return lambda images: next(iter(signature(images=images).values()))


_OPEN = {
    "onnx": _onnx,
    "tf_saved_model": _tf_saved_model,
    "openvino": _openvino,
    "torch": _torch,
    "litert": _litert,
}
