import numpy as np
import pytest
from PIL import Image

from keras_ci2p.data import center_crop, random_resized_crop
from keras_ci2p.data.transforms import random_crop_box


def test_center_crop_is_the_published_one(rng):
    """Short edge to 292, the other to int(292 * long / short), bicubic; the middle 256."""
    image = Image.fromarray(rng.integers(0, 256, (300, 451, 3)).astype("uint8"))
    for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
        long = int(292 * 451 / 300)
        size = (long, 292) if turned is image else (292, long)
        left, top = round((size[0] - 256) / 2), round((size[1] - 256) / 2)
        expected = turned.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 256, top + 256))
        np.testing.assert_array_equal(center_crop(turned, (256, 256)), np.asarray(expected))


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (33, 33)])
@pytest.mark.parametrize("image_size", [(1, 1), (5, 400), (400, 5), (40, 40)])
def test_any_picture_gives_the_size_asked_for(size, image_size, rng):
    image = Image.new("RGB", image_size)
    assert center_crop(image, size).shape == (*size, 3)
    assert random_resized_crop(image, size, rng).shape == (*size, 3)


def test_distribution_of_the_random_crop(rng):
    width, height = 400, 300
    boxes = np.array([random_crop_box(width, height, rng) for _ in range(4000)])
    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (left + w <= width).all() and (top + h <= height).all()
    area, aspect = w * h / (width * height), w / h
    assert 0.078 < area.min() < 0.1 and area.max() > 0.9
    assert aspect.min() > 0.74 and aspect.max() < 1.345
    # Log-uniform: as many tall ones as wide ones, up to what does not fit.
    small = area < 0.3
    assert abs(np.log(aspect[small]).mean()) < 0.02
    assert abs(np.log(aspect[small]).std() - np.log(4 / 3) / np.sqrt(3)) < 0.01
    # Uniform area where every aspect ratio fits.
    counts, _ = np.histogram(area, bins=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert counts.min() / counts.max() > 0.8


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13))])
def test_fallback_is_the_largest_allowed_middle(size, box):
    class NeverFits:
        def uniform(self, low, high):
            return high

    assert random_crop_box(*size, NeverFits()) == box


def test_flips_half_of_the_time(rng):
    pixels = np.zeros((40, 40, 3), "uint8")
    pixels[:, :, 0] = np.arange(40) * 6
    crops = [random_resized_crop(Image.fromarray(pixels), (8, 8), rng) for _ in range(400)]
    flipped = np.mean([crop[4, 0, 0] > crop[4, -1, 0] for crop in crops])
    assert 0.4 < flipped < 0.6
