"""Decodes, crops and augments single images with Pillow."""

import math
import operator
import os
import warnings
from statistics import NormalDist
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps, UnidentifiedImageError

from keras_ci2p.data.augmentation import sample_params
from keras_ci2p.names import FILL, IMAGENET_MEAN, IMAGENET_STD, SOLARIZE_ADD_THRESHOLD
from keras_ci2p.utils import PathLike, user_path

# Of files that are taken for images before they are opened.
_PHOTOS = (".avif", ".avifs", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".webp")
_PICTURES = (".apng", ".bmp", ".dib", ".gif", ".ico", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".tif", ".tiff")
IMAGE_SUFFIXES = _PHOTOS + _PICTURES


def load_image(source: PathLike | BinaryIO | Image.Image) -> Image.Image:
    """Decodes an image to upright RGB.

    EXIF rotation is applied, transparency is laid on white, palettes, grey and CMYK are converted. Of several frames
    the first is taken. Grey of more than 8 bits is scaled to them: white is the largest value of 8, 12 or 16 bits, of
    the fewest that hold the image's own; of floats also 1. HEIC needs the package pillow-heif.

    Args:
        source: Path or binary file object of any format that Pillow reads, or a `PIL.Image`, which stays as it is.

    Returns:
        `PIL.Image.Image` of mode RGB. Warns of an image that uses fewer bits than its file has.

    Raises:
        OSError: Not readable, truncated, empty or no image; too large for the memory, or for
            `PIL.Image.MAX_IMAGE_PIXELS`; grey that is not finite or has more than 16 bits.

    Examples:
        >>> keras_ci2p.data.load_image("photos/cat/000.png").size
        (48, 40)
    """
    image, note = decode_image(source)
    if note:
        warnings.warn(f"The image {note}.", stacklevel=2)
    return image


def decode_image(source):
    """Decodes an image as `load_image` does, without a warning; returns it and what there is to say of it, or None."""
    if isinstance(source, (str, os.PathLike)):
        source = user_path(source)
    try:
        with source.copy() if isinstance(source, Image.Image) else _open_image(source) as image:
            # How it is stored is known until it is decoded.
            is_16_bit, note = ";16" in str(getattr(image, "tile", "")), None
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I", "F")):
                image, note = _to_8_bit(image)
            elif is_16_bit and max(high for _, high in image.getextrema()[:3]) < 16:
                note = _DARK
            return _to_rgb(image), note
    except Image.DecompressionBombError as error:
        raise OSError(
            f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels, which Pillow takes for an attack. Make it smaller, or, "
            "in Python, set PIL.Image.MAX_IMAGE_PIXELS = None"
        ) from error
    except OSError:
        raise
    except MemoryError as error:
        raise OSError("too large for this machine's memory") from error
    except Exception as error:
        # Pillow's decoders raise SyntaxError, ValueError, struct.error and more on damaged files.
        raise OSError(f"cannot decode the image: {error}") from error


def _open_image(source):
    try:
        return Image.open(source)
    except UnidentifiedImageError as error:
        if not _is_heic(source):
            raise
        if not register_heic():
            raise OSError("HEIC, which needs: pip install pillow-heif; or store it as JPEG") from error
        return Image.open(source)


def register_heic():
    """Lets Pillow open HEIC where the package pillow-heif is installed; returns whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _is_heic(source):
    """Whether it begins as ISO/IEC 23008-12 says; what is open is set back to its beginning."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return _is_heic(file)
    source.seek(0)
    head = source.read(12)
    source.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS


_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# What there is to say of images: 16 bits a channel, of which Pillow keeps the upper 8; grey that uses fewer bits.
_DARK = "has 16 bits for each colour, uses 12 or fewer of them, and is nearly black in 8: scale it to 8 bits"
_GREY = "has more than 8 bits, uses {bits} or fewer of them, and is scaled as if it had {bits}: {white} is white"


def _to_rgb(image):
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # `convert` would copy, which takes as long as decoding a small JPEG.
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image):
    """Scales grey of more than 8 bits; returns it, and a note where it uses fewer than 16."""
    values = np.asarray(image).astype("float64")
    most = values.max(initial=0)
    if not np.isfinite(values).all():
        raise OSError("its values are not finite")
    if most > 65535:
        raise OSError(f"values up to {most:g}: more than 16 bits")
    is_float = image.mode.startswith("F")
    if is_float and most <= 1:
        white, note = 1, None
    else:
        bits = next(bits for bits in (8, 12, 16) if most < 2**bits)
        white = 2**bits - 1
        note = _GREY.format(bits=bits, white=white) if bits < 16 else None
    return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype("uint8")), note


_LEVELS = 2**16


def normal_pixels(height, width, rng):
    """Draws the noise of mmpretrain's RandomErasing: ImageNet's mean and deviation, as the paper configures it.

    A clipped and rounded normal value is one of 256, so that it is looked up by a uniform one: five times as fast as
    drawing normal numbers. Probabilities are right to 2**-17.

    Args:
        height, width: Size in pixels.
        rng: `numpy.random.Generator`.

    Returns:
        uint8 `(height, width, 3)`: independent normal values, rounded and clipped to 0..255.
    """
    drawn = rng.integers(0, _LEVELS, (3, height, width), dtype="uint16")
    return np.stack([values[i] for values, i in zip(_VALUES, drawn, strict=True)], axis=-1)


def _quantiles(mean, std):
    """Returns uint8 `(_LEVELS,)`, sorted, in which each value occurs in proportion to its probability."""
    below = [NormalDist(mean, std).cdf(value + 0.5) for value in range(255)]
    counts = np.diff(np.rint(_LEVELS * np.array([0.0, *below, 1.0])))
    return np.repeat(np.arange(256, dtype="uint8"), counts.astype("int64"))


_VALUES = [_quantiles(mean, std) for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]


# Rows that are computed together, so that their values stay in a core's cache.
_BLOCK = 64


def shift_rows(image, shifts, fill):
    """Shifts each row of an image by its own, fractional number of pixels.

    The same as Pillow's bicubic `Image.transform` with the affine matrix of a shear or translation in x, but rounded
    to the nearest value, and in a third of the time: all pixels of a row lie equally between their neighbours, so that
    a row needs one set of weights.

    Args:
        image: PIL image, RGB.
        shifts: Float array `(height,)`, in pixels, positive to the left.
        fill: RGB colour, 0..255, of what lies outside of the image.

    Returns:
        PIL image, RGB, of the same size.
    """
    width, height = image.size
    whole = np.floor(shifts)
    # Of the pixels at -1, 0, 1, 2 for a point at `d` in [0, 1): Keys' cubic convolution with a = -1.
    d = (shifts - whole).astype("float32")[:, None, None]
    weights = -d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, d**3 - d**2
    # One number a pixel, as Pillow stores them; its neighbours from -1 to 2, those at the edges repeated.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), "uint32")
    neighbours = np.arange(-1, width + 2, dtype="int32") + whole[:, None].astype("int32")
    neighbours = neighbours.clip(0, width - 1) + np.arange(0, width * height, width, dtype="int32")[:, None]
    result = np.empty((height, width, 4), "uint8")
    for start in range(0, height, _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = pixels.take(neighbours[rows]).view("uint8").reshape(-1, width + 3, 4).astype("float32")
        mixed = near[:, :width] * weights[0][rows]
        for i in (1, 2, 3):
            mixed += near[:, i : i + width] * weights[i][rows]
        mixed += 0.5
        result[rows] = mixed.clip(0, 255, out=mixed)
    source = np.arange(0.5, width) + shifts[:, None]
    outside = (source < 0) | (source >= width)
    result.view("uint32")[outside] = np.array((*fill, 0), "uint8").view("uint32")
    return Image.frombytes("RGB", image.size, result, "raw", "RGBX")


def rotate(image, degrees):
    """Rotates counter-clockwise."""
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def shear_x(image, factor):
    """Shifts each row to the left by `factor` times its distance from the top."""
    return shift_rows(image, factor * (np.arange(image.height) + 0.5), FILL)


def shear_y(image, factor):
    """Shifts each column up by `factor` times its distance from the left."""
    return _transpose(shift_rows(_transpose(image), factor * (np.arange(image.width) + 0.5), FILL))


def translate_x(image, share):
    """Shifts to the left by a share of the width."""
    return shift_rows(image, np.full(image.height, share * image.width), FILL)


def translate_y(image, share):
    """Shifts up by a share of the height."""
    return _transpose(shift_rows(_transpose(image), np.full(image.width, share * image.height), FILL))


def _transpose(image):
    return image.transpose(Image.Transpose.TRANSPOSE)


def posterize(image, bits):
    """Keeps the highest bits of each value, `bits` rounded up."""
    kept = 256 - 2 ** (8 - math.ceil(bits))
    return image.point([value & kept for value in range(256)] * 3)


def solarize_add(image, amount):
    """Adds `amount` to the values below `SOLARIZE_ADD_THRESHOLD`."""
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


# RandAugment's operations by the names of `augmentation.OP_RANGES`: from the image, and the value where there is one.
OPS = {
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


def as_image_size(image_size, multiple=1):
    """Returns `(height, width)` of one or two integers; ValueError unless they are positive multiples of `multiple`."""
    try:
        size = tuple(map(operator.index, (image_size, image_size) if np.ndim(image_size) == 0 else image_size))
    except TypeError:
        size = ()
    if isinstance(image_size, bool) or len(size) != 2 or min(size) < 1 or any(side % multiple for side in size):
        kind = f"multiples of {multiple}" if multiple > 1 else "integers, (height, width)"
        hint = " A model for any size has none: choose one." if np.ndim(image_size) and None in image_size else ""
        raise ValueError(f"`image_size` must be one or two positive {kind}. Received: image_size={image_size!r}.{hint}")
    return size


def random_crop(image, image_size, rng):
    """Cuts a random crop out of an image in its own resolution, and flips it half the time.

    Args:
        image: PIL image, RGB; a smaller one is enlarged first, bicubically.
        image_size: `(height, width)` of the result, or one number for both.
        rng: `numpy.random.Generator`.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    height, width = as_image_size(image_size)
    image = _at_least(image, height, width)
    top, left = rng.integers(image.height - height + 1), rng.integers(image.width - width + 1)
    image = image.crop((left, top, left + width, top + height))
    return np.array(ImageOps.mirror(image) if rng.random() < 0.5 else image)


def native_center_crop(image, image_size, rng=None):
    """Cuts the central crop out of an image in its own resolution; arguments and result as of `random_crop`."""
    height, width = as_image_size(image_size)
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
    """Augments an image by parameters that are sampled for it.

    Args:
        image: PIL image, RGB.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator`.
        augmentation: `Augmentation`.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    params = sample_params(augmentation, (image.height, image.width), image_size, rng)
    return apply_params(image, params, image_size, rng)


def apply_params(image, params, image_size, rng):
    """Augments an image by the given parameters, in the order of their fields.

    Args:
        image: PIL image, RGB.
        params: `AugmentParams` for an image of this size.
        image_size: `(height, width)` of the result.
        rng: `numpy.random.Generator` of the noise that fills an erased rectangle.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.
    """
    left, top, width, height = params.box
    # Not `resize(box=...)`, which lets the pixels around the crop in.
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((image_size[1], image_size[0]), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    if params.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, value in params.ops:
        image = OPS[name](image) if value is None else OPS[name](image, value)
    if params.grayscale:
        image = image.convert("L", (*GRAY_WEIGHTS, 0)).convert("RGB")
    if params.blur:
        image = image.filter(ImageFilter.GaussianBlur(params.blur))
    if params.solarize < 256:
        image = ImageOps.solarize(image, params.solarize)
    pixels = np.array(image)
    if params.erase is not None:
        top, left, height, width = params.erase
        pixels[top : top + height, left : left + width] = normal_pixels(height, width, rng)
    return pixels


def center_crop(image: Image.Image, image_size: int | tuple[int, int]) -> np.ndarray:
    """Resizes the short edge to 292/256 of the size, bicubically, and cuts the central crop: as the paper evaluates.

    Args:
        image: PIL image, RGB.
        image_size: `(height, width)` of the result, or one number for both.

    Returns:
        uint8 array `(height, width, 3)`, 0..255.

    Raises:
        ValueError: An `image_size` that is none, as that of a model which takes any.

    Examples:
        >>> image = keras_ci2p.data.load_image("photos/cat/000.png")
        >>> keras_ci2p.data.center_crop(image, 32).shape
        (32, 32, 3)
    """
    height, width = as_image_size(image_size)
    least_width, least_height = int(width * RESIZE_RATIO), int(height * RESIZE_RATIO)
    if least_width * image.height >= least_height * image.width:
        resized = (least_width, int(least_width * image.height / image.width))
    else:
        resized = (int(least_height * image.width / image.height), least_height)
    resized = (max(resized[0], width), max(resized[1], height))
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))
