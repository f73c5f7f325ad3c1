"""The draws: every range, mean and probability. Tolerances are five standard errors of what is measured."""

import json
import math
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image

from keras_ci2p.data import CROP_AND_FLIP, Augmentation, transforms
from keras_ci2p.data.augmentation import MAX_MAGNITUDE, OP_RANGES, AugmentParams, sample_crop_box, sample_params

COUNT = 20_000
SOURCE = (2000, 2000)
SIZE = (256, 256)


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    return [sample_params(Augmentation(), SOURCE, SIZE, rng) for _ in range(COUNT)]


def assert_share(events, probability):
    events = np.asarray(events)
    assert abs(events.mean() - probability) < 5 * math.sqrt(probability * (1 - probability) / len(events))


def assert_uniform(values, least, most, rounding=0.0):
    """Neither a narrower nor a wider range, nor another distribution of the same range, comes through."""
    places = (np.asarray(values) - least) / (most - least)
    slack = rounding / (most - least)
    end = 15 / len(places)
    assert -slack <= places.min() < end + slack
    assert 1 - end - slack < places.max() <= 1 + slack
    error = 5 / math.sqrt(len(places))
    assert abs(places.mean() - 1 / 2) < error / math.sqrt(12) + slack
    assert abs(np.square(places).mean() - 1 / 3) < error * math.sqrt(1 / 5 - 1 / 9) + 2 * slack


def test_crop(draws):
    left, top, width, height = np.array([d.box for d in draws]).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + width <= 2000).all() and (top + height <= 2000).all()
    area, aspect = width * height / 2000**2, width / height
    # Up to three quarters of the area every aspect ratio fits.
    small = area < 0.75
    assert_uniform(area[small], 0.08, 0.75, rounding=0.002)
    assert area.max() > 0.99
    assert_uniform(np.log(aspect[small]), math.log(3 / 4), math.log(4 / 3), rounding=0.002)
    assert_uniform(left[small] / (2000 - width[small]), 0, 1)
    assert_uniform(top[small] / (2000 - height[small]), 0, 1)


@pytest.mark.parametrize(
    ("source", "box"), [((10, 1000), (493, 0, 13, 10)), ((1000, 10), (0, 493, 10, 13)), ((300, 400), (0, 0, 400, 300))]
)
def test_the_crop_that_does_not_fit_is_the_largest_allowed_middle(source, box):
    class NeverFits:
        def uniform(self, low, high):
            return 2 * high

    assert sample_crop_box(Augmentation(), source, NeverFits()) == box


def test_probabilities(draws):
    assert_share([d.flip for d in draws], 0.5)
    assert_share([d.grayscale for d in draws], 0.2)
    assert_share([d.blur > 0 for d in draws], 0.1)
    assert_share([d.solarize < 256 for d in draws], 0.2)
    assert_share([d.erase is not None for d in draws], 0.25)
    assert {d.solarize for d in draws} == {128, 256}


def test_the_steps_are_independent(draws):
    events = np.array([[d.flip, d.grayscale, d.blur > 0, d.solarize < 256, d.erase is not None] for d in draws])
    correlation = np.corrcoef(events.T) - np.eye(5)
    assert np.abs(correlation).max() < 5 / math.sqrt(COUNT)


def test_two_operations_with_replacement(draws):
    counts = np.array([len(d.ops) for d in draws])
    for count, probability in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert_share(counts == count, probability)
    drawn = [name for d in draws for name, _ in d.ops]
    assert set(drawn) == set(OP_RANGES)
    for name in OP_RANGES:
        assert_share([other == name for other in drawn], 1 / 15)
    pairs = [d.ops for d in draws if len(d.ops) == 2]
    assert_share([first[0] == second[0] for first, second in pairs], 1 / 15)


def clipped_magnitude():
    """Mean and standard deviation of N(9, 0.5) clipped to 10."""
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    values = np.minimum([NormalDist(9, 0.5).inv_cdf(q) for q in quantiles], 10)
    return values.mean(), values.std()


def test_values_of_the_operations(draws):
    """Each has its range, sign and magnitude; the magnitude is drawn anew for each."""
    mean, std = clipped_magnitude()
    magnitudes = []
    for name, (value_range, signed) in OP_RANGES.items():
        values = [value for d in draws for other, value in d.ops if other == name]
        if value_range is None:
            assert set(values) == {None}
            continue
        if signed:
            assert_share(np.sign(values) > 0, 0.5)
            values = np.abs(values)
        first, last = value_range
        magnitude = (np.asarray(values) - first) / (last - first) * MAX_MAGNITUDE
        assert abs(magnitude.mean() - mean) < 5 * std / math.sqrt(len(values)), name
        magnitudes.append(magnitude)
    magnitudes = np.concatenate(magnitudes)
    assert abs(magnitudes.std() - std) < 5 * std / math.sqrt(2 * len(magnitudes))
    assert magnitudes.min() < 7.5 and magnitudes.max() < MAX_MAGNITUDE + 1e-9
    assert_share(magnitudes > MAX_MAGNITUDE - 1e-9, 1 - NormalDist(9, 0.5).cdf(10))
    pairs = [d.ops for d in draws if len(d.ops) == 2]
    twice = [(abs(a), abs(b)) for (first, a), (second, b) in pairs if first == second and a is not None]
    assert np.mean([a == b for a, b in twice]) < 0.05


def test_ranges_of_the_operations():
    """mmpretrain's policy "timm_increasing"."""
    signed = {name: value_range for name, (value_range, is_signed) in OP_RANGES.items() if is_signed}
    assert signed == {
        "rotate": (0, 30),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (0, 0.9)),
        **dict.fromkeys(("shear_x", "shear_y"), (0, 0.3)),
        **dict.fromkeys(("translate_x", "translate_y"), (0, 0.45)),
    }
    unsigned = {name: value_range for name, (value_range, is_signed) in OP_RANGES.items() if not is_signed}
    assert unsigned == {
        **dict.fromkeys(("autocontrast", "equalize", "invert")),
        "posterize": (4, 0),
        "solarize": (256, 0),
        "solarize_add": (0, 110),
    }


def test_blur(draws):
    assert_uniform([d.blur for d in draws if d.blur], 0.1, 2.0)


def test_erased_rectangle(draws):
    top, left, height, width = np.array([d.erase for d in draws if d.erase]).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 256).all() and (left + width <= 256).all()
    area, aspect = height * width / 256**2, height / width
    # Up to here none is cut off.
    small = area < 0.3
    assert_uniform(area[small], 0.02, 0.3, rounding=0.003)
    assert area.max() > 0.32
    assert_uniform(np.log(aspect[small]), math.log(0.3), math.log(10 / 3), rounding=0.03)
    assert_uniform(top / (256 - height).clip(1), 0, 1)
    assert_uniform(left / (256 - width).clip(1), 0, 1)


def test_long_rectangles_are_cut_off(rng):
    augmentation = Augmentation(erasing=1.0, erasing_area=(1 / 3, 1 / 3), erasing_aspect=(10, 10))
    top, _, height, width = sample_params(augmentation, SOURCE, SIZE, rng).erase
    assert (top, height, width) == (0, 256, round(math.sqrt(256**2 / 3 / 10)))


def test_sizes_are_height_first(rng):
    augmentation = Augmentation(
        crop_area=(1, 1), crop_aspect=(2, 2), erasing=1.0, erasing_area=(1, 1), erasing_aspect=(1 / 4, 1 / 4)
    )
    drawn = sample_params(augmentation, (100, 200), (32, 128), rng)
    assert drawn.box == (0, 0, 200, 100) and drawn.erase == (0, 0, 32, 128)


def test_crop_and_flip_draws_nothing_else(rng):
    for _ in range(100):
        drawn = sample_params(CROP_AND_FLIP, SOURCE, SIZE, rng)
        assert (drawn.ops, drawn.grayscale, drawn.blur, drawn.solarize, drawn.erase) == ((), False, 0, 256, None)


def test_the_seed_determines_the_draws():
    def some(seed):
        rng = np.random.default_rng(seed)
        return [sample_params(Augmentation(), (300, 400), SIZE, rng) for _ in range(50)]

    assert some(1) == some(1)
    assert not any(a == b for a, b in zip(some(1), some(2), strict=True))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"flip": 1.1}, r"flip must be in \[0, 1\]"),
        ({"randaugment_probability": -0.1}, r"randaugment_probability must be in \[0, 1\]"),
        ({"grayscale": 2}, "grayscale"),
        ({"blur": -1}, "blur"),
        ({"solarize": 1.5}, "solarize"),
        ({"erasing": 25}, "erasing"),
        ({"crop_area": (0, 1)}, "positive"),
        ({"crop_area": (0.5, 1.2)}, "at most 1"),
        ({"crop_area": (0.5,)}, "pair"),
        ({"crop_aspect": (2, 1)}, r"least, most\). Received: crop_aspect="),
        ({"blur_radius": (-1, 2)}, "positive"),
        ({"erasing_area": (0.1, 1.1)}, "at most 1"),
        ({"erasing_aspect": (0, 1)}, "positive"),
        ({"randaugment_ops": -1}, "randaugment_ops"),
        ({"randaugment_magnitude": 10.5}, "0..10"),
        ({"randaugment_std": -0.5}, "randaugment_std"),
        ({"solarize_threshold": 257}, "0..256"),
    ],
)
def test_wrong_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**numbers)


def test_numbers_survive_json():
    augmentation = Augmentation(crop_area=(0.2, 0.9), randaugment_ops=3)
    assert Augmentation(**json.loads(json.dumps(augmentation.to_dict()))) == augmentation


class TestScaled:
    """The same draw for a result of another size."""

    def test_only_what_is_in_pixels_changes(self, draws):
        for drawn in draws[:300]:
            scaled = drawn.scaled(SIZE, (512, 384))
            kept = {"blur": drawn.blur, "erase": drawn.erase}
            assert scaled._replace(**kept) == drawn
            assert scaled.blur == pytest.approx(drawn.blur * math.sqrt(2 * 1.5))
            if drawn.erase is not None:
                top, left, height, width = drawn.erase
                expected = (2 * top, 1.5 * left, 2 * height, 1.5 * width)
                np.testing.assert_allclose(scaled.erase, expected, atol=1)
                assert scaled.erase[0] + scaled.erase[2] <= 512 and scaled.erase[1] + scaled.erase[3] <= 384
            assert drawn.scaled(SIZE, SIZE) == drawn

    def test_by_hand(self):
        drawn = AugmentParams((1, 2, 3, 4), True, (("rotate", 3.0),), True, 1.5, 128, (10, 20, 30, 7))
        assert drawn.scaled((64, 64), (96, 32)) == drawn._replace(blur=1.5 * math.sqrt(0.75), erase=(15, 10, 45, 4)), (
            "27 / 2 = 13.5, rounded to 14"
        )

    def test_the_same_scene(self):
        """Of a smooth picture a larger view, made small, is the small view."""
        rows, columns = np.mgrid[0:160, 0:200]
        waves = [np.sin(rows / 30 + phase) + np.cos(columns / 40 - phase) for phase in (0, 1, 2)]
        photo = Image.fromarray((np.stack(waves, -1) * 55 + 128).astype("uint8"))
        # Noise is another one in another size.
        augmentation = Augmentation(erasing=0.0, blur=0.5)
        worst = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            drawn = sample_params(augmentation, (160, 200), (32, 48), rng)
            # Of these a step of a grey level can be a leap of the image.
            if drawn.solarize < 256 or {name for name, _ in drawn.ops} & {"posterize", "solarize", "equalize"}:
                continue
            small = transforms.apply_params(photo, drawn, (32, 48), rng)
            large = transforms.apply_params(photo, drawn.scaled((32, 48), (96, 144)), (96, 144), rng)
            halved = large.reshape(32, 3, 48, 3, 3).mean((1, 3))
            # Without the borders that a rotation moves in.
            difference = np.abs(halved - small)[4:-4, 4:-4]
            worst.append(np.median(difference))
            assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.9, drawn
        assert len(worst) > 15 and max(worst) < 6
