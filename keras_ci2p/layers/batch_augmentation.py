"""Augmentation of a batch inside the compiled training step."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.core import SeedGenerator
from keras_ci2p.names import COLOR_OPERATIONS, FILL, IMAGENET_MEAN, IMAGENET_STD, SOLARIZE_ADD_THRESHOLD
from keras_ci2p.utils import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_ci2p")
class BatchAugmentation(keras.layers.Layer):
    """Augments each image of a batch as its own parameters say; only the noise is drawn here.

    Crop, flip and the geometric operations of RandAugment are one bicubic resampling. Then, for each slot of
    RandAugment, the fill colour where a geometric operation has moved the image away, or a colour operation; then
    grey, blur, solarize and erasing. After each of these steps the values are integers in 0..255, as in Pillow.

    What differs from the same parameters applied by Pillow (`keras_ci2p.data.transforms.apply_params`), as mean
    difference in grey levels, measured on 144 images of 224 px:

    - The crop is taken from an image that was squeezed before, and shrunk without antialiasing. The recipe without
      erasing, at 256, 128 and 64 px: 0.6, 1.8 and 3.2 where images are squeezed to one and a half times the image size,
      1.1, 3.9 and 5.4 where they are squeezed to the image size itself, which leaves images of 64 px a fifth less
      sharp. At twice the size 0.5, 1.3 and 2.7; large crops then alias.
    - One resampling stands for up to three: 1.0 for a rotation, 0.5 for shears and translations. Where two operations
      move the image, Pillow also blends it with the fill colour along the edge of the first.
    - Colour operations see the image as all geometric ones leave it. Alone they are Pillow's to one level; before a
      geometric one, those that count pixels (equalize, autocontrast, contrast) count the moved image's.
    - The blur is a true Gaussian, Pillow's an approximation by boxes: 0.5.
    - Erased rectangles of a batch show parts of one field of noise.

    Args:
        image_size: `(height, width)` of the result.
        seed: Seed of the noise, an integer or None.

    Input: dict (`keras_ci2p.data.augmentation.collate_params` makes all but the images). `images` and `warp` are
    needed, each of the others may be missing, and its step is left out.
        images: uint8 `(batch, whole_height, whole_width, 3)`, RGB, whole images squeezed to one size.
        warp: float32 `(batch, 2, 3)`, takes `(x, y, 1)` in pixels of the result (0.5 is the middle of the first) to
            `(x, y)` in the image, as shares of its width and height.
        operations: int32 `(batch, slots)`, indices into `COLOR_OPERATIONS`.
        values: float32 `(batch, slots)`, the argument of each: threshold of solarize, what solarize_add adds, the step
            between the values that posterize leaves (a power of two), the factor of color, contrast, brightness and
            sharpness (1 for no change).
        frames: float32 `(batch, slots, 2, 3)`, for a geometric operation like `warp`, but to the image that it is
            applied to: what comes from outside of 0..1 is filled.
        grayscale: bool `(batch,)`.
        blur: float32 `(batch,)`, standard deviation in pixels, 0 for none.
        solarize: float32 `(batch,)`, values from here on are inverted, 256 for none.
        erase: int32 `(batch, 4)`, top, left, bottom, right of the rectangle of noise; empty for none.

    Output shape: `(batch, height, width, 3)`, float32, RGB, 0..255.

    Examples:
        >>> layer = keras_ci2p.layers.BatchAugmentation(image_size=(8, 8))
        >>> whole = np.array([[1, 0, 0], [0, 1, 0]], "float32") / 8
        >>> batch = {"images": np.zeros((1, 16, 16, 3), "uint8"), "warp": whole[None], "grayscale": np.array([True])}
        >>> layer(batch).shape
        (1, 8, 8, 3)
    """

    def __init__(self, image_size: tuple[int, int], seed: int | None = None, **kwargs: Any) -> None:
        # autocast=False: 16-bit floats cannot hold positions and pixel values.
        super().__init__(autocast=False, **kwargs)
        self.image_size = tuple(image_size)
        self.seed = seed
        self.seed_generator = SeedGenerator(seed)
        self.built = True

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        images = warp(inputs["images"], inputs["warp"], self.image_size)
        if "operations" in inputs:
            # A loop that stays one when compiled: XLA computes what comes before it once, not once for each use.
            images = ops.fori_loop(
                0, inputs["operations"].shape[1], lambda slot, images: _slot(images, inputs, slot), images
            )
        if "grayscale" in inputs:
            images = ops.where(_for_each_image(inputs["grayscale"]), gray(images), images)
        if "blur" in inputs:
            images = blur(images, inputs["blur"])
        if "solarize" in inputs:
            images = ops.where(images >= _for_each_image(inputs["solarize"]), 255 - images, images)
        if "erase" in inputs:
            images = self._erase(images, inputs["erase"])
        return images

    def _erase(self, images, boxes):
        noise = keras.random.normal((1, *self.image_size, 3), dtype="float32", seed=self.seed_generator)
        mean, std = (ops.convert_to_tensor(values, "float32") for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ops.where(inside(boxes, self.image_size), _to_levels(noise * std + mean), images)

    def compute_output_shape(self, input_shape: dict[str, Shape]) -> Shape:
        return (input_shape["images"][0], *self.image_size, 3)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        config.update(image_size=self.image_size, seed=self.seed)
        return config


def _slot(images, inputs, slot):
    operations, values, frames = (ops.take(inputs[name], slot, axis=1) for name in ("operations", "values", "frames"))
    # A slot has one of the two. In the other order XLA would fill anew for every pixel that a colour operation reads.
    return fill(color_operation(images, operations, values), frames)


def inside(boxes, image_size):
    """bool `(batch, height, width, 1)`: which pixels are in the boxes `(batch, 4)` of top, left, bottom, right."""
    height, width = image_size
    rows = ops.arange(height, dtype="int32")[:, None, None]
    columns = ops.arange(width, dtype="int32")[:, None]
    top, left, bottom, right = (_for_each_image(boxes[:, i]) for i in range(4))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


# === Geometry ===


def warp(wholes, matrices, image_size):
    """Resamples images bicubically (Keys, a = -0.5, as Pillow's resize); past their borders they go on unchanged."""
    height, width = wholes.shape[1:3]
    x, y = _positions(matrices, image_size)
    columns, column_weights = _bicubic_taps(x * width, width)
    rows, row_weights = _bicubic_taps(y * height, height)
    number = ops.reshape(ops.arange(ops.shape(wholes)[0], dtype="int32"), (-1, 1, 1))
    pixels = ops.cast(ops.reshape(wholes, (-1, 3)), "float32")
    images = 0.0
    for row, row_weight in zip(rows, row_weights, strict=True):
        line = (number * height + row) * width
        for column, column_weight in zip(columns, column_weights, strict=True):
            pixel = ops.take(pixels, line + column, axis=0)
            images = images + (row_weight * column_weight)[..., None] * pixel
    return _to_levels(images)


def fill(images, frames):
    """Sets to the fill colour what comes from outside of 0..1."""
    x, y = _positions(frames, images.shape[1:3])
    is_outside = (x < 0) | (x >= 1) | (y < 0) | (y >= 1)
    return ops.where(is_outside[..., None], ops.convert_to_tensor(FILL, "float32"), images)


def _positions(matrices, image_size):
    """x and y, `(batch, height, width)`, to which the matrices `(batch, 2, 3)` take the middles of the pixels."""
    height, width = image_size
    rows = ops.arange(height, dtype="float32")[:, None] + 0.5
    columns = ops.arange(width, dtype="float32") + 0.5
    # No matrix product: accelerators shorten its factors to 8 or 11 bits.
    a = matrices[:, :, :, None, None]
    return (a[:, i, 0] * columns + a[:, i, 1] * rows + a[:, i, 2] for i in range(2))


def _bicubic_taps(positions, size):
    """Indices of the four pixels around each position along one axis, and their weights."""
    positions = positions - 0.5
    first = ops.floor(positions)
    d = positions - first
    weights = (
        ((-0.5 * d + 1) * d - 0.5) * d,
        (1.5 * d - 2.5) * d * d + 1,
        ((-1.5 * d + 2) * d + 0.5) * d,
        (0.5 * d - 0.5) * d * d,
    )
    first = ops.cast(first, "int32")
    return [ops.clip(first + tap, 0, size - 1) for tap in (-1, 0, 1, 2)], weights


# === Colour operations of RandAugment ===


def color_operation(images, operations, values):
    """The result of one colour operation for each image.

    Most of them are one table of 256 levels for each channel, all computed for all images, since they are small. Color
    and sharpness mix the image with its grey or smoothed self.
    """
    operation, value = _for_each_image(operations), _for_each_image(values)
    # Where each pixel's level stands in the row of all tables.
    batch = ops.shape(images)[0]
    table = ops.reshape(ops.arange(batch * 3, dtype="int32"), (-1, 1, 1, 3))
    levels = ops.cast(images, "int32") + 256 * table
    ones = ops.ones_like(ops.reshape(levels, (-1,)))
    counts = ops.segment_sum(ones, ops.reshape(levels, (-1,)), num_segments=batch * 3 * 256)
    counts = ops.reshape(counts, (-1, 3, 256))
    tables = _tables(operations[:, None, None], values[:, None, None], counts)
    tabled = ops.take(ops.reshape(tables, (-1,)), levels)
    is_color, is_sharpness = (operation == COLOR_OPERATIONS.index(name) for name in ("color", "sharpness"))
    mixed = _blend(ops.where(is_color, gray(images), _smooth(images)), images, value)
    return ops.where(is_color | is_sharpness, mixed, tabled)


def _tables(operation, value, counts):
    """float32 `(batch, 3, 256)`: what each level becomes, where each occurs `counts` times."""
    levels = ops.arange(256, dtype="float32")
    # Not 0, which other operations have.
    step = ops.maximum(value, 1.0)
    tables = {
        "autocontrast": _autocontrast(counts),
        "equalize": _equalize(counts),
        "invert": 255 - levels,
        "posterize": ops.floor(levels / step) * step,
        "solarize": ops.where(levels >= value, 255 - levels, levels),
        "solarize_add": ops.where(
            levels < SOLARIZE_ADD_THRESHOLD, ops.minimum(ops.floor(levels + value), 255.0), levels
        ),
        "contrast": _blend(_mean_gray(counts), levels, value),
        "brightness": _blend(0.0, levels, value),
    }
    chosen = levels
    for name, table in tables.items():
        chosen = ops.where(operation == COLOR_OPERATIONS.index(name), table, chosen)
    return chosen


def _autocontrast(counts):
    """Stretches from the lowest to the highest level that occurs; no cutoff."""
    levels = ops.arange(256, dtype="float32")
    low, high = _lowest_and_highest(counts)
    stretched = ops.floor((levels - low) * 255 / ops.maximum(high - low, 1.0))
    return ops.where(high > low, ops.clip(stretched, 0.0, 255.0), levels)


def _equalize(counts):
    """Levels by how many pixels are darker (Pillow: the step leaves the highest level out)."""
    levels = ops.arange(256, dtype="float32")
    _, high = _lowest_and_highest(counts)
    below_highest = ops.sum(ops.where(levels < high, counts, 0), axis=-1, keepdims=True)
    step = below_highest // 255
    darker = ops.cumsum(counts, axis=-1) - counts
    equalized = ops.minimum((step // 2 + darker) // ops.maximum(step, 1), 255)
    return ops.where(step > 0, ops.cast(equalized, "float32"), levels)


def _mean_gray(counts):
    """`(batch, 1, 1)`, rounded; Pillow's is the mean of rounded greys."""
    counts = ops.cast(counts, "float32")
    means = ops.sum(counts * ops.arange(256, dtype="float32"), axis=-1) / ops.sum(counts, axis=-1)
    return gray(means[:, None])


def _lowest_and_highest(counts):
    levels = ops.arange(256, dtype="float32")
    low = ops.min(ops.where(counts > 0, levels, 255.0), axis=-1, keepdims=True)
    high = ops.max(ops.where(counts > 0, levels, 0.0), axis=-1, keepdims=True)
    return low, high


def _blend(degenerate, images, factor):
    """Pillow's `Image.blend`, which cuts decimals off."""
    return ops.floor(ops.clip(degenerate + factor * (images - degenerate), 0.0, 255.0))


def gray(images):
    """Pillow's luma (ITU-R 601-2) of `(..., 3)` as `(..., 1)`, rounded."""
    # Whole numbers below 2**24, so exact in float32.
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return ops.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def _smooth(images):
    """Pillow's `ImageFilter.SMOOTH`: 3 x 3, the middle counts five times; the border stays."""
    height, width = images.shape[1:3]
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    squares = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smoothed = _to_levels((squares + 4 * images[:, 1:-1, 1:-1]) / 13)
    smoothed = ops.pad(smoothed, ((0, 0), (1, 1), (1, 1), (0, 0)))
    is_border = np.ones((height, width, 1), bool)
    is_border[1:-1, 1:-1] = False
    return ops.where(is_border, images, smoothed)


# === Blur ===


def blur(images, sigmas):
    """Gaussian blur of each image with its own standard deviation; past its borders the image goes on unchanged."""
    for _ in range(2):
        images = ops.swapaxes(_blur_columns(images, sigmas), 1, 2)
    return _to_levels(images)


def _blur_columns(images, sigmas):
    """One matrix product for each image, whatever its standard deviation."""
    height, width = images.shape[1:3]
    sigmas = ops.maximum(sigmas, 1e-3)[:, None, None]
    distances = ops.arange(1 - height, height, dtype="float32")
    total = ops.sum(ops.exp(-0.5 * (distances / sigmas) ** 2), axis=-1, keepdims=True)
    rows = ops.arange(height, dtype="float32")
    weights = ops.exp(-0.5 * ((rows[:, None] - rows) / sigmas) ** 2) / total
    # What lies past a border counts for the border.
    border = np.zeros((height, height), "float32")
    border[: height // 2, 0] = border[height // 2 :, -1] = 1
    missing = 1 - ops.sum(weights, axis=-1, keepdims=True)
    weights = weights + missing * ops.convert_to_tensor(border)
    blurred = ops.matmul(weights, ops.reshape(images, (-1, height, width * 3)))
    return ops.reshape(blurred, (-1, height, width, 3))


def _for_each_image(values):
    """`(batch,)` to `(batch, 1, 1, 1)`."""
    return ops.reshape(values, (-1, 1, 1, 1))


def _to_levels(images):
    return ops.floor(ops.clip(images + 0.5, 0.0, 255.0))


@keras.saving.register_keras_serializable(package="keras_ci2p")
class BatchMixing(keras.layers.Layer):
    """Mixes each image and label with those of its partner: Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).

    Inside the box is the partner's image, outside `weight * own + (1 - weight) * partner`: an empty box makes it Mixup,
    a weight of 1 CutMix. Nothing is drawn here.

    Input: dict; `keras_ci2p.data.augmentation.collate_mix` makes all but images and labels.
        images: `(batch, height, width, channels)`, float.
        labels: `(batch, classes)`, float, one-hot or soft.
        partner: int32 `(batch,)`, index of each image's partner in the batch.
        weight: float32 `(batch,)`, share of the own image, in 0..1.
        box: int32 `(batch, 4)`, top, left, bottom, right in pixels.
        label_weight: float32 `(batch,)`, share of the own label, in 0..1.

    Output: tuple of images and labels, shapes and dtypes as they came.

    Examples:
        >>> batch = {
        ...     "images": np.zeros((2, 8, 8, 3), "float32"),
        ...     "labels": np.eye(2, dtype="float32"),
        ...     "partner": np.array([1, 0], "int32"),
        ...     "weight": np.array([0.75, 0.75], "float32"),
        ...     "box": np.zeros((2, 4), "int32"),
        ...     "label_weight": np.array([0.75, 0.75], "float32"),
        ... }
        >>> images, labels = keras_ci2p.layers.BatchMixing()(batch)
        >>> keras.ops.convert_to_numpy(labels).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """

    def __init__(self, **kwargs: Any) -> None:
        # autocast=False: 16-bit floats cannot hold pixel values.
        super().__init__(autocast=False, **kwargs)
        self.built = True

    def call(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.mix_images(inputs["images"], inputs), self.mix_labels(inputs["labels"], inputs)

    def mix_images(self, images: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """The images alone; of the parameters `partner`, `weight` and `box` are read."""
        partners = ops.take(images, parameters["partner"], axis=0)
        weight = ops.cast(ops.reshape(parameters["weight"], (-1, 1, 1, 1)), images.dtype)
        mixed = weight * images + (1 - weight) * partners
        return ops.where(inside(parameters["box"], images.shape[1:3]), partners, mixed)

    def mix_labels(self, labels: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """The labels alone; of the parameters `partner` and `label_weight` are read."""
        weight = ops.cast(parameters["label_weight"][:, None], labels.dtype)
        return weight * labels + (1 - weight) * ops.take(labels, parameters["partner"], axis=0)

    def compute_output_shape(self, input_shape: dict[str, Shape]) -> tuple[Shape, Shape]:
        return input_shape["images"], input_shape["labels"]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        return config
