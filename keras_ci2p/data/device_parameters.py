"""What was drawn for the photos of a batch, as arrays for `keras_ci2p.layers.BatchAugmentation`."""

import math

import numpy as np

from keras_ci2p.layers.batch_augmentation import COLOR_OPERATIONS


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


def collate_mix(draw):
    """How a batch is mixed, as `keras_ci2p.layers.BatchMixing` takes it: each entry of the `MixDraw` once an image."""
    batch_size = len(draw.partner)
    return {
        "partner": draw.partner,
        "weight": np.full(batch_size, draw.weight, "float32"),
        "box": np.tile(np.array(draw.box, "int32"), (batch_size, 1)),
        "label_weight": np.full(batch_size, draw.label_weight, "float32"),
    }


def _stack(values, shape, dtype="float32"):
    # An empty batch has its shape too.
    return np.array(values, dtype).reshape(-1, *shape)


def _slots(operations, count):
    """Index and argument of each colour operation, in drawn order."""
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
