"""Each operation against its formula, and against timm."""

import numpy as np
import pytest
from PIL import Image
from torchvision_operators import define_torchvision_operators

from keras_ci2p.data.augmentation import MAX_MAGNITUDE, OP_RANGES
from keras_ci2p.data.transforms import FILL, OPS, shift_rows

BICUBIC = Image.Resampling.BICUBIC

# The names that timm has for them; its functions and ranges are what the paper's policy repeats.
TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


@pytest.fixture
def picture(rng):
    """Brighter to the right, redder downwards, noisy, 46 x 61, without the darkest and brightest values."""
    pixels = rng.integers(20, 100, (46, 61, 3))
    pixels += 2 * np.arange(61)[:, None]
    pixels[:, :, 0] += np.arange(46)[:, None] // 2
    return Image.fromarray(pixels.astype("uint8"))


def applied(name, image, *value):
    result = OPS[name](image, *value)
    assert result.mode == "RGB" and result.size == image.size
    return np.asarray(result).astype(int)


def gray(image):
    """ITU-R 601-2, as Pillow rounds it."""
    return np.asarray(image.convert("L")).astype(int)[:, :, None]


def blended(background, values, change):
    return np.clip(background + (1 + change) * (values - background), 0, 255)


def test_every_operation_has_a_function():
    assert OPS.keys() == OP_RANGES.keys()


def test_values_are_inverted(picture):
    values = np.asarray(picture).astype(int)
    np.testing.assert_array_equal(applied("invert", picture), 255 - values)
    np.testing.assert_array_equal(applied("solarize", picture, 99.6), np.where(values < 99.6, values, 255 - values))
    np.testing.assert_array_equal(applied("solarize", picture, 0.0), 255 - values)
    np.testing.assert_array_equal(applied("solarize", picture, 256.0), values)


def test_solarize_add(picture):
    values = np.asarray(picture).astype(int)
    expected = np.where(values < 128, np.minimum(values + 99.7, 255).astype(int), values)
    np.testing.assert_array_equal(applied("solarize_add", picture, 99.7), expected)


@pytest.mark.parametrize(("bits", "kept"), [(4.0, 0xF0), (3.1, 0xF0), (2.0, 0xC0), (0.4, 0x80), (0.0, 0)])
def test_posterize_rounds_bits_up(picture, bits, kept):
    np.testing.assert_array_equal(applied("posterize", picture, bits), np.asarray(picture).astype(int) & kept)


def test_autocontrast_uses_all_values(picture):
    values = np.asarray(picture).astype(float)
    least, most = values.min((0, 1)), values.max((0, 1))
    assert least.min() > 0 and most.max() < 255
    assert np.abs(applied("autocontrast", picture) - (values - least) * 255 / (most - least)).max() <= 1


def test_equalize_makes_all_values_equally_frequent(picture):
    """Each value goes to the share of the pixels below it, the brightest to 255."""
    values = np.asarray(picture)
    equalized = applied("equalize", picture)
    for channel in range(3):
        counts = np.bincount(values[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        below = np.cumsum(counts) - counts
        expected = np.minimum((below + step // 2) // step, 255)
        np.testing.assert_array_equal(equalized[..., channel], expected[values[..., channel]])


@pytest.mark.parametrize("change", [-0.9, -0.3, 0.45, 0.9])
def test_color_contrast_brightness(picture, change):
    values = np.asarray(picture).astype(int)
    for name, background in (("color", gray(picture)), ("contrast", round(gray(picture).mean())), ("brightness", 0)):
        assert np.abs(applied(name, picture, change) - blended(background, values, change)).max() <= 1, name


@pytest.mark.parametrize("change", [-0.9, 0.9])
def test_sharpness(picture, change):
    values = np.asarray(picture).astype(int)
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = sum(weights[y, x] * values[y : y + 44, x : x + 59] for y in range(3) for x in range(3))
    result = applied("sharpness", picture, change)
    assert np.abs(result[1:-1, 1:-1] - blended(smooth, values[1:-1, 1:-1], change)).max() <= 2
    np.testing.assert_array_equal(result[0], values[0])


def test_rotation_is_counter_clockwise_around_the_middle():
    pixels = np.zeros((61, 61, 3), "uint8")
    pixels[30, 50] = 255
    rotated = applied("rotate", Image.fromarray(pixels), 30.0)
    angle = np.radians(30)
    assert rotated[round(30 - 20 * np.sin(angle)), round(30 + 20 * np.cos(angle))].min() > 100
    assert rotated[30, 50].max() < 20
    np.testing.assert_array_equal(rotated[0, 0], (124, 116, 104))


@pytest.mark.parametrize(
    ("name", "value", "matrix"),
    [
        ("shear_x", 0.27, (1, 0.27, 0, 0, 1, 0)),
        ("shear_x", -0.3, (1, -0.3, 0, 0, 1, 0)),
        ("shear_y", 0.21, (1, 0, 0, 0.21, 1, 0)),
        ("shear_y", -0.27, (1, 0, 0, -0.27, 1, 0)),
        ("translate_x", 0.4, (1, 0, 0.4 * 61, 0, 1, 0)),
        ("translate_x", -0.45, (1, 0, -0.45 * 61, 0, 1, 0)),
        ("translate_y", 0.13, (1, 0, 0, 0, 1, 0.13 * 46)),
        ("translate_y", -0.405, (1, 0, 0, 0, 1, -0.405 * 46)),
    ],
)
def test_shears_and_translations_are_affine(picture, name, value, matrix):
    """Pillow cuts the fraction off where we round: 0 or 1 less."""
    expected = picture.transform(picture.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL)
    difference = applied(name, picture, value) - np.asarray(expected)
    assert difference.min() == 0 and difference.max() <= 1


def test_shift_rows_of_any_size(rng):
    for width, height in ((1, 1), (1, 5), (2, 3), (7, 130), (300, 2)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype("uint8"))
        for shift in (0.0, 0.3, 0.5, -0.5, -1.25, 2 * width):
            expected = image.transform(
                image.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, 0), BICUBIC, fillcolor=FILL
            )
            difference = np.asarray(shift_rows(image, np.full(height, shift), FILL)).astype(int) - np.asarray(expected)
            assert difference.min() >= 0 and difference.max() <= 1, (width, height, shift)


def test_shifted_values_are_rounded():
    ramp = np.repeat(np.arange(100, 160)[None, :, None], 3, axis=2)
    image = Image.fromarray(np.repeat(ramp, 4, axis=0).astype("uint8"))
    moved = np.asarray(shift_rows(image, np.array([0.25, 0.75, 3.25, 3.75]), FILL))[:, 5:50, 0]
    np.testing.assert_array_equal(moved - np.arange(105, 150), np.repeat([[0], [1], [3], [4]], 45, axis=1))


def test_whole_pixels_are_moved_as_they_are(picture):
    pixels = np.asarray(picture)
    moved = np.asarray(shift_rows(picture, np.arange(46.0) - 20, FILL))
    for row in range(46):
        shift = row - 20
        kept = slice(max(0, -shift), 61 - max(0, shift))
        np.testing.assert_array_equal(moved[row, kept], np.roll(pixels[row], -shift, axis=0)[kept])
        assert (np.delete(moved[row], np.arange(61)[kept], axis=0) == FILL).all()


@pytest.fixture(scope="module")
def timm_operations():
    define_torchvision_operators()
    from timm.data import auto_augment

    return auto_augment


SIGNS = [(name, sign) for name, (_, signed) in OP_RANGES.items() for sign in ((1, -1) if signed else (1,))]


@pytest.mark.parametrize(("name", "sign"), SIGNS)
def test_timm(timm_operations, picture, monkeypatch, name, sign):
    """The same magnitude gives the same picture; of Pillow's cut-off fractions see above."""
    value_range, _ = OP_RANGES[name]
    # timm negates where the number is above 0.5.
    monkeypatch.setattr(timm_operations.random, "random", lambda: 0.5 - 0.1 * sign)
    hparams = {"img_mean": FILL, "interpolation": BICUBIC}
    rounds = name.startswith(("shear", "translate"))
    for magnitude in [5.0] if value_range is None else [0.0, 2.3, 5.0, 7.49, 8.6, 9.0, 9.7, MAX_MAGNITUDE]:
        if name == "posterize" and magnitude == MAX_MAGNITUDE:
            # No bit is left; Pillow 13 refuses that.
            continue
        theirs = timm_operations.AugmentOp(TIMM_NAMES[name], prob=1, magnitude=magnitude, hparams=hparams)(picture)
        if value_range is None:
            ours = applied(name, picture)
        else:
            first, last = value_range
            ours = applied(name, picture, sign * (first + (last - first) * magnitude / MAX_MAGNITUDE))
        difference = ours - np.asarray(theirs)
        assert difference.min() >= 0 and difference.max() <= (1 if rounds else 0), magnitude
