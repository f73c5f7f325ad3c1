"""Augmentation on the device against the same parameters applied by Pillow (`data.transforms.apply_params`)."""

import dataclasses

import keras
import numpy as np
import pytest
from PIL import Image, ImageFilter

from keras_ci2p.data.augmentation import CROP_AND_FLIP, OP_RANGES, Augmentation, AugmentParams, collate_params
from keras_ci2p.data.transforms import apply_params
from keras_ci2p.layers.batch_augmentation import FILL, BatchAugmentation

# So many pixels that Pillow's division of them by 255, in equalize, differs from one by 256.
SIZE = (36, 64)
AUGMENTATION = Augmentation(randaugment_ops=3)
WHOLE = AugmentParams(
    box=(0, 0, SIZE[1], SIZE[0]), flip=False, ops=(), grayscale=False, blur=0.0, solarize=256, erase=None
)

COLOR = [
    ("autocontrast", None),
    ("equalize", None),
    ("invert", None),
    ("posterize", 2.3),
    ("posterize", 0.4),
    ("posterize", 0.0),
    ("solarize", 70.5),
    ("solarize_add", 97.7),
    ("color", 0.8),
    ("color", -0.7),
    ("contrast", 0.8),
    ("contrast", -0.7),
    ("brightness", 0.8),
    ("brightness", -0.7),
    ("sharpness", 0.8),
    ("sharpness", -0.7),
]
GEOMETRIC = [
    (name, sign * value)
    for name, value in [("rotate", 25), ("shear_x", 0.25), ("shear_y", 0.2), ("translate_x", 0.4), ("translate_y", 0.3)]
    for sign in (1, -1)
]
SEQUENCES = [
    (("invert", None), ("translate_y", 0.3)),
    (("translate_y", 0.3), ("invert", None)),
    (("rotate", 25), ("shear_x", 0.3)),
    (("shear_x", 0.3), ("rotate", 25)),
    (("translate_x", 0.4), ("rotate", -25)),
    (("rotate", -25), ("translate_x", 0.4)),
    (("translate_x", 0.4), ("translate_x", -0.4)),
    (("color", -0.9), ("posterize", 3.0)),
    (("brightness", -0.5), ("solarize_add", 90.0), ("contrast", 0.5)),
    (("shear_y", -0.2), ("solarize", 60.0), ("translate_x", -0.2)),
]
SIGMAS = (0.6, 1.0, 1.5, 2.0)
CROPS = [((10, 5, 30, 28), False), ((10, 5, 30, 28), True), ((0, 12, 20, 24), True)]

CASES = {
    "nothing": WHOLE,
    "gray": WHOLE._replace(grayscale=True),
    "solarize": WHOLE._replace(solarize=120),
    **{step: WHOLE._replace(ops=(step,)) for step in COLOR + GEOMETRIC},
    **{steps: WHOLE._replace(ops=steps) for steps in SEQUENCES},
    **{("blur", sigma): WHOLE._replace(blur=sigma) for sigma in SIGMAS},
    **{crop: WHOLE._replace(box=crop[0], flip=crop[1]) for crop in CROPS},
    "inside": WHOLE._replace(box=(10, 10, 20, 20), ops=(("translate_x", 0.25),)),
    "all": AugmentParams((10, 5, 30, 28), True, (("rotate", 9.0), ("color", 0.5)), True, 1.5, 128, None),
}


class Apply(keras.Model):
    """Compiled on the backends that compile."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.traces = 0

    def call(self, inputs):
        self.traces += 1
        return self.layer(inputs)


def smooth_picture(seed=0):
    pixels = np.random.default_rng(seed).integers(40, 216, (5, 7, 3)).astype("uint8")
    return Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC)


def grainy_picture():
    noise = np.random.default_rng(1).normal(0, 12, (*SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(smooth_picture()) + noise, 0, 255).astype("uint8"))


def picture(case):
    # Interpolations agree on smooth pictures only.
    is_geometric = any(name in dict(GEOMETRIC) for name, _ in CASES[case].ops) or case in CROPS
    return smooth_picture() if is_geometric else grainy_picture()


def inputs(pictures, draws, augmentation=AUGMENTATION):
    sizes = [(image.height, image.width) for image in pictures]
    return {"images": np.stack(pictures), **collate_params(augmentation, draws, sizes, SIZE)}


def on_host(case, **changes):
    return apply_params(picture(case), CASES[case]._replace(**changes), SIZE, None).astype("float32")


@pytest.fixture(scope="module")
def results():
    model = Apply(BatchAugmentation(SIZE))
    images = model.predict_on_batch(inputs([grainy_picture()] * len(CASES), [WHOLE] * len(CASES)))
    np.testing.assert_array_equal(images, [grainy_picture()] * len(CASES))
    traces = model.traces
    images = model.predict_on_batch(inputs([picture(case) for case in CASES], CASES.values()))
    # What was drawn is no part of what was compiled.
    assert model.traces == traces or keras.backend.backend() == "torch"
    assert images.shape == (len(CASES), *SIZE, 3) and images.dtype == "float32"
    np.testing.assert_array_equal(images, np.clip(np.rint(images), 0, 255))
    return dict(zip(CASES, images, strict=True))


def test_all_operations_are_tested():
    assert {name for name, _ in COLOR + GEOMETRIC} == set(OP_RANGES)


@pytest.mark.parametrize("case", [*COLOR, "solarize", "gray"], ids=str)
def test_color_operations(results, case):
    difference = np.abs(results[case] - on_host(case))
    # Other roundings of the same number.
    assert difference.max() <= (1 if case == "gray" or case[0] in ("autocontrast", "contrast") else 0)
    assert difference.mean() < 0.1
    assert np.abs(results[case] - results["nothing"]).mean() > 1


@pytest.mark.parametrize("case", [*GEOMETRIC, *SEQUENCES, *CROPS], ids=str)
def test_geometry_and_order(results, case):
    difference = np.abs(results[case] - on_host(case))
    # Two operations in Pillow also blend the photo with the fill colour along a line.
    assert difference.mean() < 2 and np.quantile(difference, 0.9) <= 3
    assert np.abs(results[case] - np.asarray(smooth_picture())).mean() > 10


@pytest.mark.parametrize("case", GEOMETRIC, ids=str)
def test_fill(results, case):
    expected, filled = ((image == FILL).all(-1) for image in (on_host(case), results[case]))
    assert filled.sum() > 100
    # The rotation of a border may round the other way.
    assert (filled != expected).mean() < 0.005


def test_an_operation_sees_no_more_of_the_photo_than_the_crop(results):
    is_filled = (results["inside"] == FILL).all(-1)
    np.testing.assert_array_equal(is_filled, np.tile(np.arange(SIZE[1]) >= 48, (SIZE[0], 1)))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur(results, sigma):
    case = ("blur", sigma)

    def difference(other):
        blurred = grainy_picture().filter(ImageFilter.GaussianBlur(other))
        return np.abs(results[case] - np.asarray(blurred, "float32"))

    # Pillow approximates by boxes and rounds six times.
    assert difference(sigma).mean() < 0.8 and difference(sigma).max() <= 5
    assert difference(sigma).mean() < 0.7 * min(difference(0.8 * sigma).mean(), difference(1.25 * sigma).mean())


def test_all_steps_in_order(results):
    difference = np.abs(results["all"] - on_host("all"))
    # Where a grey value falls beside the threshold, solarize doubles the difference.
    assert difference.mean() < 3 and np.quantile(difference, 0.9) <= 5
    np.testing.assert_array_equal(results["all"][..., 0], results["all"][..., 2])
    for changes in ({"blur": 0.0}, {"solarize": 256}, {"flip": False}, {"ops": ()}):
        assert np.abs(results["all"] - on_host("all", **changes)).mean() > difference.mean() + 1


def test_photos_of_another_size_than_drawn_for():
    """The crop box counts pixels of the photo before it was squeezed."""
    photo = smooth_picture().resize((300, 180), Image.Resampling.BICUBIC)
    draw = WHOLE._replace(box=(60, 30, 200, 120), flip=True)
    squeezed = np.asarray(photo.resize((72, 64), Image.Resampling.BICUBIC))
    batch = {"images": squeezed[None], **collate_params(CROP_AND_FLIP, [draw], [(180, 300)], SIZE)}
    image = Apply(BatchAugmentation(SIZE)).predict_on_batch(batch)[0]
    assert np.abs(image - apply_params(photo, draw, SIZE, None)).mean() < 1.5


def test_erasing():
    """Noise of ImageNet's mean and deviation in the rectangle, from a generator whose state is a variable."""
    rectangles = [(0, 0, *SIZE), (3, 5, 20, 31), None]
    draws = [WHOLE._replace(erase=rectangle) for rectangle in rectangles]
    batch = inputs([smooth_picture()] * 3, draws, dataclasses.replace(CROP_AND_FLIP, erasing=0.25))
    model = Apply(BatchAugmentation(SIZE, seed=3))
    (state,) = model.variables
    before = keras.ops.convert_to_numpy(state)
    first, second = model.predict_on_batch(batch), model.predict_on_batch(batch)
    noise = np.concatenate([first[0].reshape(-1, 3), second[0].reshape(-1, 3)])
    np.testing.assert_allclose(noise.mean(0), (123.675, 116.28, 103.53), atol=4)
    # Cutting off at 0 takes a little away.
    np.testing.assert_allclose(noise.std(0), (58.395, 57.12, 57.375), atol=4)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(3), atol=0.1)
    assert np.abs(first[0] - second[0]).mean() > 30
    changed = (first[1] != np.asarray(smooth_picture())).any(-1)
    assert changed[3:23, 5:36].mean() > 0.99
    changed[3:23, 5:36] = False
    assert not changed.any()
    np.testing.assert_array_equal(first[2], np.asarray(smooth_picture()))
    # A run that is taken up again goes on with the noise that it would have had.
    state.assign(before)
    np.testing.assert_array_equal(model.predict_on_batch(batch), first)


def test_steps_that_never_happen_are_left_out():
    batch = inputs([smooth_picture()], [WHOLE], CROP_AND_FLIP)
    assert set(batch) == {"images", "warp"}


def test_config_and_dtype():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = BatchAugmentation(SIZE, seed=7, name="a")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.image_size == SIZE and again.seed == 7 and again.name == "a"
    assert again.compute_output_shape({"images": (None, 60, 60, 3)}) == (None, *SIZE, 3)
    image = keras.ops.convert_to_numpy(again(inputs([grainy_picture()], [WHOLE], CROP_AND_FLIP)))[0]
    assert image.dtype == "float32"
    np.testing.assert_array_equal(image, np.asarray(grainy_picture()))
