"""Running exported files with the runtimes that they are for, and files of others with ONNX Runtime or OpenVINO."""

import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keras_ci2p.export import metadata
from keras_ci2p.export.formats import FORMATS
from keras_ci2p.extras import require

# Element types of inputs, as ONNX Runtime calls them.
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


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
    openvino = import_openvino()
    compiled = openvino.compile_model(path / FORMATS["openvino"].main_file, "CPU", _EXACT)
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


@dataclass(frozen=True)
class Network:
    """A file of ONNX or OpenVINO, ready to run on the CPU.

    Attributes:
        run: Function of an array as `input_shape` and `input_type` say and a list of names of outputs, that gives the
            list of these outputs, as arrays. Several threads may call it.
        runtime: Name and version of what runs it.
        input_shape: With None for what may be of any size.
        input_type: "float32", "float16" or "uint8".
        output_shapes: Name to shape, with None for what may be of any size, in the order of the file.
        metadata: The entries of `keras_ci2p.export.metadata` that the file has.
    """

    run: Callable
    runtime: str
    input_shape: tuple
    input_type: str
    output_shapes: dict
    metadata: dict


def open_network(path, exact=False):
    """Opens an ONNX or OpenVINO file of whatever origin that has one input.

    OpenVINO runs either where it is installed, which is faster; else ONNX Runtime runs the former.

    Args:
        path: An .onnx file, an OpenVINO .xml, or the directory that `export` wrote for OpenVINO.
        exact: Whether to compute in float32 where the processor has something faster, such as bfloat16.

    Returns:
        A `Network`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The runtime cannot read it, or it has several inputs or one that is no image.
        ImportError: No runtime is installed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FORMATS["openvino"].main_file
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".xml" or importlib.util.find_spec("openvino"):
        return _open_with_openvino(path, exact)
    return _open_with_onnxruntime(path)


def import_openvino():
    """The package, without what it tells its makers over the network each time that it is imported.

    It would fork for that, which JAX does not bear.
    """
    telemetry = "openvino_telemetry"
    if "openvino" in sys.modules or telemetry in sys.modules:
        return require("openvino", extra="export")
    sys.modules[telemetry] = None
    try:
        return require("openvino", extra="export")
    finally:
        del sys.modules[telemetry]


# By default some processors compute in bfloat16.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def _open_with_openvino(path, exact):
    openvino = import_openvino()
    core = openvino.Core()
    try:
        model = core.read_model(path)
        # Several batches at a time, each on a core of its own, is the fastest, and needs calls from several threads.
        compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **(_EXACT if exact else {})})
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot read {path}: {_first_line(error)}") from error
    names = [_name(output) for output in model.outputs]
    own = threading.local()

    def run(images, wanted):
        # A request is for one thread at a time.
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer([images])
        return [own.request.get_output_tensor(names.index(name)).data.copy() for name in wanted]

    input_type = model.inputs[0].element_type.to_dtype().name if model.inputs else None
    return Network(
        run,
        f"OpenVINO {openvino.__version__.split('-')[0]}",
        _check_input(path, [_shape(port) for port in model.inputs], input_type),
        input_type,
        {name: _shape(port) for name, port in zip(names, model.outputs, strict=True)},
        metadata.from_openvino(model),
    )


def _open_with_onnxruntime(path):
    onnxruntime = require("onnxruntime", extra="export")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its classes have no common base but this.
        raise ValueError(f"ONNX Runtime cannot read {path}: {_first_line(error)}") from error
    inputs = session.get_inputs()
    input_type = _ONNX_TYPES.get(inputs[0].type, inputs[0].type) if inputs else None
    return Network(
        lambda images, wanted: session.run(wanted, {inputs[0].name: images}),
        f"ONNX Runtime {onnxruntime.__version__}",
        _check_input(path, [_numbers(port.shape) for port in inputs], input_type),
        input_type,
        {port.name: _numbers(port.shape) for port in session.get_outputs()},
        metadata.from_onnx(session.get_modelmeta().custom_metadata_map),
    )


def _check_input(path, shapes, input_type):
    if len(shapes) != 1 or len(shapes[0]) != 4 or input_type not in _ONNX_TYPES.values():
        raise ValueError(
            f"{path} must have one input, images of rank 4 and of type {', '.join(_ONNX_TYPES.values())}. "
            f"Received: {len(shapes)} inputs, shapes {shapes}, the first of type {input_type}"
        )
    return shapes[0]


def _shape(port):
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return ()
    return tuple(size.get_length() if size.is_static else None for size in shape)


def _numbers(shape):
    return tuple(size if isinstance(size, int) else None for size in shape)


def _name(port):
    return min(port.names, default=port.node.friendly_name)


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
