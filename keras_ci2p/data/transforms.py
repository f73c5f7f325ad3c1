"""Decodes, crops and transforms images with Pillow."""

import math
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from keras_ci2p.data.augmentation import draw


def load_image(source):
    """Reads a picture as upright RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, palettes, grey and CMYK
    are converted. Of several frames the first counts.

    Args:
        source: Path or binary file object of any format that Pillow reads.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        OSError: Not readable, truncated, empty or no picture.
    """
    try:
        with Image.open(source) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except OSError:
        raise
    except Exception as error:
        # Pillow's decoders raise SyntaxError, ValueError, struct.error and more on damaged files.
        raise OSError(f"cannot decode the picture: {error}") from error


def _to_rgb(image):
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # `convert` would copy, which takes as long as decoding a small JPEG.
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image):
    values = np.asarray(image).astype("float64")
    if image.mode.startswith("I"):
        # 16-bit files; Pillow widens some of them to 32 bits without changing the values.
        values = values / 257 if values.max(initial=0) > 255 or image.mode != "I" else values
    elif values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype("uint8"))


# ImageNet's, RGB in 0..255; mmpretrain RandomErasing as the paper configures it.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

_LEVELS = 2**16


def normal_pixels(height, width, rng):
    """uint8 `(height, width, 3)`: independent normal values, rounded and clipped to 0..255.

    A clipped and rounded normal value is one of 256, so that it is looked up by a uniform one: five times as fast as
    drawing normal numbers. Probabilities are right to 2**-17.

    Args:
        rng: `numpy.random.Generator`.
    """
    drawn = rng.integers(0, _LEVELS, (3, height, width), dtype="uint16")
    return np.stack([values[i] for values, i in zip(_VALUES, drawn, strict=True)], axis=-1)


def _quantiles(mean, std):
    """uint8 `(_LEVELS,)`: each value as often as it is probable."""
    below = [NormalDist(mean, std).cdf(value + 0.5) for value in range(255)]
    counts = np.diff(np.rint(_LEVELS * np.array([0.0, *below, 1.0])))
    return np.repeat(np.arange(256, dtype="uint8"), counts.astype("int64"))


_VALUES = [_quantiles(mean, std) for mean, std in zip(MEAN, STD, strict=True)]


# Rows computed together: their numbers stay in a core's cache.
_BLOCK = 64


def shift_rows(image, shifts, fill):
    """Moves each row of an image by its own, fractional number of pixels.

    The picture that `Image.transform` makes with the affine matrix of a shear or translation in x, bicubically, but
    rounded to the nearest value. It takes a third of the time: all pixels of a row lie equally between their
    neighbours, so the row has one set of weights.

    Args:
        image: PIL image, RGB.
        shifts: Float array `(height,)`, pixels to the left.
        fill: RGB colour of what lies outside of the image.

    Returns:
        PIL image, RGB, of the same size.
    """
    width, height = image.size
    whole = np.floor(shifts)
    weights = _cubic_weights((shifts - whole).astype("float32"))
    # One number a pixel, as Pillow stores them; its neighbours from -1 to 2, those at the edges repeated.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), "uint32")
    neighbours = np.arange(-1, width + 2, dtype="int32") + whole[:, None].astype("int32")
    neighbours = neighbours.clip(0, width - 1) + np.arange(0, width * height, width, dtype="int32")[:, None]
    result = np.empty((height, width, 4), "uint8")
    for start in range(0, height, _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = pixels.take(neighbours[rows]).view("uint8").reshape(-1, width + 3, 4).astype("float32")
        mixed = near[:, :width] * weights[0, rows]
        for i in (1, 2, 3):
            mixed += near[:, i : i + width] * weights[i, rows]
        mixed += 0.5
        result[rows] = mixed.clip(0, 255, out=mixed)
    source = np.arange(0.5, width) + shifts[:, None]
    outside = (source < 0) | (source >= width)
    result.view("uint32")[outside] = np.array((*fill, 0), "uint8").view("uint32")
    return Image.frombytes("RGB", image.size, result, "raw", "RGBX")


def _cubic_weights(distance):
    """float32 `(4, height, 1, 1)`: of the pixels at -1, 0, 1, 2, a point at `distance` in [0, 1) (Keys, a = -1)."""
    d = distance[:, None, None]
    return np.stack([-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, d**3 - d**2])


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
    drawn = draw(augmentation, (image.height, image.width), image_size, rng)
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
