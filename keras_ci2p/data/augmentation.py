"""Augmentation: its settings, what is sampled from them for an image or a batch, and Mixup and CutMix of batches."""

import math
from typing import NamedTuple

import numpy as np

from keras_ci2p.config import Config
from keras_ci2p.names import COLOR_OPERATIONS
from keras_ci2p.setting import setting

# mmpretrain RandomResizedCrop.
CROP_TRIES = 10

# Of each RandAugment operation the range of its value for magnitudes 0..MAX_MAGNITUDE, and whether its sign is sampled:
# mmpretrain's policies "timm_increasing". None: the operation takes no value.
MAX_MAGNITUDE = 10
OP_RANGES = {
    "autocontrast": (None, False),
    "equalize": (None, False),
    "invert": (None, False),
    "rotate": ((0.0, 30.0), True),  # degrees, counter-clockwise
    "posterize": ((4.0, 0.0), False),  # bits that are kept, rounded up
    "solarize": ((256.0, 0.0), False),  # values from here on are inverted
    "solarize_add": ((0.0, 110.0), False),  # added to values below 128
    "color": ((0.0, 0.9), True),  # the factor is 1 + value, as in the next three
    "contrast": ((0.0, 0.9), True),
    "brightness": ((0.0, 0.9), True),
    "sharpness": ((0.0, 0.9), True),
    "shear_x": ((0.0, 0.3), True),
    "shear_y": ((0.0, 0.3), True),
    "translate_x": ((0.0, 0.45), True),  # share of the width
    "translate_y": ((0.0, 0.45), True),  # share of the height
}


class Augmentation(Config):
    """What happens to each training image, in this order. The defaults are the paper's (section 4.1, `mmbase_cfg.py`).

    Probabilities are in 0..1; 0 switches a step off. Ranges are `(least, most)`.

    Raises:
        ValueError: A value out of its range.

    Examples:
        >>> augmentation = keras_ci2p.data.Augmentation(blur=0, erasing=0.5)
        >>> augmentation.blur, augmentation.flip
        (0.0, 0.5)
    """

    crop_area: tuple[float, float] = setting(
        (0.08, 1.0),
        "share of the image's area that the random crop covers; (1, 1), with `crop_aspect` too, for the central square",
        above=0,
        at_most=1,
    )
    crop_aspect: tuple[float, float] = setting((3 / 4, 4 / 3), "width over height of the crop, log-uniform", above=0)
    flip: float = setting(0.5, "probability of a left-right flip", at_least=0, at_most=1)
    randaugment_ops: int = setting(2, "operations sampled for each image, with replacement; 0 for none", at_least=0)
    randaugment_probability: float = setting(
        0.5, "probability of carrying out each sampled operation", at_least=0, at_most=1
    )
    randaugment_magnitude: float = setting(9.0, "mean magnitude", at_least=0, at_most=MAX_MAGNITUDE)
    randaugment_std: float = setting(0.5, "standard deviation of the magnitude, sampled for each operation", at_least=0)
    grayscale: float = setting(0.2, "probability of making the image grey", at_least=0, at_most=1)
    blur: float = setting(0.1, "probability of a Gaussian blur", at_least=0, at_most=1)
    blur_radius: tuple[float, float] = setting((0.1, 2.0), "its standard deviation in pixels", above=0)
    solarize: float = setting(
        0.2, "probability of inverting the values from `solarize_threshold` on", at_least=0, at_most=1
    )
    solarize_threshold: int = setting(128, "a value of a pixel, 256 for none", at_least=0, at_most=256)
    erasing: float = setting(
        0.25,
        "probability of filling one rectangle with Gaussian noise of ImageNet's mean and deviation",
        at_least=0,
        at_most=1,
    )
    erasing_area: tuple[float, float] = setting((0.02, 1 / 3), "share of the area, log-uniform", above=0, at_most=1)
    erasing_aspect: tuple[float, float] = setting((0.3, 10 / 3), "height over width, log-uniform", above=0)

    def _check(self):
        for name in ("crop_area", "crop_aspect", "blur_radius", "erasing_area", "erasing_aspect"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name} must be (least, most). Received: {name}={getattr(self, name)}")


CROP_AND_FLIP = Augmentation(randaugment_ops=0, grayscale=0.0, blur=0.0, solarize=0.0, erasing=0.0)


class AugmentParams(NamedTuple):
    """Parameters of one image's augmentation.

    Attributes:
        box: `(left, top, width, height)` of the crop, integer pixels of the source.
        flip: Whether to flip left and right, after the crop.
        ops: `(name, value)` of each operation of `OP_RANGES`, in this order; the value is signed, None where the
            operation takes none.
        grayscale: Whether to make it grey.
        blur: Standard deviation in pixels, 0 for none.
        solarize: Threshold, 256 for none.
        erase: `(top, left, height, width)` in pixels of the result, or None.
    """

    box: tuple
    flip: bool
    ops: tuple
    grayscale: bool
    blur: float
    solarize: int
    erase: tuple | None

    def scaled(self, image_size, other_size):
        """Returns the same augmentation for a result of another size: what is in pixels of the result is scaled.

        Args:
            image_size, other_size: `(height, width)` of the result that was sampled for, and of the other one.
        """
        rows, columns = (other / size for size, other in zip(image_size, other_size, strict=True))
        erase = self.erase
        if erase is not None:
            top, left, height, width = erase
            ends = round((top + height) * rows), round((left + width) * columns)
            top, left = round(top * rows), round(left * columns)
            erase = (top, left, ends[0] - top, ends[1] - left)
        return self._replace(blur=self.blur * math.sqrt(rows * columns), erase=erase)


def sample_params(augmentation, source_size, image_size, rng):
    """Samples the augmentation of one image.

    Args:
        augmentation: `Augmentation`.
        source_size: `(height, width)` of the image before the crop.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator`.

    Returns:
        `AugmentParams`.
    """
    a = augmentation
    return AugmentParams(
        box=sample_crop_box(a, source_size, rng),
        flip=rng.random() < a.flip,
        ops=tuple(_sample_ops(a, rng)),
        grayscale=rng.random() < a.grayscale,
        blur=rng.uniform(*a.blur_radius) if rng.random() < a.blur else 0.0,
        solarize=a.solarize_threshold if rng.random() < a.solarize else 256,
        erase=_sample_rectangle(a, image_size, rng) if rng.random() < a.erasing else None,
    )


def sample_crop_box(augmentation, source_size, rng):
    """Samples `(left, top, width, height)` of mmpretrain's RandomResizedCrop, integers within the image.

    After `CROP_TRIES` boxes that do not fit, the largest central one whose aspect ratio is allowed.
    """
    height, width = source_size
    least, most = augmentation.crop_aspect
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*augmentation.crop_area)
        aspect = _log_uniform(least, most, rng)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(0, width - crop_width + 1))
            top = int(rng.integers(0, height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = max(1, min(width, round(height * most)))
    crop_height = max(1, min(height, round(width / least)))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _sample_ops(a, rng):
    names = list(OP_RANGES)
    for i in rng.integers(0, len(names), a.randaugment_ops):
        if rng.random() >= a.randaugment_probability:
            continue
        value_range, signed = OP_RANGES[names[i]]
        value = None
        if value_range is not None:
            magnitude = np.clip(rng.normal(a.randaugment_magnitude, a.randaugment_std), 0, MAX_MAGNITUDE)
            first, last = value_range
            value = float(first + (last - first) * magnitude / MAX_MAGNITUDE)
            if signed and rng.random() < 0.5:
                value = -value
        yield names[i], value


def _sample_rectangle(a, image_size, rng):
    height, width = image_size
    area = height * width * rng.uniform(*a.erasing_area)
    aspect = _log_uniform(*a.erasing_aspect, rng)
    # mmpretrain RandomErasing: cut off where it is too long, not sampled again.
    tall, wide = min(round(math.sqrt(area * aspect)), height), min(round(math.sqrt(area / aspect)), width)
    return int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1)), tall, wide


def _log_uniform(least, most, rng):
    return math.exp(rng.uniform(math.log(least), math.log(most)))


def collate_params(augmentation, params, source_sizes, image_size):
    """Returns the parameters of a batch as `keras_ci2p.layers.BatchAugmentation` takes them.

    The steps that `augmentation` never does have no entry, so that all batches of a run have the same ones.

    Args:
        augmentation: The `Augmentation` that was sampled from.
        params: `AugmentParams` of each image.
        source_sizes: `(height, width)` that each was sampled for; the image may have been resized since.
        image_size: `(height, width)` of the result.

    Returns:
        dict of arrays `(batch, ...)`.
    """
    a, ops = augmentation, augmentation.randaugment_ops
    affine = [_affine(one, size, ops, image_size) for one, size in zip(params, source_sizes, strict=True)]
    batch = {"warp": _stack([warp for warp, _ in affine], (2, 3))}
    if ops:
        colors = [_color_ops(one.ops, ops) for one in params]
        batch["operations"] = _stack([indices for indices, _ in colors], (ops,), "int32")
        batch["values"] = _stack([values for _, values in colors], (ops,))
        batch["frames"] = _stack([matrices for _, matrices in affine], (ops, 2, 3))
    if a.grayscale:
        batch["grayscale"] = _stack([one.grayscale for one in params], (), bool)
    if a.blur:
        batch["blur"] = _stack([one.blur for one in params], ())
    if a.solarize:
        batch["solarize"] = _stack([one.solarize for one in params], ())
    if a.erasing:
        batch["erase"] = _stack([_corners(one.erase) for one in params], (4,), "int32")
    return batch


def _stack(values, shape, dtype="float32"):
    # An empty batch has its shape too.
    return np.array(values, dtype).reshape(-1, *shape)


def _color_ops(ops, count):
    """Returns index in `COLOR_OPERATIONS` and value of each operation, in order, 0 for a geometric one and for none."""
    indices, values = np.zeros(count), np.zeros(count)
    for i, (name, value) in enumerate(ops):
        if name in COLOR_OPERATIONS:
            indices[i] = COLOR_OPERATIONS.index(name)
            values[i] = _VALUES.get(name, float)(0 if value is None else value)
    return indices, values


# From the value of `AugmentParams` to that of `BatchAugmentation`, where they differ.
_VALUES = {
    "posterize": lambda bits: 2 ** (8 - math.ceil(bits)),
    "color": lambda change: 1 + change,
    "contrast": lambda change: 1 + change,
    "brightness": lambda change: 1 + change,
    "sharpness": lambda change: 1 + change,
}


def _corners(rectangle):
    """Returns top, left, bottom, right of `AugmentParams.erase`."""
    top, left, height, width = rectangle or (0, 0, 0, 0)
    return top, left, top + height, left + width


def _affine(params, source_size, count, image_size):
    """Computes the affine matrices of one image's crop, flip and geometric operations.

    Returns:
        `(2, 3)` from pixels of the result to shares of the source's width and height, and `(count, 2, 3)` from pixels
        of the result to shares of the image that each operation is applied to.
    """
    height, width = image_size
    to_shares = np.diag([1 / width, 1 / height, 1])
    matrices = np.tile(to_shares[:2], (count, 1, 1))
    position = np.eye(3)
    # From the result backwards: the last operation is undone first.
    for i, (name, value) in reversed(list(enumerate(params.ops))):
        if name in _MATRICES:
            position = _MATRICES[name](value, width, height) @ position
            matrices[i] = (to_shares @ position)[:2]
    position = to_shares @ position
    if params.flip:
        position = _matrix(-1, 0, 1, 0, 1, 0) @ position
    left, top, crop_width, crop_height = params.box
    source_height, source_width = source_size
    crop = _matrix(
        crop_width / source_width, 0, left / source_width, 0, crop_height / source_height, top / source_height
    )
    return (crop @ position)[:2], matrices


def _rotation(degrees, width, height):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _matrix(a, b, c, d, e, f):
    """Returns the matrix of `(a x + b y + c, d x + e y + f)`, in the order of Pillow's affine transform."""
    return np.array([[a, b, c], [d, e, f], [0, 0, 1]], "float64")


# Of each geometric operation, from its value and the image's size: where a position of its result lies in its input,
# in pixels.
_MATRICES = {
    "rotate": _rotation,
    "shear_x": lambda value, width, height: _matrix(1, value, 0, 0, 1, 0),
    "shear_y": lambda value, width, height: _matrix(1, 0, 0, value, 1, 0),
    "translate_x": lambda value, width, height: _matrix(1, 0, value * width, 0, 1, 0),
    "translate_y": lambda value, width, height: _matrix(1, 0, 0, 0, 1, value * height),
}


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
