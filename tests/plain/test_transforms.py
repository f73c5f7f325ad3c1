import functools
import math
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from keras_ci2p.data import Augmentation, center_crop
from keras_ci2p.data.augmentation import OP_RANGES, AugmentParams
from keras_ci2p.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPS,
    apply_params,
    augment,
    native_center_crop,
    normal_pixels,
    random_crop,
)

BICUBIC = Image.Resampling.BICUBIC
EVERYTHING = Augmentation(
    randaugment_ops=len(OP_RANGES),
    randaugment_probability=1.0,
    grayscale=1.0,
    blur=1.0,
    solarize=1.0,
    erasing=1.0,
)


def unchanged(**changes):
    """The draw that takes a 40 x 50 picture as it is."""
    draw = AugmentParams(box=(0, 0, 50, 40), flip=False, ops=(), grayscale=False, blur=0.0, solarize=256, erase=None)
    return draw._replace(**changes)


@pytest.fixture
def picture(rng):
    return Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype("uint8"))


def test_center_crop_is_the_published_one(rng):
    """Short edge to 292, the other to int(292 * long / short), bicubic; the middle 256."""
    image = Image.fromarray(rng.integers(0, 256, (300, 451, 3)).astype("uint8"))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        long = int(292 * 451 / 300)
        size = (long, 292) if turned is image else (292, long)
        left, top = round((size[0] - 256) / 2), round((size[1] - 256) / 2)
        expected = turned.resize(size, BICUBIC).crop((left, top, left + 256, top + 256))
        np.testing.assert_array_equal(center_crop(turned, (256, 256)), np.asarray(expected))


def test_sizes(picture, rng):
    crops = (center_crop, native_center_crop, lambda image, size: random_crop(image, size, rng))
    for crop in crops:
        for size in (32, np.int64(32), [32, 32], np.array([32, 32]), (np.int32(32), 32)):
            assert crop(picture, size).shape == (32, 32, 3)
        for wrong in ("64", 64.0, (64.0, 64), 0, -1, (), (64,), (64, 64, 3), None, "ab"):
            with pytest.raises(ValueError, match="`image_size` must be one or two positive integers, "):
                crop(picture, wrong)
        with pytest.raises(ValueError, match="A model for any size has none"):
            crop(picture, (None, None))


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (33, 33)])
@pytest.mark.parametrize("image_size", [(1, 1), (5, 400), (400, 5), (40, 40)])
def test_any_picture_gives_the_size_asked_for(size, image_size, rng):
    image = Image.new("RGB", image_size, (10, 100, 200))
    assert center_crop(image, size).shape == (*size, 3)
    for _ in range(5):
        pixels = augment(image, size, rng, EVERYTHING)
        assert pixels.shape == (*size, 3) and pixels.dtype == "uint8" and pixels.flags.writeable


def test_nothing_drawn_changes_nothing(picture, rng):
    np.testing.assert_array_equal(apply_params(picture, unchanged(), (40, 50), rng), np.asarray(picture))


def test_the_crop_is_resized_alone(picture, rng):
    """What lies around it has no influence on its edges."""
    pixels = np.asarray(picture)[7 : 7 + 20, 5 : 5 + 30]
    expected = Image.fromarray(pixels).resize((64, 48), BICUBIC)
    np.testing.assert_array_equal(
        apply_params(picture, unchanged(box=(5, 7, 30, 20)), (48, 64), rng), np.asarray(expected)
    )


def test_huge_crops_are_resized_nearly_bicubically(rng):
    image = Image.fromarray(rng.integers(0, 256, (60, 80, 3)).astype("uint8")).resize((800, 600), BICUBIC)
    exact = np.asarray(image.resize((64, 48), BICUBIC)).astype(int)
    result = apply_params(image, unchanged(box=(0, 0, 800, 600)), (48, 64), rng)
    assert 0 < np.abs(result - exact).max() <= 4


def test_flip(picture, rng):
    flipped = apply_params(picture, unchanged(flip=True), (40, 50), rng)
    np.testing.assert_array_equal(flipped, np.asarray(picture)[:, ::-1])


def test_grayscale_has_the_published_weights(rng):
    pixels = np.zeros((40, 50, 3), "uint8")
    pixels[:20, :, 0], pixels[20:30, :, 1], pixels[30:, :, 2] = 200, 200, 200
    gray = apply_params(Image.fromarray(pixels), unchanged(grayscale=True), (40, 50), rng)
    for row, weight in ((0, 0.2989), (20, 0.587), (30, 0.114)):
        assert (gray[row] == round(200 * weight / 0.9999)).all()


def test_solarize_and_blur(picture, rng):
    solarized = apply_params(picture, unchanged(solarize=128), (40, 50), rng)
    values = np.asarray(picture)
    np.testing.assert_array_equal(solarized, np.where(values < 128, values, 255 - values))
    dot = np.zeros((40, 50, 3), "uint8")
    dot[20, 25] = 255
    blurred = apply_params(Image.fromarray(dot), unchanged(blur=2.0), (40, 50), rng).astype(float)[:, :, 0]
    distances = (np.arange(50) - 25) ** 2
    assert abs((blurred.sum(0) * distances).sum() / blurred.sum() - 2.0**2) < 0.5


def test_order_of_the_steps(picture):
    """Crop, flip, operations in their order, grayscale, blur, solarize, erasing: no other order gives the same."""
    drawn = AugmentParams(
        (3, 2, 40, 30), True, (("rotate", 20.0), ("solarize_add", 99.0)), True, 1.5, 128, (4, 6, 20, 30)
    )
    weights = [value / 0.9999 for value in (0.2989, 0.587, 0.114)]
    steps = [
        lambda image: image.crop((3, 2, 43, 32)).resize((64, 48), BICUBIC),
        ImageOps.mirror,
        lambda image: OPS["rotate"](image, 20.0),
        lambda image: OPS["solarize_add"](image, 99.0),
        lambda image: image.convert("L", (*weights, 0)).convert("RGB"),
        lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
        ImageOps.solarize,
        noise_pasted,
    ]
    expected = in_turn(steps, picture)
    result = apply_params(picture, drawn, (48, 64), np.random.default_rng(3))
    np.testing.assert_array_equal(result, expected)
    for i in range(1, len(steps) - 1):
        swapped = [*steps[:i], steps[i + 1], steps[i], *steps[i + 2 :]]
        assert (in_turn(swapped, picture) != expected).any(), i


def in_turn(steps, image):
    return np.asarray(functools.reduce(lambda result, step: step(result), steps, image))


def noise_pasted(image):
    image = image.copy()
    image.paste(Image.fromarray(normal_pixels(20, 30, np.random.default_rng(3))), (6, 4))
    return image


def test_only_the_rectangle_is_erased(picture, rng):
    pixels = apply_params(picture, unchanged(erase=(10, 5, 20, 40)), (40, 50), rng)
    changed = (pixels != np.asarray(picture)).any(-1)
    assert changed[10:30, 5:45].mean() > 0.99
    changed[10:30, 5:45] = False
    assert not changed.any()


def test_noise_is_normal_rounded_and_clipped(rng):
    """Its distribution function lies within five standard errors of that of rounded normal numbers."""
    noise = normal_pixels(1000, 1200, rng).reshape(-1, 3)
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])
    for values, mean, std in zip(noise.T, IMAGENET_MEAN, IMAGENET_STD, strict=True):
        reference = np.clip(np.rint(mean + std * normal), 0, 255).astype(int)
        ours, expected = (np.cumsum(np.bincount(x, minlength=256)) / len(x) for x in (values, reference))
        assert np.abs(ours - expected).max() < 5 * math.sqrt(0.25 / len(noise))
    correlation = np.corrcoef(noise.T.astype(float)) - np.eye(3)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(noise))
    neighbours = np.corrcoef(noise[:-1, 0].astype(float), noise[1:, 0].astype(float))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(len(noise))


def test_noise_has_the_published_numbers():
    """ImageNet's, in the order red, green, blue."""
    assert IMAGENET_MEAN == (123.675, 116.28, 103.53) and IMAGENET_STD == (58.395, 57.12, 57.375)


def test_the_seed_determines_the_pixels(picture):
    first, again, other = (augment(picture, (32, 32), np.random.default_rng(seed), EVERYTHING) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
