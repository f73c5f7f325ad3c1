"""Export: write, run, compare, and only then give the file its name."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ci2p.backend import run_in_process
from keras_ci2p.export.formats import (
    ATTENTION,
    FORMATS,
    IMAGES,
    INPUTS,
    LATENTS,
    model_metadata,
    open_exported,
    output_name,
    write,
    writing_backend,
)
from keras_ci2p.export.inference import float32_copy
from keras_ci2p.layers.transformer import attention_rollout
from keras_ci2p.models.backbone import CompressorMixin
from keras_ci2p.models.ci2p_vit import CLASSIFIERS
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.utils import PathLike, atomic_directory, atomic_file, first_line, is_empty, is_of_full_disk, user_path

# Largest difference of a logit. Correct implementations of this model agree to it in float32.
TOLERANCE = 1e-4
# Seconds for another backend to write and run a model: far more than the largest takes.
TIMEOUT = 3600
# Of torch's converter; older ones lack LayerNormalization or the padding that it uses.
OLDEST_OPSET = 18


class ExportError(ValueError):
    """A model that could not be written, or a file that does not compute what the model does.

    Examples:
        >>> issubclass(keras_ci2p.export.ExportError, ValueError)
        True
    """


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees with the model.

    Attributes:
        format: One of `FORMATS`.
        backend: The backend of Keras that wrote it; where it is not the current one, in another process.
        opset: Of ONNX, else None.
        num_bytes: Of the file or of the directory's files.
        difference: Largest difference of an output between the file, run by its runtime, and the model.

    Examples:
        >>> report = keras_ci2p.export.ExportReport(
        ...     format="onnx", backend="torch", opset=18, num_bytes=22_400_000, difference=2e-6
        ... )
        >>> f"{report.num_bytes / 1e6} MB, at most {report.difference} off"
        '22.4 MB, at most 2e-06 off'
    """

    format: str
    backend: str
    opset: int | None
    num_bytes: int
    difference: float


def export(
    model: ImageClassifier,
    destination: PathLike,
    format: str,
    opset: int | None = None,
    overwrite: bool = False,
    metadata: dict[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    input: str = IMAGES,
) -> ExportReport:
    """Writes a classifier for another runtime, and checks it by running it there.

    The file's input `images` is float32 `(batch, height, width, 3)`, RGB in 0..255, of any batch size and the model's
    image size; its output is what the model gives, named "logits", "probabilities" or "scores". Batch normalisation is
    folded into the products before it. Outputs for noise and for smooth images, in batches of 1 and 3, must be within
    1e-4 of those of the model; until they are, nothing stands at `destination`.

    With `input="latents"` it is the classifier after the compressor. Its input `latents` is float32 `(batch, height /
    16, width / 16, channels)`, what the compressor makes of an image, or a `.ci2p` file of it holds.

    Where the current backend cannot write the format, one that is installed and can does it in a process of its own.

    Args:
        model: A `CI2PViT`, `CI2PViTDualScale` or `ViT` of fixed image size, not quantised. Under another dtype policy
            than float32 it is exported in float32, and compared so.
        destination: A file ending in .onnx, .pt2 (torch) or .tflite (litert); for tf_saved_model and openvino a
            directory, in the latter's case with openvino_model.xml and .bin.
        format: "onnx", "tf_saved_model", "openvino", "torch" (an `ExportedProgram`) or "litert".
        opset: Version of ONNX's operators, at least 18; None for the converter's default.
        overwrite: Whether to replace an exported model at `destination`.
        outputs: Names of the outputs, None for the model's own; "attention" beside it is where the model looks, float32
            `(batch, rows, columns)` by token, 1 on average: the attention rollout of all layers, its mean over the
            tokens that are classified.
        metadata: Further entries for what the file says of itself (`keras_ci2p.export.formats`), such as `name`,
            `license`, `top1`; a dict of values that JSON can hold.
        input: "images", or "latents" of a `CI2PViT` or `CI2PViTDualScale`.

    Returns:
        An `ExportReport`.

    Raises:
        ValueError: Unknown format, a destination of another suffix, an `opset` too old or of another format, a
            quantised model, one that takes any image size, or an input or outputs that it has not.
        ExportError: The backend could not write it, or the check failed.
        FileExistsError: Something is at `destination`.
        ImportError: A package is missing; the message says which, and what installs it.

    Examples:
        >>> model = keras_ci2p.ViT(
        ...     (32, 32, 3), num_classes=3, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
        ... )
        >>> report = keras_ci2p.export.export(model, "vit.onnx", "onnx")
        >>> report.format, report.difference < 1e-4
        ('onnx', True)
    """
    destination = user_path(destination)
    check_arguments(model, destination, format, opset, overwrite)
    outputs = _check_outputs(model, outputs)
    _check_input(model, input, outputs)
    backend = writing_backend(format)
    if model.dtype_policy.name != "float32":
        model = float32_copy(model)
    images, network = _pictures(sum(BATCHES), *model.image_shape[:2]), model
    if input == LATENTS:
        images = keras.ops.convert_to_numpy(model.compressor.encode(images)).astype("float32")
        network = model.latent_classifier
    expected = [network.predict(images, batch_size=len(images), verbose=0)]
    entries = {**model_metadata(model, input), **(metadata or {})}
    if ATTENTION in outputs:
        expected.append(_attention(model, images))
        entries["grid_size"] = list(model.grid_size)
    writing = atomic_file if FORMATS[format].suffix else atomic_directory
    needed = 4 * network.count_params()
    with writing(destination, needed=needed) as temporary:
        arguments = (model, temporary, format, opset, entries, outputs, images)
        try:
            if backend == keras.backend.backend():
                given = write_and_run(*arguments)
            else:
                given = write_and_run_elsewhere(backend, *arguments)
        except Exception as error:  # The converters raise what they like.
            if is_of_full_disk(error, Path(temporary).parent, needed):
                raise
            raise ExportError(f"{backend} could not write the model as {format}: {first_line(error)}") from error
        report = ExportReport(
            format=format,
            backend=backend,
            opset=_onnx_opset(temporary) if format == "onnx" else None,
            num_bytes=num_bytes(temporary),
            difference=float(np.max([np.max(np.abs(a - b)) for a, b in zip(given, expected, strict=True)])),
        )
        if not report.difference <= TOLERANCE:
            raise ExportError(
                f"What {backend} wrote as {format} differs from the model: by {report.difference:.2g} in an "
                f"output, at most {TOLERANCE:g} is allowed. Nothing was kept."
            )
    return report


def check_arguments(model, destination, format, opset, overwrite):
    """Raises what `export` raises for wrong arguments; `destination` is a Path."""
    if not isinstance(model, tuple(CLASSIFIERS.values())):
        raise ValueError(
            f"`model` must be one of {', '.join(kind.__name__ for kind in CLASSIFIERS.values())}. "
            f"Received: model={model!r}"
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
            "that it was made of, with --int8 (`export_int8`)."
        )
    if None in model.image_shape:
        raise ValueError(
            "An exported model has a fixed image size: load the model with an `image_shape` (--image-size). "
            f"Received: image_shape={model.image_shape}"
        )
    suffix, main_file = FORMATS[format].suffix, FORMATS[format].main_file
    if suffix and destination.suffix != suffix:
        raise ValueError(f"A file of format {format} ends in {suffix}. Received: destination={str(destination)!r}")
    if destination.exists() and (suffix or not (destination.is_dir() and is_empty(destination))):
        if not overwrite:
            raise FileExistsError(f"{destination} exists already: choose another name, or overwrite it (--overwrite).")
        if not (destination.is_file() if suffix else (destination / main_file).is_file()):
            raise FileExistsError(f"{destination} exists and is no model of format {format}; choose another name.")


def _check_outputs(model, outputs):
    """The names of the outputs, the model's own first."""
    own = output_name(model)
    outputs = [own] if outputs is None else list(outputs)
    if sorted(outputs) not in ([own], sorted([own, ATTENTION])):
        raise ValueError(f"`outputs` must be {own!r}, perhaps with {ATTENTION!r}. Received: outputs={outputs}")
    return sorted(outputs, key=lambda name: name == ATTENTION)


def _check_input(model, input, outputs):
    """Raises ValueError for an input that the model, or an output, does not have."""
    if input not in INPUTS or (input == LATENTS and not isinstance(model, CompressorMixin)):
        raise ValueError(
            f"`input` must be one of {', '.join(INPUTS)}, the latter of a model with a compressor. Received: "
            f"input={input!r}, a {type(model).__name__}"
        )
    if input == LATENTS and ATTENTION in outputs:
        raise ValueError(f"{ATTENTION!r} is an output of files that take images. Received: input={input!r}")


def _attention(model, images):
    """What the output "attention" must be, computed otherwise."""
    rollout = attention_rollout(model.attention_maps(images))
    return rollout.shape[-1] * rollout.mean(axis=1).reshape(-1, *model.grid_size)


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


def num_bytes(path):
    """Returns the size of a file, or of the files in a directory."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


# Sizes of the batches that a file is run with, since a batch of one or the size it was traced with could be built in.
BATCHES = (1, 3)


def write_and_run(model, path, format, opset, entries, outputs, images):
    """Writes a model with the current backend, and runs what it wrote.

    Args:
        model, format, opset: As in `export`.
        path: File to write, or directory that exists.
        entries: What the file is to say of itself, as in `keras_ci2p.export.formats`.
        outputs: Names of the outputs, the model's own first.
        images: float32 `(sum(BATCHES), height, width, 3)`, or latents, as the entries say.

    Returns:
        List of arrays `(sum(BATCHES), ...)`, what the written model gives for the images.
    """
    write(model, path, format, opset, entries, outputs)
    run = open_exported(path, format, outputs if len(outputs) > 1 else None)
    parts = [run(batch) for batch in np.split(images, np.cumsum(BATCHES)[:-1])]
    return [np.concatenate(part) for part in (zip(*parts, strict=True) if len(outputs) > 1 else [parts])]


def write_and_run_elsewhere(backend, model, path, format, opset, entries, outputs, images):
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
            "outputs": outputs,
        }
        (job / "job.json").write_text(json.dumps(settings), encoding="utf-8")
        run_in_process(backend, __name__, [job], timeout=TIMEOUT, on_cpu=True)
        with np.load(job / "outputs.npz") as given:
            return [given[name] for name in outputs]


def main(directory):
    """Does the other process's part of `write_and_run_elsewhere`."""
    job = Path(directory)
    settings = json.loads((job / "job.json").read_text(encoding="utf-8"))
    model = CLASSIFIERS[settings.pop("classifier")].from_preset(job / "preset")
    given = write_and_run(model, images=np.load(job / "images.npy"), **settings)
    np.savez(job / "outputs.npz", **dict(zip(settings["outputs"], given, strict=True)))
