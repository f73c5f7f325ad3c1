"""Crops of photos: random for training, central for evaluation."""

import math

import numpy as np
from PIL import Image

# mmpretrain RandomResizedCrop; paper section 4.1.
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10

# The test pipeline resizes the short edge to 292 for crops of 256.
RESIZE_RATIO = 292 / 256


def random_resized_crop(image, image_size, rng):
    """A random part of `image`, resized bicubically and flipped left to right half of the time.

    The part has 8 to 100 % of the area, aspect ratio log-uniform in 3/4..4/3; after 10 tries that do not fit, the
    largest central part whose aspect ratio is allowed.

    Args:
        image: PIL image, RGB.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator`.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    left, top, width, height = random_crop_box(image.width, image.height, rng)
    crop = image.crop((left, top, left + width, top + height))
    crop = crop.resize((image_size[1], image_size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(crop)
    return array[:, ::-1] if rng.random() < 0.5 else array


def random_crop_box(width, height, rng):
    """`(left, top, width, height)` of a random resized crop, integers within the image."""
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*np.log(ASPECT)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(0, width - crop_width + 1))
            top = int(rng.integers(0, height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = max(1, min(width, round(height * ASPECT[1])))
    crop_height = max(1, min(height, round(width / ASPECT[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


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
    return np.asarray(image.crop((left, top, left + width, top + height)))
