"""From a photo to the pixels that a model gets: augmentation for training, the central crop for evaluation."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from keras_ci2p.data import augmentation as recipe
from keras_ci2p.data.noise import normal_pixels
from keras_ci2p.data.operations import FUNCTIONS

# RGB weights of mmpretrain RandomGrayscale as the paper configures it, which normalises them.
_GRAY_SUM = 0.2989 + 0.587 + 0.114
GRAY_WEIGHTS = (0.2989 / _GRAY_SUM, 0.587 / _GRAY_SUM, 0.114 / _GRAY_SUM)

# Crops of six times the size and more are averaged down by a whole number first: a third of the time, values within 3.
REDUCING_GAP = 3.0

# The test pipeline resizes the short edge to 292 for crops of 256.
RESIZE_RATIO = 292 / 256


def augment(image, image_size, rng, augmentation):
    """Draws from an augmentation and carries the draw out.

    Args:
        image: PIL image, RGB.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator`.
        augmentation: `Augmentation`.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    drawn = recipe.draw(augmentation, (image.height, image.width), image_size, rng)
    return apply_draw(image, drawn, image_size, rng)


def apply_draw(image, draw, image_size, rng):
    """Carries a draw out, in the order of its fields.

    Args:
        image: PIL image, RGB.
        draw: `Draw` for an image of this size.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator` of the noise that fills an erased rectangle.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    image = _crop(image, *draw.box)
    image = image.resize((image_size[1], image_size[0]), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    if draw.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, value in draw.operations:
        image = FUNCTIONS[name](image) if value is None else FUNCTIONS[name](image, value)
    if draw.grayscale:
        image = image.convert("L", (*GRAY_WEIGHTS, 0)).convert("RGB")
    if draw.blur:
        image = image.filter(ImageFilter.GaussianBlur(draw.blur))
    if draw.solarize < 256:
        image = ImageOps.solarize(image, draw.solarize)
    pixels = np.array(image)
    if draw.erase is not None:
        top, left, height, width = draw.erase
        pixels[top : top + height, left : left + width] = normal_pixels(height, width, rng)
    return pixels


def _crop(image, left, top, width, height):
    # Not `resize(box=...)`, which lets the pixels around the crop in.
    return image.crop((left, top, left + width, top + height))


def center_crop(image, image_size):
    """The middle of `image`: short edge to 292/256 of the size, bicubically, then the central crop.

    Args:
        image: PIL image, RGB.
        image_size: `(height, width)` of the result.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    height, width = image_size
    least_width, least_height = int(width * RESIZE_RATIO), int(height * RESIZE_RATIO)
    if least_width * image.height >= least_height * image.width:
        resized = (least_width, int(least_width * image.height / image.width))
    else:
        resized = (int(least_height * image.width / image.height), least_height)
    resized = (max(resized[0], width), max(resized[1], height))
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return np.asarray(_crop(image, left, top, width, height))
