"""Crops of photos at their own resolution, as compressors are trained on: resampling would blur them."""

import numpy as np
from PIL import Image, ImageOps


def random_crop(image, image_size, rng):
    """A random crop, mirrored half the time.

    Args:
        image: PIL image, RGB; a smaller one is enlarged first, bicubically.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator`.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    image = _at_least(image, *image_size)
    height, width = image_size
    top, left = rng.integers(image.height - height + 1), rng.integers(image.width - width + 1)
    image = image.crop((left, top, left + width, top + height))
    return np.array(ImageOps.mirror(image) if rng.random() < 0.5 else image)


def middle_crop(image, image_size, rng=None):
    """The central crop; as `random_crop`, without chance."""
    height, width = image_size
    image = _at_least(image, height, width)
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return np.array(image.crop((left, top, left + width, top + height)))


def _at_least(image, height, width):
    scale = max(height / image.height, width / image.width)
    if scale <= 1:
        return image
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)
