"""File formats: one entry each in `FORMATS`, with the functions that write and open it. Imports no Keras by itself.

A file says of itself what its model is: the same entries in every format, each of them JSON.

| entry | value |
|---|---|
| `class_names` | list of the classes' names, in the order of the output; absent where the model has none |
| `image_size` | `[height, width]` of the input |
| `value_range` | the input's values for black and for white, `[0, 255]`; by channel: `[[r, g, b], [r, g, b]]` |
| `data_format` | "channels_last" or "channels_first" of the input |
| `crop` | how a photo is cut: the short edge resized to `resize_ratio` of the size, of that the middle |
| `input` | "latents" where the classifier begins after its compressor; absent where it takes images |
| `latent_shape` | `[rows, columns, channels]` of latents |
| `compressor` | of latents, its `fingerprint`, `AnalysisTransform.weights_hash()`, and its `name`, if it has one |
| `output` | "logits", "probabilities", or "scores" where the activation gives neither |
| `grid_size` | `[rows, columns]` of the output `attention`, where the file has it |
| `feature_data_format` | "channels_last" or "channels_first" of feature maps among the outputs |
| `int8` | of an 8-bit file: how it was made, and its top-1 beside that in floats |
| `name`, `license`, `top1`, ... | what the writer adds |

ONNX holds an entry as `metadata_props` under `keras_ci2p.` and its name, OpenVINO as `rt_info` under keras_ci2p and its
name (files read from ONNX: under framework and the former). A LiteRT file is followed, as TensorFlow Lite's metadata
are, by a ZIP archive; in it stands `keras_ci2p.json`, one object of all entries. A .pt2 file and a SavedModel hold a
file of that name too.
"""

import errno
import importlib.util
import json
import os
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_ci2p.data.transforms import RESIZE_RATIO
from keras_ci2p.names import PROBABILITIES
from keras_ci2p.utils import PathLike, first_line, misplaced_file, num_cpus, require, user_path, written_bytes

PREFIX = "keras_ci2p"
FILE_NAME = f"{PREFIX}.json"
# The name of the further output.
ATTENTION = "attention"
CENTER_CROP = {"resize_ratio": RESIZE_RATIO, "interpolation": "bicubic", "crop": "center"}
# What an exported file takes.
IMAGES, LATENTS = INPUTS = ("images", "latents")


def model_metadata(model, input=IMAGES):
    """The entries of a classifier of this package, `image_shape` fixed, as a dict; `input` is one of `INPUTS`."""
    entries = {
        "image_size": list(model.image_shape[:2]),
        "value_range": [0, 255],
        "data_format": "channels_last",
        "crop": CENTER_CROP,
        "output": output_name(model),
    }
    if input == LATENTS:
        del entries["value_range"]
        compressor = {"fingerprint": model.compressor.weights_hash(), **(model.compressor.source or {})}
        compressor = {key: value for key, value in compressor.items() if key in ("fingerprint", "name")}
        shape = model.latent_classifier.input_shape[1:]
        entries.update(input=LATENTS, latent_shape=list(shape), compressor=compressor)
    return entries if model.class_names is None else {"class_names": list(model.class_names), **entries}


def to_onnx(entries):
    """The entries as ONNX's `metadata_props`: a dict of strings."""
    return {f"{PREFIX}.{key}": _dumps(value) for key, value in entries.items()}


def from_onnx(properties):
    """The entries among the `metadata_props` of an ONNX file, a dict of strings; others are left out."""
    found = {key.removeprefix(f"{PREFIX}."): value for key, value in properties.items() if key.startswith(f"{PREFIX}.")}
    return _loads(found)


def to_openvino(entries, model):
    """Adds the entries to an `openvino.Model`."""
    for key, value in entries.items():
        model.set_rt_info(_dumps(value), [PREFIX, key])


def from_openvino(model):
    """The entries of an `openvino.Model`, read from OpenVINO's own files or from ONNX."""
    information = model.get_rt_info()
    if PREFIX in information:
        # Values that look like numbers or lists would come as such from `.value`.
        return _loads({key: value.astype(str) for key, value in information[PREFIX].items()})
    if "framework" in information:
        return from_onnx({key: value.astype(str) for key, value in information["framework"].items()})
    return {}


def append_to_litert(entries, path):
    """Adds the entries to a LiteRT file, whose readers ignore what follows the model."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(FILE_NAME, _dumps(entries))


def read_litert(path):
    """The entries of a LiteRT file; empty where it has none."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(FILE_NAME)) if FILE_NAME in archive.namelist() else {}


def write_beside(entries, directory):
    """Writes the entries as a file of a SavedModel's directory."""
    (Path(directory) / FILE_NAME).write_text(_dumps(entries), encoding="utf-8")


def _dumps(value):
    return json.dumps(value, ensure_ascii=False)


def _loads(strings):
    entries = {}
    for key, text in strings.items():
        try:
            entries[key] = json.loads(text)
        except ValueError:
            raise ValueError(
                f"The metadata entry {PREFIX}.{key} of the file is no JSON: {text[:80]!r}. A text needs its quotation "
                'marks: "logits".'
            ) from None
    return entries


def input_name(entries):
    """What a file with these entries takes, one of `INPUTS`, which its input is called after."""
    return entries.get("input", IMAGES)


def input_shape(model, entries):
    """The shape of it without the batch."""
    return tuple(model.image_shape if input_name(entries) == IMAGES else entries["latent_shape"])


def output_name(model):
    """What the output is called in the formats that let it be named."""
    if model.activation is None:
        return "logits"
    return "probabilities" if model.activation in PROBABILITIES else "scores"


# Element types of inputs, as ONNX Runtime calls them.
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


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
        metadata: The entries of `keras_ci2p.export.formats` that the file has.

    Examples:
        >>> network = keras_ci2p.export.Network(
        ...     run=lambda images, names: [images.mean(axis=(1, 2)) for _ in names],
        ...     runtime="NumPy",
        ...     input_shape=(None, None, None, 3),
        ...     input_type="float32",
        ...     output_shapes={"means": (None, 3)},
        ...     metadata={},
        ... )
        >>> (means,) = network.run(np.ones((2, 8, 8, 3), "float32"), ["means"])
        >>> means.shape
        (2, 3)
    """

    run: Callable
    runtime: str
    input_shape: tuple
    input_type: str
    output_shapes: dict
    metadata: dict


def network_file(path):
    """Path of the file that `open_network` reads: in a directory the .xml that `export` wrote for OpenVINO."""
    path = user_path(path)
    inside = path / OPENVINO_FILE
    return inside if inside.is_file() else path


def open_network(path: PathLike, exact: bool = False) -> Network:
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

    Examples:
        >>> model = keras_ci2p.ViT(
        ...     (32, 32, 3), num_classes=3, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
        ... )
        >>> report = keras_ci2p.export.export(model, "vit.onnx", "onnx")
        >>> network = keras_ci2p.export.open_network("vit.onnx")
        >>> (logits,) = network.run(np.zeros((2, 32, 32, 3), "float32"), ["logits"])
        >>> logits.shape
        (2, 3)
    """
    path = network_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    # An .xml begins as web pages may.
    kind = None if path.suffix == ".xml" else misplaced_file(path)
    if kind is not None:
        raise ValueError(f"{path} is {kind}.")
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


# In the directory of an exported model.
OPENVINO_FILE = "openvino_model.xml"
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
        raise ValueError(f"OpenVINO cannot read {path}: {first_line(error)}") from error
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
        from_openvino(model),
    )


def _open_with_onnxruntime(path):
    onnxruntime = require("onnxruntime", extra="export")
    options = onnxruntime.SessionOptions()
    # By itself it counts the machine's cores, and threads beyond those of the process only wait for each other.
    options.intra_op_num_threads = num_cpus()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its classes have no common base but this.
        raise ValueError(f"ONNX Runtime cannot read {path}: {first_line(error)}") from error
    inputs = session.get_inputs()
    input_type = _ONNX_TYPES.get(inputs[0].type, inputs[0].type) if inputs else None
    return Network(
        lambda images, wanted: session.run(wanted, {inputs[0].name: images}),
        f"ONNX Runtime {onnxruntime.__version__}",
        _check_input(path, [_numbers(port.shape) for port in inputs], input_type),
        input_type,
        {port.name: _numbers(port.shape) for port in session.get_outputs()},
        from_onnx(session.get_modelmeta().custom_metadata_map),
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


def _open_onnx(path):
    return _outputs(_open_with_onnxruntime(path))


def _open_openvino(path):
    return _outputs(_open_with_openvino(network_file(path), exact=True))


def _outputs(network):
    names = list(network.output_shapes)
    return lambda images: dict(zip(names, network.run(images, names), strict=True))


def _open_saved_model(path):
    tensorflow = require("tensorflow", extra="tensorflow")
    loaded = tensorflow.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    return lambda images: {name: value.numpy() for name, value in serve(tensorflow.constant(images)).items()}


def _open_torch(path):
    torch = require("torch", extra="torch")
    module = torch.export.load(path).module()

    def run(images):
        given = module(torch.from_numpy(images))
        given = given if isinstance(given, dict) else {None: given}
        return {name: value.numpy() for name, value in given.items()}

    return run


def _open_litert(path):
    interpreter = require("ai_edge_litert.interpreter", extra="export").Interpreter(str(path))
    signature = interpreter.get_signature_runner()
    (name,) = signature.get_input_details()
    return lambda inputs: signature(**{name: inputs})


def _save_openvino(converted, directory, model, entries, outputs):
    """Writes an `openvino.Model` with named input and output, of any batch size, its weights in float32.

    Args:
        converted: What `openvino.convert_model` made of `model`, an `openvino.Model`.
        directory: Where to; gets an .xml and a .bin.
        model: The classifier.
        entries: Metadata.
        outputs: Names of the outputs.
    """
    openvino = import_openvino()

    (given,) = converted.inputs
    given.get_node().set_partial_shape(openvino.PartialShape([-1, *_network(model, entries).input_shape[1:]]))
    given.tensor.set_names({input_name(entries)})
    # TensorFlow's converter names them, and orders them as it likes; torch's keeps the order.
    named = {output for output in converted.outputs if output.names & set(outputs)}
    if len(named) != len(outputs):
        for output, name in zip(converted.outputs, outputs, strict=True):
            output.tensor.set_names({name})
    converted.validate_nodes_and_infer_types()
    to_openvino(entries, converted)
    path = Path(directory) / OPENVINO_FILE
    try:
        openvino.save_model(converted, path, compress_to_fp16=False)
    except RuntimeError as error:
        # All that it says where a write fails, and what was written is gone by then.
        if "iostream error" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _write_openvino_from_torch(model, path, opset, entries, outputs):
    _save_openvino(import_openvino().convert_model(_program(model, entries, outputs)), path, model, entries, outputs)


# A protobuf file ends at 2 GB; torch moves weights to a second file from here on.
LARGEST_ONNX = 3 * 2**29


def _network(model, entries):
    """The classifier, or its part after the compressor, as the entries say."""
    return model if input_name(entries) == IMAGES else model.latent_classifier


def _program(model, entries, outputs):
    import keras
    import torch

    from keras_ci2p.export.inference import fold_batch_norm, inference_function

    class _Inference(torch.nn.Module):
        """A Keras model whose weights torch can see: `torch.export` takes those of Keras for nameless constants."""

        def __init__(self, model):
            super().__init__()
            # In a tuple, so that it is no submodule.
            self._model = (model,)
            self._serve = inference_function(model, outputs)
            for weight in model.weights:
                self.register_buffer(weight.path, weight.value.detach())

        def forward(self, images):
            (model,) = self._model
            state = list(zip(model.weights, self.buffers(), strict=True))
            # Else variables that wait for their values elsewhere would get them here, as a part of the program.
            with keras.StatelessScope(state_mapping=state, initialize_variables=False):
                return self._serve(images)

    # The program remembers devices.
    with keras.device("cpu"):
        folded = _network(fold_batch_norm(model), entries)
        # Two, since torch takes a batch of one for a constant.
        images = torch.zeros(2, *folded.input_shape[1:])
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(_Inference(folded).eval(), (images,), dynamic_shapes=({0: batch},), strict=False)
    for node in program.graph.nodes:
        # Paths of this machine.
        node.meta.pop("stack_trace", None)
    return program


def _write_torch(model, path, opset, entries, outputs):
    import torch

    program = _program(model, entries, outputs)
    # Else it would be stored too.
    program.example_inputs = None
    extra_files = {FILE_NAME: _dumps(entries)}
    Path(path).write_bytes(written_bytes(lambda file: torch.export.save(program, file, extra_files=extra_files)))


def _write_onnx(model, path, opset, entries, outputs):
    import torch

    program = _program(model, entries, outputs)
    size = sum(weight.nbytes for weight in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise ValueError(f"The weights are too large for one ONNX file: {size:,} bytes, at most {LARGEST_ONNX:,}.")
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=[input_name(entries)],
        output_names=list(outputs),
        opset_version=opset,
        verbose=False,
    )
    for node in onnx_program.model.graph:
        node.metadata_props.clear()
    onnx_program.model.metadata_props.update(to_onnx(entries))
    onnx_program.save(path, external_data=False)


def _write_saved_model(model, path, opset, entries, outputs):
    _save_saved_model(model, path, entries, outputs, named=True)
    write_beside(entries, path)


def _write_litert(model, path, opset, entries, outputs):
    with tempfile.TemporaryDirectory() as directory:
        _save_saved_model(model, directory, entries, outputs)
        _save_litert(directory, path)
    append_to_litert(entries, path)


def _write_openvino_from_tensorflow(model, path, opset, entries, outputs):
    with tempfile.TemporaryDirectory() as directory:
        _save_saved_model(model, directory, entries, outputs)
        _save_openvino(import_openvino().convert_model(directory), path, model, entries, outputs)


def _save_saved_model(model, path, entries, outputs, named=False):
    """Writes a SavedModel; `named` adds the signature `serving_default`, whose outputs have names in any case."""
    import keras

    from keras_ci2p.export.inference import fold_batch_norm, inference_function

    folded = _network(fold_batch_norm(model), entries)
    archive = keras.export.ExportArchive()
    # What the function uses is stored; the model, tracked as `folded.export` does it, would be stored once more.
    serve = inference_function(folded, outputs)
    archive.add_endpoint("serve", serve, input_signature=folded.inputs)
    if named:

        def with_names(images):
            given = serve(images)
            return given if isinstance(given, dict) else {outputs[0]: given}

        archive.add_endpoint("serving_default", with_names, input_signature=folded.inputs)
    archive.write_out(str(path), verbose=False)


def _save_litert(saved_model, path):
    import tensorflow as tf

    # Keras's own export also admits operations that only TensorFlow's large runtime has; none is needed.
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    Path(path).write_bytes(converter.convert())


@dataclass(frozen=True)
class Format:
    """One format of `FORMATS`.

    Attributes:
        writers: By the backend of Keras that can write it, the better one first, a function `(model, path, opset,
            entries, outputs)`.
        open: Function of the path of such a file, for `open_exported`: gives a function of images that gives its
            outputs by name; of a name that says nothing where there is one.
        packages: What it needs besides the backend, to be written and to be run.
        suffix: Of the file; None where it is a directory.
        main_file: In the directory; None where it is a file.
    """

    writers: dict
    open: Callable
    packages: tuple = ()
    suffix: str | None = None
    main_file: str | None = None

    @property
    def backends(self):
        """Those of Keras that can write it, the better one first."""
        return tuple(self.writers)


# Keras 3.15 and the converters of the day. ONNX: tf2onnx has no Erfc, which an exact GELU needs; jax2onnx has no
# reshaping that joins the batch with another axis. OpenVINO reads what torch and TensorFlow make, not jax2tf's calls of
# XLA; neither is a SavedModel of these for every device.
FORMATS = {
    "onnx": Format({"torch": _write_onnx}, _open_onnx, packages=("onnx", "onnxscript", "onnxruntime"), suffix=".onnx"),
    "tf_saved_model": Format({"tensorflow": _write_saved_model}, _open_saved_model, main_file="saved_model.pb"),
    "openvino": Format(
        {"torch": _write_openvino_from_torch, "tensorflow": _write_openvino_from_tensorflow},
        _open_openvino,
        packages=("openvino",),
        main_file=OPENVINO_FILE,
    ),
    "torch": Format({"torch": _write_torch}, _open_torch, suffix=".pt2"),
    "litert": Format({"tensorflow": _write_litert}, _open_litert, packages=("ai_edge_litert",), suffix=".tflite"),
}

# Those that `keras_ci2p.export.int8` quantises.
INT8_FORMATS = ("onnx", "openvino")


def writing_backend(name):
    """The backend to write the format `name` with: the current one where it can, else the first that is installed.

    Raises:
        ImportError: None of those that can is installed, or a package that the format needs is missing.
    """
    import keras

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


def open_exported(path: PathLike, format: str, outputs: Sequence[str] | None = None) -> Callable[..., Any]:
    """An exported model as a function, on the CPU and in float32.

    Not every runtime is for every process: TensorFlow before torch's compiler ends it, and OpenVINO forks when it is
    imported, which JAX does not bear.

    Args:
        path: What `export` wrote.
        format: One of `FORMATS`.
        outputs: Names of the outputs wanted, of a file that has several; None for the model's own.

    Returns:
        A function of float32 images `(batch, height, width, 3)`, RGB in 0..255, that gives `(batch, num_classes)`,
        or of latents, where the file takes these;
        with `outputs` a list of arrays.

    Raises:
        ImportError: The runtime is not installed.

    Examples:
        >>> model = keras_ci2p.ViT(
        ...     (32, 32, 3), num_classes=3, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
        ... )
        >>> report = keras_ci2p.export.export(model, "vit.onnx", "onnx")
        >>> run = keras_ci2p.export.open_exported("vit.onnx", "onnx")
        >>> run(np.zeros((2, 32, 32, 3), "float32")).shape
        (2, 3)
    """
    run = FORMATS[format].open(user_path(path))
    if outputs is None:
        return lambda images: next(value for name, value in run(images).items() if name != ATTENTION)

    def run_several(images):
        given = run(images)
        return [given[name] for name in outputs]

    return run_several


def write(model, path, format, opset, entries, outputs):
    """Writes a classifier with its batch norms folded, by the current backend; any batch size can be run.

    Args:
        model: A classifier of fixed image size.
        path: File, or directory that exists.
        format: Key of `FORMATS` that the backend writes.
        opset: Of ONNX; None for torch's default.
        entries: Metadata, a dict.
        outputs: As in `inference_function`.
    """
    import keras

    with warnings.catch_warnings():
        # Of the converters about themselves.
        warnings.simplefilter("ignore")
        FORMATS[format].writers[keras.backend.backend()](model, path, opset, entries, outputs)
