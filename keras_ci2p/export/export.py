"""Export: write, run, compare, and only then give the file its name."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.backend import run_in_process
from keras_ci2p.export.fold_batch_norm import float32_copy
from keras_ci2p.export.formats import FORMATS, open_exported, write, writing_backend
from keras_ci2p.export.metadata import model_metadata
from keras_ci2p.models.loading import CLASSIFIERS
from keras_ci2p.utils import atomic_directory, atomic_file

# Largest difference of a logit. Correct implementations of this model agree to it in float32.
TOLERANCE = 1e-4
# Seconds for another backend to write and run a model: far more than the largest takes.
TIMEOUT = 3600
# Of torch's converter; older ones lack LayerNormalization or the padding that it uses.
OLDEST_OPSET = 18


class ExportError(ValueError):
    """A model that could not be written, or a file that does not compute what the model does."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees with the model.

    Attributes:
        format: One of `FORMATS`.
        backend: The backend of Keras that wrote it; where it is not the current one, in another process.
        opset: Of ONNX, else None.
        num_bytes: Of the file or of the directory's files.
        difference: Largest difference of a logit between the file, run by its runtime, and the model.
    """

    format: str
    backend: str
    opset: int | None
    num_bytes: int
    difference: float


def export(model, destination, format, opset=None, overwrite=False, metadata=None):
    """Writes a classifier for another runtime, and checks it by running it there.

    The file's input `images` is float32 `(batch, height, width, 3)`, RGB in 0..255, of any batch size and the model's
    image size; its output is what the model gives. Batch normalisation is folded into the products before it. Logits
    for noise and for smooth images, in batches of 1 and 3, must be within 1e-4 of those of the model; until they are,
    nothing stands at `destination`.

    Where the current backend cannot write the format, one that is installed and can does it in a process of its own.

    Args:
        model: A `CI2PViT`, `CI2PViTDualScale` or `ViT` of fixed image size, not quantised. Under another dtype policy
            than float32 it is exported in float32, and compared so.
        destination: A file ending in .onnx, .pt2 (torch) or .tflite (litert); for tf_saved_model and openvino a
            directory, in the latter's case with openvino_model.xml and .bin.
        format: "onnx", "tf_saved_model", "openvino", "torch" (an `ExportedProgram`) or "litert".
        opset: Version of ONNX's operators, at least 18; None for the converter's default.
        overwrite: Whether to replace an exported model at `destination`.
        metadata: Further entries for what the file says of itself (`keras_ci2p.export.metadata`), such as `name`,
            `license`, `top1`; a dict of values that JSON can hold.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: Unknown format, a destination of another suffix, an `opset` too old or of another format, a
            quantised model, or one that takes any image size.
        ExportError: The backend could not write it, or the check failed.
        FileExistsError: Something is at `destination`.
        ImportError: A package is missing; the message says which, and what installs it.
    """
    destination = Path(destination)
    _check_arguments(model, destination, format, opset, overwrite)
    backend = writing_backend(format)
    if model.dtype_policy.name != "float32":
        model = float32_copy(model)
    images = _pictures(sum(BATCHES), *model.image_shape[:2])
    expected = model.predict(images, batch_size=len(images), verbose=0)
    writing = atomic_file if FORMATS[format].suffix else atomic_directory
    with writing(destination) as temporary:
        arguments = (model, temporary, format, opset, {**model_metadata(model), **(metadata or {})}, images)
        try:
            if backend == keras.backend.backend():
                outputs = write_and_run(*arguments)
            else:
                outputs = write_and_run_elsewhere(backend, *arguments)
        except Exception as error:  # The converters raise what they like.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(f"{backend} could not write the model as {format}: {reason}") from error
        report = ExportReport(
            format=format,
            backend=backend,
            opset=_onnx_opset(temporary) if format == "onnx" else None,
            num_bytes=_num_bytes(temporary),
            difference=float(np.max(np.abs(outputs - expected))),
        )
        if not report.difference <= TOLERANCE:
            raise ExportError(
                f"What {backend} wrote as {format} differs from the model: by {report.difference:.2g} in a logit, at "
                f"most {TOLERANCE:g} is allowed. Nothing was kept."
            )
    return report


def _check_arguments(model, destination, format, opset, overwrite):
    if not isinstance(model, tuple(CLASSIFIERS.values())):
        raise ValueError(
            f"`model` must be one of {', '.join(kind.__name__ for kind in CLASSIFIERS.values())}. "
            f"Received: {type(model).__name__}"
        )
    if format not in FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(FORMATS)}. Received: format={format!r}")
    if opset is not None and format != "onnx":
        raise ValueError(f"Only ONNX has an opset. Received: opset={opset}, format={format!r}")
    if opset is not None and opset < OLDEST_OPSET:
        raise ValueError(f"`opset` must be at least {OLDEST_OPSET}. Received: opset={opset}")
    if any(layer.quantization_mode for layer in model._flatten_layers()):
        raise ValueError(
            "A quantised model is not exported: its rounding would differ from runtime to runtime. Export the model "
            "that it was made of, and quantise the file with the runtime's own tools."
        )
    if None in model.image_shape:
        raise ValueError(
            "An exported model has a fixed image size: load the model with an `image_shape` (--image-size). "
            f"Received: image_shape={model.image_shape}"
        )
    suffix, main_file = FORMATS[format].suffix, FORMATS[format].main_file
    if suffix and destination.suffix != suffix:
        raise ValueError(f"A file of format {format} ends in {suffix}. Received: destination={str(destination)!r}")
    if destination.exists():
        if not overwrite:
            raise FileExistsError(f"{destination} exists already: choose another name, or overwrite it (--overwrite).")
        if not (destination.is_file() if suffix else (destination / main_file).is_file()):
            raise FileExistsError(f"{destination} exists and is no model of format {format}; choose another name.")


def _pictures(count, height, width):
    """float32 `(count, height, width, 3)` in 0..255, the same every time: smooth and noise in turn."""
    rng = np.random.default_rng(0)
    pictures = rng.uniform(0, 255, (count, height, width, 3))
    corners = rng.uniform(0, 255, (len(pictures[::2]), 2, 2, 3))
    rows, columns = (np.stack([1 - ramp, ramp]) for ramp in (np.linspace(0, 1, height), np.linspace(0, 1, width)))
    pictures[::2] = np.einsum("iy,jx,nijc->nyxc", rows, columns, corners)
    return pictures.astype("float32")


def _onnx_opset(path):
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next(entry.version for entry in imports if not entry.domain)


def _num_bytes(path):
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


# Sizes of the batches that a file is run with, since a batch of one or the size it was traced with could be built in.
BATCHES = (1, 3)


def write_and_run(model, path, format, opset, entries, images):
    """Writes a model with the current backend, and runs what it wrote.

    Args:
        model, format, opset: As in `export`.
        path: File to write, or directory that exists.
        entries: What the file is to say of itself, as in `keras_ci2p.export.metadata`.
        images: float32 `(sum(BATCHES), height, width, 3)`.

    Returns:
        `(sum(BATCHES), num_classes)`, what the written model gives for the images.
    """
    write(model, path, format, opset, entries)
    run = open_exported(path, format)
    return np.concatenate([run(batch) for batch in np.split(images, np.cumsum(BATCHES)[:-1])])


def write_and_run_elsewhere(backend, model, path, format, opset, entries, images):
    """`write_and_run` in a process of its own whose Keras has another backend; the model goes there as a preset.

    Raises:
        RuntimeError: It failed or took too long; the message is the last line of what the process said.
    """
    with tempfile.TemporaryDirectory() as directory:
        job = Path(directory)
        model.save_to_preset(job / "preset")
        np.save(job / "images.npy", images)
        classifier = next(name for name, kind in CLASSIFIERS.items() if isinstance(model, kind))
        settings = {
            "classifier": classifier,
            "path": str(Path(path).absolute()),
            "format": format,
            "opset": opset,
            "entries": entries,
        }
        (job / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        run_in_process(backend, __name__, [job], timeout=TIMEOUT, on_cpu=True)
        return np.load(job / "outputs.npy")


def main(directory):
    """Does the other process's part of `write_and_run_elsewhere`."""
    job = Path(directory)
    settings = json.loads((job / "job.json").read_text(encoding="utf-8"))
    model = CLASSIFIERS[settings.pop("classifier")].from_preset(job / "preset")
    np.save(job / "outputs.npy", write_and_run(model, images=np.load(job / "images.npy"), **settings))
