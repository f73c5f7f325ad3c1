"""The operations of RandAugment on PIL images."""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from keras_ci2p.data.shift import shift_rows

# ImageNet's mean, rounded: what shows where an operation has moved the picture away.
FILL = (124, 116, 104)

SOLARIZE_ADD_THRESHOLD = 128


def rotate(image, degrees):
    """Counter-clockwise."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def shear_x(image, factor):
    """Moves each row to the left by `factor` times its distance from the top."""
    return shift_rows(image, factor * (np.arange(image.height) + 0.5), FILL)


def shear_y(image, factor):
    """Moves each column up by `factor` times its distance from the left."""
    return _turned(shear_x, image, factor)


def translate_x(image, share):
    """To the left by a share of the width."""
    return shift_rows(image, np.full(image.height, share * image.width), FILL)


def translate_y(image, share):
    """Up by a share of the height."""
    return _turned(translate_x, image, share)


def _turned(operation, image, value):
    """What `operation` does to rows, done to columns."""
    return operation(image.transpose(Image.Transpose.TRANSPOSE), value).transpose(Image.Transpose.TRANSPOSE)


def posterize(image, bits):
    """Keeps the `bits` highest bits, rounded up."""
    kept = 256 - 2 ** (8 - math.ceil(bits))
    return image.point([value & kept for value in range(256)] * 3)


def solarize_add(image, amount):
    """Makes the darker half of the values brighter."""
    values = [min(255, int(value + amount)) if value < SOLARIZE_ADD_THRESHOLD else value for value in range(256)]
    return image.point(values * 3)


def color(image, change):
    return ImageEnhance.Color(image).enhance(1 + change)


def contrast(image, change):
    return ImageEnhance.Contrast(image).enhance(1 + change)


def brightness(image, change):
    return ImageEnhance.Brightness(image).enhance(1 + change)


def sharpness(image, change):
    return ImageEnhance.Sharpness(image).enhance(1 + change)


# By the names of `augmentation.OPERATIONS`: image, and the value where the operation has one, to image.
FUNCTIONS = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "rotate": rotate,
    "posterize": posterize,
    "solarize": ImageOps.solarize,
    "solarize_add": solarize_add,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}
