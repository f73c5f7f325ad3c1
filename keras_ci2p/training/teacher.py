"""A trained classifier of any origin as a teacher: images to logits in the order of one's own classes, and features."""

import hashlib
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ci2p.export.formats import IMAGES, input_name, model_metadata, network_file, open_network
from keras_ci2p.models.ci2p_vit import CLASSIFIERS, open_classifier
from keras_ci2p.presets import open_preset
from keras_ci2p.utils import PathLike, Tensor, file_sha256

# Names of an ONNX or OpenVINO file's outputs that are taken for feature maps where none are named.
FEATURE_PREFIX = "features_"
LOGITS, PROBABILITIES = "logits", "probabilities"
_LEAST_PROBABILITY = 1e-7


class TeacherError(ValueError):
    """A teacher that does not fit the classes, or of which too little is known.

    Examples:
        >>> model = keras_ci2p.ViT((32, 32, 3), variant="tiny", num_layers=2, class_names=["cat", "dog"])
        >>> model.save_to_preset("teacher")
        >>> keras_ci2p.training.open_teacher("teacher", ["cat", "owl"])
        Traceback (most recent call last):
            ...
        keras_ci2p.training.teacher.TeacherError: The teacher ... does not know the class owl. It knows: cat, dog
    """


class Teacher:
    """A trained classifier, asked for its logits and feature maps; `open_teacher` makes one.

    Attributes:
        name: As its file says, else the file's name.
        sha256: Hexadecimal SHA-256 of its file, or of its weights' files.
        license: As its file says, else None.
        class_names: The classes of its logits, in the order that was asked for.
        image_size: `(height, width)` of the images that it takes.
        value_range: `(low, high)`, what black and white become for it; numbers, or triples for red, green and blue.
        feature_names: Names of its feature maps; perhaps none.
        feature_shapes: `(rows, columns, channels)` of each.

    Examples:
        >>> model = keras_ci2p.ViT((32, 32, 3), variant="tiny", num_layers=2, class_names=["cat", "dog"])
        >>> model.save_to_preset("teacher")
        >>> teacher = keras_ci2p.training.open_teacher("teacher", ["dog", "cat"], features=["block_1"])
        >>> logits, (features,) = teacher(np.zeros((1, 32, 32, 3), "uint8"))
        >>> logits.shape, features.shape
        ((1, 2), (1, 2, 2, 192))
    """

    def __init__(
        self, source: "_Source", class_names: Sequence[str], image_size: tuple[int, int], value_range: Any
    ) -> None:
        self.name = source.entries.get("name") or source.name
        self.sha256 = source.sha256
        self.license = source.entries.get("license")
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.value_range = value_range
        self.feature_names = source.feature_names
        self._source = source
        low, high = (np.asarray(value, "float32") for value in value_range)
        self._scale, self._shift = (high - low) / np.float32(255), low

        # A run tells what the file does not: shapes, and whether it gives probabilities.
        images = np.random.default_rng(0).uniform(0, 255, (2, *image_size, 3)).astype("float32")
        outputs, maps = self._run(images)
        self._classes = _matched(self.class_names, source.entries.get("class_names"), outputs.shape[1], self.name)
        self._is_logits = source.entries.get("output", _kind(outputs)) != PROBABILITIES
        self.feature_shapes = tuple(array.shape[1:] for array in maps)

    def __call__(self, images: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
        """What the teacher says of images. Several threads may ask at a time.

        Args:
            images: uint8 or float32 `(batch, height, width, 3)`, RGB in 0..255, of `image_size`.

        Returns:
            `(logits, maps)`: float32 `(batch, classes)`, logarithms where the teacher gives probabilities; and a list
            of float32 `(batch, rows, columns, channels)`, one of each of `feature_names`.

        Raises:
            ValueError: Images of another size or type.
        """
        images = np.asarray(images)
        if images.shape[1:] != (*self.image_size, 3) or images.dtype not in ("uint8", "float32"):
            raise ValueError(
                f"The teacher {self.name} takes uint8 or float32 images of shape (batch, {self.image_size[0]}, "
                f"{self.image_size[1]}, 3). Received: dtype={images.dtype}, shape={images.shape}"
            )
        outputs, maps = self._run(images)
        outputs = outputs[:, self._classes]
        return outputs if self._is_logits else np.log(np.clip(outputs, _LEAST_PROBABILITY, 1)), maps

    def _run(self, images):
        source = self._source
        images = images.astype("float32") * self._scale + self._shift
        if source.is_channels_first:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        if source.input_type != "float32":
            images = (np.rint(images) if source.input_type == "uint8" else images).astype(source.input_type)
        outputs, *maps = (np.asarray(array, "float32") for array in source.run(images))
        if outputs.shape[:1] != images.shape[:1] or outputs.ndim != 2:
            raise TeacherError(
                f"The teacher {self.name} must give (batch, classes). Received: shape {outputs.shape} for a batch of "
                f"{len(images)}"
            )
        layout = source.entries.get("feature_data_format")
        named = zip(self.feature_names, maps, strict=True)
        return outputs, [_as_map(name, array, self.image_size, layout) for name, array in named]

    def describe(self) -> dict[str, Any]:
        """What it is, as a dict that JSON can hold."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "license": self.license,
            "class_names": list(self.class_names),
            "image_size": list(self.image_size),
            "value_range": [np.asarray(value).tolist() for value in self.value_range],
            "output": LOGITS if self._is_logits else PROBABILITIES,
            "features": {
                name: list(shape) for name, shape in zip(self.feature_names, self.feature_shapes, strict=True)
            },
            "runtime": self._source.runtime,
        }


def open_teacher(
    source: PathLike,
    class_names: Sequence[str],
    image_size: int | tuple[int, int] | None = None,
    value_range: Any = None,
    features: Sequence[str] | None = None,
) -> Teacher:
    """Opens a trained classifier as a teacher.

    What a file says of itself (`keras_ci2p.export.formats`) is believed: class names, size, values, logits or
    probabilities. Where it does not say whether it gives probabilities, a trial shows: none negative, sum 1.

    Args:
        source: A training run or preset of this package; a file .keras, .onnx, or .xml of OpenVINO with its .bin, or
            the directory that `export` wrote for OpenVINO. Keras files are read in its safe mode.
        class_names: The classes in the order that the logits shall have. The teacher's are matched by name, further
            ones of it left out. One without class names must have as many, and is taken to have the same order.
        image_size: `(height, width)` or one number for both, where the teacher takes several sizes or, a preset, shall
            take another; None for what it says.
        value_range: `(low, high)`: what black and white are for the teacher, such as `(0, 1)` or `(-1, 1)`; for each
            channel on its own, `((r, g, b), (r, g, b))`. None for what it says.
        features: Names of its layers, of ONNX or OpenVINO outputs, whose feature maps are wanted; None for the outputs
            called `features_` and something, in their order. Maps `(batch, rows, columns, channels)`; of another
            framework, also `(batch, channels, rows, columns)`, recognised by the last two axes alone having the shape
            of the image where the file does not say; or `(batch, tokens, dim)` whose tokens lie row by row, perhaps
            after one class token, which is left out.

    Returns:
        A `Teacher`.

    Raises:
        TeacherError: A class that the teacher lacks, another number of classes without names, no known size or range
            of values, features that it does not have.
        ValueError: A file that cannot be read.
        FileNotFoundError: There is no such file.
        ImportError: The package that reads it is not installed.

    Examples:
        >>> model = keras_ci2p.ViT((32, 32, 3), variant="tiny", num_layers=2, class_names=["cat", "dog"])
        >>> model.save_to_preset("teacher")
        >>> teacher = keras_ci2p.training.open_teacher("teacher", ["dog", "cat"])
        >>> teacher.class_names, teacher.image_size
        (('dog', 'cat'), (32, 32))
    """
    path = network_file(source)
    size = _as_size(image_size)
    if path.suffix in (".onnx", ".xml"):
        opened = _network_source(path, features)
    elif path.suffix == ".keras":
        opened = _keras_source(path, features)
    else:
        opened = _preset_source(source, size, features)
    return Teacher(opened, class_names, _image_size(opened, size), _value_range(opened, value_range))


def teacher_sha256(source):
    """`Teacher.sha256` of what `open_teacher` takes, which need not be known well enough to be asked."""
    path = network_file(source)
    if path.suffix == ".xml":
        parts = [file_sha256(part) for part in (path, path.with_suffix(".bin"))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if path.suffix in (".onnx", ".keras"):
        return file_sha256(path)
    return open_preset(source).sha256


@dataclass(frozen=True)
class _Source:
    """A teacher before it is known what is wanted of it.

    Attributes:
        name: Of the file.
        sha256: Of the file or weights.
        runtime: What runs it.
        run: Function of a batch of images as it takes them, that gives its logits or probabilities and each feature
            as arrays. Several threads may call it.
        image_size: `(height, width)`, None for what may be of any size.
        entries: What it says of itself, as in `keras_ci2p.export.formats`.
        feature_names: Of what `run` gives after the logits.
        input_type: Of the images.
        is_channels_first: Whether they are `(batch, 3, height, width)`.
    """

    name: str
    sha256: str
    runtime: str
    run: Callable
    image_size: tuple
    entries: dict
    feature_names: tuple = ()
    input_type: str = "float32"
    is_channels_first: bool = False


def _network_source(path, features):
    """Of an ONNX or OpenVINO file."""
    network = open_network(path)
    if input_name(network.metadata) != IMAGES:
        raise TeacherError(f"{path} takes latents, and a teacher looks at images. Export it without --input latents.")
    names = list(network.output_shapes)
    if features is None:
        features = [name for name in names if name.startswith(FEATURE_PREFIX)]
    _check_features(path, features, names, "outputs")
    wanted = [_logits_output(path, network, features), *features]
    shape = network.input_shape
    layout = network.metadata.get("data_format")
    is_channels_first = layout == "channels_first" if layout else shape[1] == 3 and shape[3] != 3
    return _Source(
        name=path.stem,
        sha256=teacher_sha256(path),
        runtime=network.runtime,
        run=lambda images: network.run(images, wanted),
        image_size=shape[2:] if is_channels_first else shape[1:3],
        entries=network.metadata,
        feature_names=tuple(features),
        input_type=network.input_type,
        is_channels_first=is_channels_first,
    )


def _logits_output(path, network, features):
    candidates = [name for name in network.output_shapes if name not in features]
    flat = [name for name in candidates if len(network.output_shapes[name]) == 2] or candidates
    named = [name for name in flat if name in (network.metadata.get("output"), LOGITS, PROBABILITIES)]
    if len(named or flat) != 1:
        raise TeacherError(
            f"{path} must have one output of logits or probabilities, (batch, classes); of several, call one "
            f"{LOGITS!r} or {PROBABILITIES!r}. It has: {network.output_shapes}"
        )
    return (named or flat)[0]


def _keras_source(path, features):
    """Of a Keras model's file."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    model = keras.saving.load_model(path, compile=False)
    # What this package's models take is known.
    entries = model_metadata(model) if isinstance(model, tuple(CLASSIFIERS.values())) else {}
    return _model_source(model, path, path.stem, teacher_sha256(path), entries, features)


def _preset_source(source, image_size, features):
    """Of a training run, a preset directory or the name of a preset."""
    arguments = {} if image_size is None else {"image_shape": (*image_size, 3)}
    model, preset = open_classifier(str(source), **arguments)
    entries = model_metadata(model) | {"license": preset.metadata.get("license")}
    return _model_source(model, source, Path(source).name, preset.sha256, entries, features)


def _model_source(model, path, name, sha256, entries, features):
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise TeacherError(f"{path} must take one batch of images, of rank 4. Received: input shape {shape}")
    features = list(features or ())
    if features:
        layers = {layer.name: layer for layer in model.layers}
        _check_features(path, features, list(layers), "layers")
        model = keras.Model(model.input, [*model.outputs, *(layers[feature].output for feature in features)])
    # Keras builds the function when it is first asked.
    lock = threading.Lock()

    def run(images):
        with lock:
            outputs = model.predict_on_batch(images)
        return outputs if isinstance(outputs, list) else [outputs]

    is_channels_first = shape[1] == 3 and shape[3] != 3
    return _Source(
        name=name,
        sha256=sha256,
        runtime=f"Keras {keras.__version__} on {keras.backend.backend()}",
        run=run,
        image_size=shape[2:] if is_channels_first else shape[1:3],
        entries=entries,
        feature_names=tuple(features),
        is_channels_first=is_channels_first,
    )


def _check_features(path, features, names, kind):
    unknown = [name for name in features if name not in names]
    if unknown:
        raise TeacherError(f"{path} has no {kind} {', '.join(unknown)} to take features of. It has: {', '.join(names)}")


def _as_size(image_size):
    if image_size is None or not isinstance(image_size, int):
        return None if image_size is None else tuple(image_size)
    return image_size, image_size


def _image_size(source, wanted):
    said = tuple(source.entries.get("image_size") or wanted or (None, None))
    known = tuple(size or said[axis] for axis, size in enumerate(source.image_size))
    if wanted is not None:
        fits = all(size in (None, want) for size, want in zip(source.image_size, wanted, strict=True))
        if not fits:
            raise TeacherError(
                f"The teacher {source.name} takes images of {_by(source.image_size)} only. "
                f"Received: image_size={wanted}"
            )
        return wanted
    if None in known:
        raise TeacherError(
            f"The teacher {source.name} takes images of any size and does not say which it was trained with: give "
            "`image_size` (--teacher-size)."
        )
    return known


def _by(size):
    return " x ".join("any" if number is None else str(number) for number in size)


def _value_range(source, wanted):
    value_range = wanted if wanted is not None else source.entries.get("value_range")
    if value_range is None and source.input_type == "uint8":
        value_range = (0, 255)
    if value_range is None:
        raise TeacherError(
            f"The teacher {source.name} does not say which values it takes: give `value_range` (--teacher-range), such "
            "as 0,255 or 0,1 or -1,1."
        )
    bounds = np.asarray(value_range, "float32")
    if bounds.shape not in ((2,), (2, 3)) or not np.all(bounds[0] < bounds[1]):
        raise TeacherError(
            "`value_range` must be (low, high), what black and white are for the teacher, as numbers or as triples for "
            f"red, green and blue. Received: value_range={value_range!r}"
        )
    return tuple(tuple(bound) if isinstance(bound, list | tuple) else bound for bound in value_range)


def _matched(class_names, known, count, name):
    """Indices of `class_names` among the teacher's outputs."""
    if known is None:
        if count != len(class_names):
            raise TeacherError(
                f"The teacher {name} gives {count} classes without saying which, and the data have {len(class_names)}. "
                "Write the names into its file, as the metadata entry keras_ci2p.class_names."
            )
        warnings.warn(
            f"The teacher {name} does not name its classes: they are taken to be {', '.join(class_names)}, in this "
            "order.",
            stacklevel=4,
        )
        return np.arange(count)
    if len(known) != count or len(set(known)) != count:
        raise TeacherError(f"The teacher {name} gives {count} classes and names {len(set(known))}: {', '.join(known)}")
    missing = [class_name for class_name in class_names if class_name not in known]
    if missing:
        raise TeacherError(
            f"The teacher {name} does not know the class {', '.join(missing)}. It knows: {', '.join(known)}"
        )
    return np.array([known.index(class_name) for class_name in class_names])


def _kind(outputs):
    is_distribution = outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=1e-3)
    return PROBABILITIES if is_distribution else LOGITS


def _as_map(name, array, image_size, layout):
    """A feature as float32 `(batch, rows, columns, channels)`."""
    height, width = image_size
    if array.ndim == 4:
        _, first, second, third = array.shape
        if layout is None and first * width != second * height and second * width == third * height:
            layout = "channels_first"
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if layout == "channels_first" else array
    if array.ndim == 3:
        for class_tokens in (0, 1):
            grid = _grid(array.shape[1] - class_tokens, height, width)
            if grid:
                return array[:, class_tokens:].reshape(len(array), *grid, array.shape[2])
    raise TeacherError(
        f"The feature {name!r} of the teacher must be a map (batch, rows, columns, channels), or tokens "
        f"(batch, tokens, dim) of a grid shaped as the image, {height} x {width}. Received: shape {array.shape}"
    )


def _grid(tokens, height, width):
    """Rows and columns of so many tokens in the image's shape; None where there is no such grid."""
    rows = math.isqrt(tokens * height // width) if tokens > 0 else 0
    columns = tokens // rows if rows else 0
    return (rows, columns) if columns and rows * columns == tokens and rows * width == columns * height else None
