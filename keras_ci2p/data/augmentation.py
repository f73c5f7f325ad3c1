"""Settings of augmentation, and the parameters that are sampled for an image or a batch."""

import math
from typing import NamedTuple

import numpy as np

from keras_ci2p.config import Config
from keras_ci2p.setting import setting

# mmpretrain RandomResizedCrop.
CROP_TRIES = 10

# Range of each operation's argument for magnitudes 0..MAX_MAGNITUDE, and whether its sign is drawn:
# mmpretrain's policies "timm_increasing". None: the operation has no argument.
MAX_MAGNITUDE = 10
OPERATIONS = {
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
    """

    crop_area: tuple[float, float] = setting(
        (0.08, 1.0),
        "share of the image's area that the random crop covers; (1, 1), with `crop_aspect` too, for the central square",
        above=0,
        at_most=1,
    )
    crop_aspect: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "width over height of the crop, drawn log-uniformly", above=0
    )
    flip: float = setting(0.5, "probability of a left-right flip", at_least=0, at_most=1)
    randaugment_ops: int = setting(2, "operations drawn for each image, with replacement; 0 for none", at_least=0)
    randaugment_probability: float = setting(
        0.5, "with which each drawn operation is carried out", at_least=0, at_most=1
    )
    randaugment_magnitude: float = setting(9.0, "mean magnitude", at_least=0, at_most=MAX_MAGNITUDE)
    randaugment_std: float = setting(0.5, "standard deviation of the magnitude, drawn for each operation", at_least=0)
    grayscale: float = setting(0.2, "probability", at_least=0, at_most=1)
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
    erasing_area: tuple[float, float] = setting(
        (0.02, 1 / 3), "share of the area, drawn log-uniformly", above=0, at_most=1
    )
    erasing_aspect: tuple[float, float] = setting((0.3, 10 / 3), "height over width, drawn log-uniformly", above=0)

    def _check(self):
        for name in ("crop_area", "crop_aspect", "blur_radius", "erasing_area", "erasing_aspect"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name} must be (least, most). Received: {getattr(self, name)}")


CROP_AND_FLIP = Augmentation(randaugment_ops=0, grayscale=0.0, blur=0.0, solarize=0.0, erasing=0.0)


class Draw(NamedTuple):
    """What happens to one image.

    Attributes:
        box: `(left, top, width, height)` of the crop, integer pixels of the source.
        flip: Whether left and right change places, after the crop.
        operations: `(name, value)` of `OPERATIONS`, to be carried out in this order; the value is signed, None where
            the operation has none.
        grayscale: Whether to make it grey.
        blur: Standard deviation in pixels, 0 for none.
        solarize: Threshold, 256 for none.
        erase: `(top, left, height, width)` in pixels of the result, or None.
    """

    box: tuple
    flip: bool
    operations: tuple
    grayscale: bool
    blur: float
    solarize: int
    erase: tuple | None

    def scaled(self, image_size, other_size):
        """The same draw for a result of another size: what is in pixels of the result changes with it.

        Args:
            image_size, other_size: `(height, width)` of the result that was drawn for, and of the other one.
        """
        rows, columns = (other / size for size, other in zip(image_size, other_size, strict=True))
        erase = self.erase
        if erase is not None:
            top, left, height, width = erase
            ends = round((top + height) * rows), round((left + width) * columns)
            top, left = round(top * rows), round(left * columns)
            erase = (top, left, ends[0] - top, ends[1] - left)
        return self._replace(blur=self.blur * math.sqrt(rows * columns), erase=erase)


def draw(augmentation, source_size, image_size, rng):
    """Draws what happens to one image.

    Args:
        augmentation: `Augmentation`.
        source_size: `(height, width)` of the image before the crop.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator`.

    Returns:
        `Draw`.
    """
    a = augmentation
    return Draw(
        box=draw_crop_box(a, source_size, rng),
        flip=rng.random() < a.flip,
        operations=tuple(_draw_operations(a, rng)),
        grayscale=rng.random() < a.grayscale,
        blur=rng.uniform(*a.blur_radius) if rng.random() < a.blur else 0.0,
        solarize=a.solarize_threshold if rng.random() < a.solarize else 256,
        erase=_draw_rectangle(a, image_size, rng) if rng.random() < a.erasing else None,
    )


def draw_crop_box(augmentation, source_size, rng):
    """`(left, top, width, height)` of a random resized crop, integers within the image.

    After ten tries that do not fit, the largest central part whose aspect ratio is allowed.
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


def _draw_operations(a, rng):
    names = list(OPERATIONS)
    for i in rng.integers(0, len(names), a.randaugment_ops):
        if rng.random() < a.randaugment_probability:
            value_range, signed = OPERATIONS[names[i]]
            yield names[i], None if value_range is None else _draw_value(a, value_range, signed, rng)


def _draw_value(a, value_range, signed, rng):
    magnitude = np.clip(rng.normal(a.randaugment_magnitude, a.randaugment_std), 0, MAX_MAGNITUDE)
    first, last = value_range
    value = float(first + (last - first) * magnitude / MAX_MAGNITUDE)
    return -value if signed and rng.random() < 0.5 else value


def _draw_rectangle(a, image_size, rng):
    height, width = image_size
    area = height * width * rng.uniform(*a.erasing_area)
    aspect = _log_uniform(*a.erasing_aspect, rng)
    # mmpretrain RandomErasing: cut off where it is too long, not drawn again.
    tall, wide = min(round(math.sqrt(area * aspect)), height), min(round(math.sqrt(area / aspect)), width)
    return int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1)), tall, wide


def _log_uniform(least, most, rng):
    return math.exp(rng.uniform(math.log(least), math.log(most)))


def collate(augmentation, draws, source_sizes, image_size):
    """The parameters of a batch, as `keras_ci2p.layers.BatchAugmentation` takes them.

    The steps that `augmentation` never does have no entry, so all batches of a run have the same ones.

    Args:
        augmentation: The `Augmentation` that was drawn from.
        draws: One `Draw` for each photo.
        source_sizes: `(height, width)` that each was drawn for; the photo may have been squeezed to any size since.
        image_size: `(height, width)` of the result.

    Returns:
        dict of arrays `(batch, ...)`.
    """
    a = augmentation
    geometry = [_geometry(*item, a.randaugment_ops, image_size) for item in zip(draws, source_sizes, strict=True)]
    parameters = {"warp": _stack([warp for warp, _ in geometry], (2, 3))}
    if a.randaugment_ops:
        slots = [_slots(draw.operations, a.randaugment_ops) for draw in draws]
        parameters["operations"] = _stack([index for index, _ in slots], (a.randaugment_ops,), "int32")
        parameters["values"] = _stack([value for _, value in slots], (a.randaugment_ops,))
        parameters["frames"] = _stack([frames for _, frames in geometry], (a.randaugment_ops, 2, 3))
    if a.grayscale:
        parameters["grayscale"] = _stack([draw.grayscale for draw in draws], (), bool)
    if a.blur:
        parameters["blur"] = _stack([draw.blur for draw in draws], ())
    if a.solarize:
        parameters["solarize"] = _stack([draw.solarize for draw in draws], ())
    if a.erasing:
        parameters["erase"] = _stack([_corners(draw.erase) for draw in draws], (4,), "int32")
    return parameters


def _stack(values, shape, dtype="float32"):
    # An empty batch has its shape too.
    return np.array(values, dtype).reshape(-1, *shape)


def _slots(operations, count):
    """Index and argument of each colour operation, in drawn order."""
    # Needs Keras, which this module does not.
    from keras_ci2p.layers.batch_augmentation import COLOR_OPERATIONS

    indices, arguments = np.zeros(count), np.zeros(count)
    for slot, (name, value) in enumerate(operations):
        if name in COLOR_OPERATIONS:
            indices[slot] = COLOR_OPERATIONS.index(name)
            arguments[slot] = _ARGUMENTS.get(name, float)(0 if value is None else value)
    return indices, arguments


_ARGUMENTS = {
    "posterize": lambda bits: 2 ** (8 - math.ceil(bits)),
    "color": lambda change: 1 + change,
    "contrast": lambda change: 1 + change,
    "brightness": lambda change: 1 + change,
    "sharpness": lambda change: 1 + change,
}


def _corners(rectangle):
    """Top, left, bottom, right of `Draw.erase`."""
    top, left, height, width = rectangle or (0, 0, 0, 0)
    return top, left, top + height, left + width


def _geometry(draw, source_size, slots, image_size):
    """The matrix from the result to the photo, and those to the picture that each slot's operation is applied to."""
    height, width = image_size
    # Pictures as shares of their width and height.
    to_shares = np.diag([1 / width, 1 / height, 1])
    frames = np.tile(to_shares[:2], (slots, 1, 1))
    position = np.eye(3)
    # From the result backwards: the last operation is undone first.
    for slot, (name, value) in reversed(list(enumerate(draw.operations))):
        if name in _MATRICES:
            position = _MATRICES[name](value, width, height) @ position
            frames[slot] = (to_shares @ position)[:2]
    position = to_shares @ position
    if draw.flip:
        position = _matrix(-1, 0, 1, 0, 1, 0) @ position
    left, top, crop_width, crop_height = draw.box
    source_height, source_width = source_size
    crop = _matrix(
        crop_width / source_width, 0, left / source_width, 0, crop_height / source_height, top / source_height
    )
    return (crop @ position)[:2], frames


def _rotation(degrees, width, height):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def _matrix(a, b, c, d, e, f):
    """`(a x + b y + c, d x + e y + f)`, as in Pillow's affine transform."""
    return np.array([[a, b, c], [d, e, f], [0, 0, 1]], "float64")


# By operation, of its value and the picture's size: where each position of its result comes from, in pixels.
_MATRICES = {
    "rotate": _rotation,
    "shear_x": lambda value, width, height: _matrix(1, value, 0, 0, 1, 0),
    "shear_y": lambda value, width, height: _matrix(1, 0, 0, value, 1, 0),
    "translate_x": lambda value, width, height: _matrix(1, 0, value * width, 0, 1, 0),
    "translate_y": lambda value, width, height: _matrix(1, 0, 0, 0, 1, value * height),
}
