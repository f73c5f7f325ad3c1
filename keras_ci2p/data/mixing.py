"""Mixup and CutMix of a batch."""

import math
from typing import NamedTuple

import numpy as np


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


def draw_mix(mixup, cutmix, batch_size, image_size, rng):
    """Draws how a batch is mixed: one of Mixup and CutMix, the same share for all of the batch (paper section 4.1).

    Args:
        mixup, cutmix: Parameters of the Beta distributions; 0 switches that one off.
        batch_size: Number of images.
        image_size: `(height, width)`.
        rng: `numpy.random.Generator`.

    Returns:
        `MixDraw`.
    """
    partner = rng.permutation(batch_size).astype("int32")
    kinds = [kind for kind, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0]
    if not kinds:
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
        labels: float32 `(batch, classes)`, one-hot or soft.
        how: `MixDraw` for this batch size.

    Returns:
        `(images, labels)`, new arrays of the same shapes and dtypes.
    """
    top, left, bottom, right = how.box
    other = images[how.partner]
    weight, label_weight = np.float32(how.weight), np.float32(how.label_weight)
    mixed = images * weight + other * (1 - weight) if how.weight < 1 else images.copy()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed, labels * label_weight + labels[how.partner] * (1 - label_weight)
