"""What each step of the augmentation costs: those of `keras_ci2p.data.transforms.apply_params`, one at a time."""

import itertools
import sys
import time

import numpy as np
from input_common import AUGMENTATION, BATCH, in_batches, spread
from PIL import Image, ImageFilter, ImageOps

from keras_ci2p.data import load_image
from keras_ci2p.data.augmentation import mix, sample_mix, sample_params
from keras_ci2p.data.transforms import GRAY_WEIGHTS, OPS, REDUCING_GAP, apply_params, normal_pixels


def crop(image, drawn, size):
    left, top, width, height = drawn.box
    cropped = image.crop((left, top, left + width, top + height))
    return cropped.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)


def flip(image, drawn, size):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.flip else image


def randaugment(image, drawn, size):
    for name, value in drawn.ops:
        image = OPS[name](image) if value is None else OPS[name](image, value)
    return image


def grayscale(image, drawn, size):
    return image.convert("L", (*GRAY_WEIGHTS, 0)).convert("RGB") if drawn.grayscale else image


def blur(image, drawn, size):
    return image.filter(ImageFilter.GaussianBlur(drawn.blur)) if drawn.blur else image


def solarize(image, drawn, size):
    return ImageOps.solarize(image, drawn.solarize) if drawn.solarize < 256 else image


def erase(pixels, drawn, rng):
    if drawn.erase is not None:
        top, left, height, width = drawn.erase
        pixels[top : top + height, left : left + width] = normal_pixels(height, width, rng)


def mixed(images, rng):
    labels = np.eye(10, dtype="float32")[rng.integers(0, 10, len(images))]
    return mix(images, labels, sample_mix(0.8, 1.0, len(images), images.shape[1:3], rng))


STEPS = {
    "crop and resize": crop,
    "flip": flip,
    "RandAugment": randaugment,
    "grayscale": grayscale,
    "blur": blur,
    "solarize": solarize,
}


def measure_steps(paths, size, repeats):
    """Microseconds of an average photo by step: `{name: {median, least, most}}`."""
    check_steps(paths[:BATCH], size)
    rows = [time_steps(paths, size, np.random.default_rng(repeat)) for repeat in range(repeats)]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def check_steps(paths, size):
    for seed, path in enumerate(paths):
        image = source = load_image(path)
        drawn = sample_params(AUGMENTATION, (source.height, source.width), size, np.random.default_rng(seed))
        for step in STEPS.values():
            image = step(image, drawn, size)
        pixels = np.array(image)
        erase(pixels, drawn, np.random.default_rng(seed))
        if (apply_params(source, drawn, size, np.random.default_rng(seed)) != pixels).any():
            sys.exit("The steps of this benchmark are no longer those of `apply_params`.")


def time_steps(paths, size, rng):
    seconds = {}

    def timed(name, function, *columns):
        began = time.process_time()
        results = [function(*row) for row in zip(*columns, strict=True)]
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
        return results

    # As many at a time as a batch has: more would not stay in the processor's caches.
    for some in in_batches(paths):
        images = timed("decode", load_image, some)
        draws = timed("draw", lambda image: sample_params(AUGMENTATION, (image.height, image.width), size, rng), images)
        for name, step in STEPS.items():
            images = timed(name, step, images, draws, itertools.repeat(size, len(images)))
        arrays = timed("to array", np.array, images)
        timed("erasing", erase, arrays, draws, itertools.repeat(rng, len(arrays)))
        batches = timed("batch", lambda arrays: np.stack(arrays, dtype="float32"), [arrays])
        timed("Mixup or CutMix", mixed, batches, [rng])
    return {name: 1e6 * total / len(paths) for name, total in seconds.items()}
