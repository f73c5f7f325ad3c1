"""8-bit files for ONNX Runtime and OpenVINO: calibrated on photos, and measured before they are called done."""

import contextlib
import logging
import platform
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_ci2p.backend import cpu_flags
from keras_ci2p.data.manifest import ImageManifest
from keras_ci2p.data.sources import open_data
from keras_ci2p.data.transforms import center_crop
from keras_ci2p.export.export import ExportError, check_arguments, export, num_bytes
from keras_ci2p.export.formats import (
    FORMATS,
    INT8_FORMATS,
    OPENVINO_FILE,
    import_openvino,
    open_exported,
    to_onnx,
    to_openvino,
)
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.utils import (
    PathLike,
    atomic_directory,
    atomic_file,
    first_line,
    is_of_full_disk,
    num_cpus,
    require,
    user_path,
)

# How much top-1 may fall, in 0..1.
MOST_LOSS = 0.005
# Of the training split, to find the ranges of activations by; histograms of more would need gigabytes.
CALIBRATION_PHOTOS, HISTOGRAM_PHOTOS = 256, 64
# Of the validation split, to measure top-1 on.
MOST_PHOTOS = 5000
# Photos that a file is run with at a time.
_BATCH = 16
# ONNX Runtime's ways to find ranges. Its third, "Entropy", takes minutes and was never the best here.
METHODS = ("MinMax", "Percentile")
# What is left in floats: first nothing, then, where that loses too much, GDN's product, whose sums of squares span
# orders of magnitude, and the head.
FLOAT_PARTS = ((), ("gdn", "head"))
_PRODUCTS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Int8Report:
    """What was written in 8 bits, and what it costs.

    Attributes:
        method: How ranges of activations were found: one of `METHODS`, or "NNCF".
        floats: The parts that stayed floats, of "gdn" and "head"; of NNCF the number of layers that it took back.
        photos: How many validation photos were asked.
        top1, float_top1: Shares in 0..1 of these that the file and the float model classify right.
        num_bytes, float_bytes: Of the file, and of the same in floats.

    Examples:
        >>> report = keras_ci2p.export.Int8Report(
        ...     method="MinMax",
        ...     floats=(),
        ...     photos=1000,
        ...     top1=0.951,
        ...     float_top1=0.953,
        ...     num_bytes=10_000,
        ...     float_bytes=40_000,
        ... )
        >>> report.float_bytes / report.num_bytes
        4.0
    """

    method: str
    floats: tuple
    photos: int
    top1: float
    float_top1: float
    num_bytes: int
    float_bytes: int


def export_int8(
    model: ImageClassifier,
    destination: PathLike,
    format: str,
    data: ImageManifest | PathLike,
    opset: int | None = None,
    overwrite: bool = False,
    metadata: dict[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
) -> Int8Report:
    """Writes a classifier with 8-bit weights and activations for ONNX Runtime or OpenVINO.

    The model is exported in floats first, as `export` does and checks it. The ranges of its activations are those of
    256 training photos. For ONNX, ONNX Runtime's tools quantise its convolutions and products (`quantize_static`: QDQ,
    activations uint8, weights int8 with a scale for each channel), once for each of `METHODS`; the file of the best
    top-1 on the validation photos is taken. Where each of them loses more than half a point, GDN and the head stay
    floats. For OpenVINO, NNCF takes layers back until the loss is so small. Until it is, nothing stands at
    `destination`. Weights are of 7 bits where the processor of this machine adds 8-bit products with saturation.

    Args:
        model, destination, opset, overwrite, metadata, outputs: As in `export`.
        format: "onnx" or "openvino".
        data: What `keras_ci2p.data.open_data` takes, with images of train and val and the model's class names.

    Returns:
        An `Int8Report`; the file's metadata hold it too, but for the sizes, as `int8`.

    Raises:
        ValueError, FileExistsError: As in `export`; a format without 8 bits; data that cannot be used.
        ExportError: As in `export`; or top-1 falls by more than 0.5 points.
        ImportError: A package is missing; the message says which, and what installs it.

    Examples:
        >>> model = keras_ci2p.load_preset("animals10")
        >>> report = keras_ci2p.export.export_int8(model, "animals.onnx", "onnx", "photos")  # doctest: +SKIP
        >>> report.float_top1 - report.top1 <= 0.005  # doctest: +SKIP
        True
    """
    destination = user_path(destination)
    check_arguments(model, destination, format, opset, overwrite)
    if format not in INT8_FORMATS:
        raise ValueError(f"Only {' and '.join(INT8_FORMATS)} are written in 8 bits. Received: format={format!r}")
    require("onnxruntime.quantization" if format == "onnx" else "nncf", extra="export")
    images = open_data(data)
    if model.class_names is not None:
        images = images.with_class_names(model.class_names)
    calibration, _ = _photos(images.split("train"), CALIBRATION_PHOTOS, model.image_shape[:2])
    validation = _photos(images.split("val"), MOST_PHOTOS, model.image_shape[:2])
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / f"float{FORMATS[format].suffix or ''}"
        export(model, source, format, opset=opset, metadata=metadata, outputs=outputs)
        exact = _logits(source, format, validation[0])
        float_top1 = _top1(exact, validation[1])
        try:
            path, found = (_best_onnx if format == "onnx" else _with_nncf)(source, calibration, validation, exact)
        except Exception as error:  # The quantisers raise what they like.
            if is_of_full_disk(error, Path(directory)):
                raise
            raise ExportError(f"The model could not be quantised for {format}: {first_line(error)}") from error
        top1 = found["top1"]
        if not top1 >= float_top1 - MOST_LOSS:
            raise ExportError(
                f"In 8 bits top-1 falls by {100 * (float_top1 - top1):.2f} points, from {float_top1:.2%} to {top1:.2%} "
                f"of {len(exact):,} validation photos; at most {100 * MOST_LOSS:g} are allowed. Nothing was kept: "
                "export it in floats, or train it further."
            )
        found |= {"photos": len(exact), "float_top1": float_top1}
        _finish(source, path, destination, format, {"int8": found})
        return Int8Report(**found, num_bytes=num_bytes(destination), float_bytes=num_bytes(source))


def _photos(manifest, most, size):
    """Central crops from all over a split and their labels: uint8 `(photos, *size, 3)` and `(photos,)`."""
    numbers = np.linspace(0, len(manifest) - 1, min(most, len(manifest))).round().astype(int).tolist()
    with ThreadPoolExecutor(num_cpus()) as pool:
        images = list(pool.map(lambda number: center_crop(manifest.open(number), size), numbers))
    return np.stack(images), np.array(manifest.labels)[numbers]


def _logits(path, format, images):
    run = open_exported(path, format)
    batches = (images[first : first + _BATCH].astype("float32") for first in range(0, len(images), _BATCH))
    return np.concatenate([run(batch) for batch in batches])


def _top1(logits, labels):
    return float((logits.argmax(-1) == labels).mean())


def _finish(source, path, destination, format, entries):
    """Gives a quantised file its metadata, those of the float one and `entries`, and its name."""
    if format == "onnx":
        onnx = require("onnx", extra="export")
        model = onnx.load(path)
        properties = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
        onnx.helper.set_model_props(model, {**properties, **to_onnx(entries)})
        with atomic_file(destination) as temporary:
            onnx.save(model, temporary)
        return
    openvino = import_openvino()
    model = openvino.Core().read_model(path / OPENVINO_FILE)
    to_openvino(entries, model)
    with atomic_directory(destination) as temporary:
        openvino.save_model(model, temporary / OPENVINO_FILE, compress_to_fp16=False)


# === ONNX Runtime ===


def _best_onnx(source, calibration, validation, exact):
    """`(path, dict of method, floats, top1)` of the best file; the parts that stay floats are as few as will do."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(source, prepared)
    _rewrite_gdn(prepared)
    for floats in FLOAT_PARTS:
        found = {}
        for method in METHODS:
            path = source.with_name(f"{method}-{len(floats)}.onnx")
            quantize_onnx(prepared, path, calibration, method, floats)
            logits = _logits(path, "onnx", validation[0])
            # Of equal top-1, that of the smaller error.
            score = _top1(logits, validation[1]), -float(np.square(logits - exact).mean())
            found[score] = path, {"method": method, "floats": floats, "top1": score[0]}
        best = max(found)
        if best[0] >= _top1(exact, validation[1]) - MOST_LOSS:
            break
    return found[best]


def _rewrite_gdn(path):
    """Writes a file's GDN anew, with operators that have kernels in 8 bits; in floats it is as fast as before.

    A tensor's product with itself stays in 8 bits, where a power goes through floats; a Gemm adds its bias; Sqrt and
    Div are two passes where Sqrt, Reciprocal and Mul are three. Such passes, over 128 channels of a quarter of the
    image's pixels, took longer than the convolutions.
    """
    onnx = require("onnx", extra="export")
    rewriter = require("onnxscript.rewriter", extra="export")

    def gdn(op, x, gamma, beta):
        return op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(op.MatMul(op.Pow(x, 2), gamma), beta))))

    def rewritten(op, x, gamma, beta):
        shape = [-1, *x.shape[1:]]
        # Gemm takes matrices.
        flat = op.Reshape(x, op.Constant(value_ints=[-1, shape[-1]]))
        norm = op.Sqrt(op.Gemm(op.Mul(flat, flat), gamma, beta))
        return op.Reshape(op.Div(flat, norm), op.Constant(value_ints=shape))

    rule = rewriter.pattern.RewriteRule(gdn, rewritten)
    onnx.save(rewriter.rewrite(onnx.load(path), [rule]), path)


def quantize_onnx(source, target, calibration, method, floats):
    """Quantises a file that `quant_pre_process` and `_rewrite_gdn` made.

    Args:
        source, target: Paths.
        calibration: uint8 `(photos, height, width, 3)`.
        method: One of `METHODS`.
        floats: Of "gdn" and "head", what stays in floats.
    """
    from onnxruntime import quantization

    nodes = _nodes(source)
    # Attention's own products are small, and quantising what they take and give costs more time than it saves.
    # Depthwise convolutions are small too, and their channels, whose ranges differ, would share one scale: of all parts
    # of `animals10` only one of them moved the logits by over 3 %.
    excluded = {name for part in ("attention", "depthwise", *floats) for name in nodes[part]}
    photos = calibration if method == "MinMax" else calibration[:: -(-len(calibration) // HISTOGRAM_PHOTOS)]

    class Reader(quantization.CalibrationDataReader):
        """A photo at a time, as ONNX Runtime wants them."""

        def __init__(self):
            self._photos = iter(photos)

        def get_next(self):
            photo = next(self._photos, None)
            return None if photo is None else {"images": photo[None].astype("float32")}

    quantization.quantize_static(
        source,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=[*_PRODUCTS, "Mul"],
        nodes_to_quantize=[name for name in nodes["products"] + nodes["gdn"] if name not in excluded],
        per_channel=True,
        reduce_range=not adds_without_saturation(),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=getattr(quantization.CalibrationMethod, method),
        # One kernel then multiplies, scales and gives floats, where rounding would be two more passes and an error.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )


def _nodes(path):
    """Names of a graph's products, and by part of those nodes that may stay in floats."""
    onnx = require("onnx", extra="export")
    graph = onnx.load(path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    head = made_by[graph.output[0].name]
    while head.op_type not in _PRODUCTS:
        # An activation.
        head = made_by[head.input[0]]
    squares = {node.output[0]: node for node in graph.node if node.op_type == "Mul" and node.input[0] == node.input[1]}
    norms = [node for node in graph.node if node.op_type == "Gemm" and node.input[0] in squares]
    constants = {constant.name for constant in graph.initializer}
    matrices = [node for node in graph.node if node.op_type == "MatMul"]
    return {
        "products": [node.name for node in graph.node if node.op_type in _PRODUCTS],
        "gdn": [one.name for node in norms for one in (squares[node.input[0]], node)],
        "attention": [node.name for node in matrices if constants.isdisjoint(node.input)],
        "depthwise": [node.name for node in graph.node if node.op_type == "Conv" and _groups(node) > 1],
        "head": [head.name],
    }


def _groups(convolution):
    return next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)


def adds_without_saturation():
    """Whether this machine's processor adds products of 8-bit integers in 32 bits, as x86 does with VNNI."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i686")
    return not is_x86 or not {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu_flags())


# === OpenVINO ===


def _with_nncf(source, calibration, validation, exact):
    """As `_best_onnx`, by NNCF."""
    openvino = import_openvino()
    # It asks for the makers' telemetry too.
    with _quiet():
        import nncf

        model = openvino.Core().read_model(source / OPENVINO_FILE)

        def batch(photo):
            return photo[None].astype("float32")

        def top1(compiled, pairs):
            right = [float(compiled(batch(photo))[0].argmax() == label) for photo, label in pairs]
            return float(np.mean(right)), right

        quantized = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(calibration, batch),
            nncf.Dataset(list(zip(*validation, strict=True)), lambda pair: batch(pair[0])),
            validation_fn=top1,
            max_drop=MOST_LOSS,
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            # As for ONNX Runtime.
            ignored_scope=nncf.IgnoredScope(types=["GroupConvolution"], validate=False),
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                # By itself it keeps to 7 bits in the first layer alone.
                overflow_fix=nncf.OverflowFix[("ENABLE", "FIRST_LAYER")[adds_without_saturation()]],
                # By itself it evens out the channels of what MatMul takes, at the cost of the weights: with GDN's
                # squares the logits of `animals10` are then off by 19 % (rms) instead of 5.
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1),
            ),
        )
    path = source.with_name("int8")
    path.mkdir()
    openvino.save_model(quantized, path / OPENVINO_FILE, compress_to_fp16=False)
    top1 = _top1(_logits(path, "openvino", validation[0]), validation[1])
    return path, {"method": "NNCF", "floats": (), "top1": top1}


@contextlib.contextmanager
def _quiet():
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
