"""Mixup and CutMix of batches."""

import math
from typing import NamedTuple

import grain
import numpy as np


def collate_mix(draw):
    """How a batch is mixed, as `keras_ci2p.layers.BatchMixing` takes it: each entry of the `MixDraw` once an image."""
    batch_size = len(draw.partner)
    return {
        "partner": draw.partner,
        "weight": np.full(batch_size, draw.weight, "float32"),
        "box": np.tile(np.array(draw.box, "int32"), (batch_size, 1)),
        "label_weight": np.full(batch_size, draw.label_weight, "float32"),
    }


class MixDraw(NamedTuple):
    """How a batch is mixed: inside the box the partner's image, outside `weight * own + (1 - weight) * partner`.

    Attributes:
        partner: int32 `(batch,)`, the index of each image's partner.
        weight: Share of the own image, in 0..1.
        box: `(top, left, bottom, right)` in pixels, empty for Mixup.
        label_weight: Share of the own label.
    """

    partner: np.ndarray
    weight: float
    box: tuple
    label_weight: float


def draw_mix(mixup, cutmix, batch_size, image_size, rng, probability=1.0):
    """Draws how a batch is mixed: one of Mixup and CutMix, the same share for all of the batch (paper section 4.1).

    Args:
        mixup, cutmix: Parameters of the Beta distributions; 0 switches that one off.
        batch_size: Number of images.
        image_size: `(height, width)`.
        rng: `numpy.random.Generator`.
        probability: With which the batch is mixed at all.

    Returns:
        `MixDraw`.
    """
    partner = rng.permutation(batch_size).astype("int32")
    kinds = [kind for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not kinds or (probability < 1 and rng.random() >= probability):
        return MixDraw(np.arange(batch_size, dtype="int32"), 1.0, (0, 0, 0, 0), 1.0)
    if kinds[rng.integers(len(kinds))] == "mixup":
        weight = float(rng.beta(mixup, mixup))
        return MixDraw(partner, weight, (0, 0, 0, 0), weight)
    box = _draw_box(1 - rng.beta(cutmix, cutmix), image_size, rng)
    top, left, bottom, right = box
    return MixDraw(partner, 1.0, box, 1 - (bottom - top) * (right - left) / (image_size[0] * image_size[1]))


def _draw_box(share, image_size, rng):
    """A box of about `share` of the area around a uniform centre, cut off at the borders."""
    sides = []
    for size in image_size:
        half = int(size * math.sqrt(share)) // 2
        centre = int(rng.integers(size))
        sides.append((max(centre - half, 0), min(centre + half, size)))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right


def mix(images, labels, how):
    """Mixes a batch.

    Args:
        images: float32 `(batch, height, width, channels)`.
        labels: float32 `(batch, classes)`, one-hot or soft; or a dict of such arrays and of maps `(batch, rows,
            columns, channels)`, each position of which belongs to a part of the image.
        how: `MixDraw` for this batch size.

    Returns:
        `(images, labels)`, new arrays of the same shapes and dtypes. A position of a map that a box covers in part is
        mixed by the share of it that is covered.
    """
    top, left, bottom, right = how.box
    other = images[how.partner]
    weight = np.float32(how.weight)
    mixed = images * weight + other * (1 - weight) if how.weight < 1 else images.copy()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    if isinstance(labels, dict):
        size = images.shape[1:3]
        return mixed, {name: _mix_targets(targets, how, size) for name, targets in labels.items()}
    return mixed, _mix_targets(labels, how, images.shape[1:3])


def _mix_targets(targets, how, image_size):
    share = np.float32(how.label_weight)
    if targets.ndim == 4 and any(how.box):
        top, left, bottom, right = how.box
        rows, columns = (
            _covered(first, last, size, count)
            for first, last, size, count in zip(
                (top, left), (bottom, right), image_size, targets.shape[1:3], strict=True
            )
        )
        share = (1 - rows[:, None] * columns)[:, :, None]
    return targets * share + targets[how.partner] * (1 - share)


def _covered(first, last, size, count):
    """float32 `(count,)`: the share of each of `count` equal parts of `size` pixels that lies in `first..last`."""
    edges = np.arange(count + 1) * (size / count)
    covered = np.minimum(edges[1:], last) - np.maximum(edges[:-1], first)
    return (np.maximum(covered, 0) * (count / size)).astype("float32")


def target_arrays(logits, features, temperature):
    """What a batch holds of a teacher's word, such that it can be mixed as labels and images are.

    Args:
        logits: float32 `(batch, classes)`.
        features: List of float32 `(batch, rows, columns, channels)`.
        temperature: By which the logits are divided.

    Returns:
        dict: `teacher`, the probabilities at that temperature; `features_0`, ... the feature maps.
    """
    scaled = (logits - logits.max(-1, keepdims=True)) / np.float32(temperature)
    exponentials = np.exp(scaled)
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    return {"teacher": probabilities, **{f"features_{i}": array for i, array in enumerate(features)}}


class MixBatches(grain.transforms.RandomMap):
    """`(images, labels)` to a mixed `(images, labels)`, another draw for each batch and epoch."""

    def __init__(self, mixup, cutmix, probability=1.0):
        self._arguments = mixup, cutmix
        self._probability = probability

    def random_map(self, element, rng):
        images, labels = element
        how = draw_mix(*self._arguments, len(images), images.shape[1:3], rng, self._probability)
        return mix(images, labels, how)


class DrawMix(grain.transforms.RandomMap):
    """Adds to the inputs of a batch how to mix it, as `BatchMixing` takes it; the draws are those of `MixBatches`."""

    def __init__(self, mixup, cutmix, image_size, probability=1.0):
        self._arguments = mixup, cutmix
        self._image_size = image_size
        self._probability = probability

    def random_map(self, element, rng):
        inputs, labels = element
        drawn = draw_mix(*self._arguments, len(labels), self._image_size, rng, self._probability)
        return {**inputs, **collate_mix(drawn)}, labels
