"""Mixup and CutMix of batches."""

import math
from typing import NamedTuple

import numpy as np


class MixParams(NamedTuple):
    """Parameters of a batch's mixing: inside the box the partner's image, outside `weight * own + (1 - weight) *
    partner`.

    Attributes:
        partner: int32 `(batch,)`, the index of each image's partner.
        weight: Weight of the own image, in 0..1.
        box: `(top, left, bottom, right)` in pixels, empty for Mixup.
        label_weight: Weight of the own label, in 0..1.
    """

    partner: np.ndarray
    weight: float
    box: tuple
    label_weight: float


def sample_mix(mixup, cutmix, batch_size, image_size, rng, probability=1.0):
    """Samples the mixing of a batch: one of Mixup and CutMix, of one weight for all images (paper section 4.1).

    Args:
        mixup, cutmix: Parameters of the Beta distributions; 0 switches that one off.
        batch_size: Number of images.
        image_size: `(height, width)`.
        rng: `numpy.random.Generator`.
        probability: Probability of mixing the batch at all.

    Returns:
        `MixParams`.
    """
    partner = rng.permutation(batch_size).astype("int32")
    kinds = [kind for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not kinds or (probability < 1 and rng.random() >= probability):
        return MixParams(np.arange(batch_size, dtype="int32"), 1.0, (0, 0, 0, 0), 1.0)
    if kinds[rng.integers(len(kinds))] == "mixup":
        weight = float(rng.beta(mixup, mixup))
        return MixParams(partner, weight, (0, 0, 0, 0), weight)
    box = _sample_box(1 - rng.beta(cutmix, cutmix), image_size, rng)
    top, left, bottom, right = box
    return MixParams(partner, 1.0, box, 1 - (bottom - top) * (right - left) / (image_size[0] * image_size[1]))


def _sample_box(share, image_size, rng):
    """Samples a box of about `share` of the area around a uniform centre, cut off at the borders."""
    sides = []
    for size in image_size:
        half = int(size * math.sqrt(share)) // 2
        centre = int(rng.integers(size))
        sides.append((max(centre - half, 0), min(centre + half, size)))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right


def mix(images, labels, params):
    """Mixes the images of a batch, and their labels.

    Args:
        images: float32 `(batch, height, width, channels)`.
        labels: float32 `(batch, classes)`, one-hot or soft; or a dict of such arrays and of maps `(batch, rows,
            columns, channels)`, each position of which belongs to a part of the image.
        params: `MixParams` for this batch size.

    Returns:
        `(images, labels)`, new arrays of the same shapes and dtypes. A position of a map that a box covers in part is
        mixed by the share of it that is covered.
    """
    top, left, bottom, right = params.box
    other = images[params.partner]
    weight = np.float32(params.weight)
    mixed = images * weight + other * (1 - weight) if params.weight < 1 else images.copy()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    if isinstance(labels, dict):
        size = images.shape[1:3]
        return mixed, {name: _mix_targets(targets, params, size) for name, targets in labels.items()}
    return mixed, _mix_targets(labels, params, images.shape[1:3])


def _mix_targets(targets, params, image_size):
    share = np.float32(params.label_weight)
    if targets.ndim == 4 and any(params.box):
        top, left, bottom, right = params.box
        rows, columns = (
            _covered(first, last, size, count)
            for first, last, size, count in zip(
                (top, left), (bottom, right), image_size, targets.shape[1:3], strict=True
            )
        )
        share = (1 - rows[:, None] * columns)[:, :, None]
    return targets * share + targets[params.partner] * (1 - share)


def _covered(first, last, size, count):
    """Computes the share of each of `count` equal parts of `size` pixels in `first..last`: float32 `(count,)`."""
    edges = np.arange(count + 1) * (size / count)
    covered = np.minimum(edges[1:], last) - np.maximum(edges[:-1], first)
    return (np.maximum(covered, 0) * (count / size)).astype("float32")


def target_arrays(logits, features, temperature):
    """Returns a teacher's targets of a batch as arrays that are mixed as the labels and images are.

    Args:
        logits: float32 `(batch, classes)`.
        features: List of float32 `(batch, rows, columns, channels)`.
        temperature: What the logits are divided by.

    Returns:
        dict: `teacher`, the probabilities at that temperature; `features_0`, ... the feature maps.
    """
    scaled = (logits - logits.max(-1, keepdims=True)) / np.float32(temperature)
    exponentials = np.exp(scaled)
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    return {"teacher": probabilities, **{f"features_{i}": array for i, array in enumerate(features)}}


def collate_mix(params):
    """Returns `MixParams` as `keras_ci2p.layers.BatchMixing` takes them: a dict of arrays `(batch, ...)`."""
    batch_size = len(params.partner)
    return {
        "partner": params.partner,
        "weight": np.full(batch_size, params.weight, "float32"),
        "box": np.tile(np.array(params.box, "int32"), (batch_size, 1)),
        "label_weight": np.full(batch_size, params.label_weight, "float32"),
    }


class Mixup:
    """Mixes batches `(images, labels)`, for grain's `random_map`: other parameters for each batch and epoch.

    Args:
        mixup, cutmix, probability: As in `sample_mix`.
    """

    def __init__(self, mixup, cutmix, probability=1.0):
        self._alphas = mixup, cutmix
        self._probability = probability

    def __call__(self, batch, rng):
        images, labels = batch
        return mix(images, labels, sample_mix(*self._alphas, len(images), images.shape[1:3], rng, self._probability))


class SampleMixup:
    """Adds the parameters that `Mixup` would mix a batch by to its inputs, for `BatchMixing` on the device.

    Args:
        mixup, cutmix, probability: As in `sample_mix`.
        image_size: `(height, width)` of the augmented images.
    """

    def __init__(self, mixup, cutmix, image_size, probability=1.0):
        self._alphas = mixup, cutmix
        self._image_size = image_size
        self._probability = probability

    def __call__(self, batch, rng):
        inputs, labels = batch
        params = sample_mix(*self._alphas, len(labels), self._image_size, rng, self._probability)
        return {**inputs, **collate_mix(params)}, labels
