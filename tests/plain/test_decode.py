import io

import numpy as np
import pytest
from PIL import Image

from keras_ci2p.data import load_image


def stored(image, format, **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    content.seek(0)
    return content


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (6, 8, 3)).astype("uint8")


def loaded(image, format="PNG", **options):
    result = load_image(stored(image, format, **options))
    assert result.mode == "RGB"
    return np.asarray(result)


def test_rgb(pixels):
    np.testing.assert_array_equal(loaded(Image.fromarray(pixels)), pixels)


def test_greyscale_and_two_colours(pixels):
    grey = pixels[:, :, 0]
    np.testing.assert_array_equal(loaded(Image.fromarray(grey)), np.stack([grey] * 3, -1))
    black_and_white = Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(loaded(black_and_white)[:, :, 0], np.where(grey > 127, 255, 0))


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(loaded(image), [[[255, 0, 0], [0, 0, 255]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.putpixel((1, 0), 1)
        array = loaded(image, transparency=0)
    else:
        black = 0 if mode == "LA" else (0, 0, 0)
        image = Image.new(mode, (2, 1), (black, 0) if mode == "LA" else (*black, 0))
        image.putpixel((1, 0), (9, 255) if mode == "LA" else (9, 9, 9, 255))
        array = loaded(image)
    np.testing.assert_array_equal(array, [[[255] * 3, [9] * 3]])


def test_cmyk():
    array = loaded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(array.astype(int) - [255, 0, 0]).max() < 12


def test_16_bit():
    values = np.array([[0, 257, 128 * 257, 65535]], "uint16")
    np.testing.assert_array_equal(loaded(Image.fromarray(values))[0, :, 0], [0, 1, 128, 255])
    tiff = Image.fromarray(values.astype("int32"))
    np.testing.assert_array_equal(loaded(tiff, "TIFF")[0, :, 0], [0, 1, 128, 255])


def test_float():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], "float32"))
    np.testing.assert_array_equal(loaded(image, "TIFF")[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    """Pixel by pixel: the picture is stored turned, and comes out upright."""
    upright = np.zeros((16, 32, 3), "uint8")
    upright[:8, :16] = 255
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(turned))
    array = loaded(image, "JPEG", quality=95, exif=exif)
    assert array.shape == upright.shape
    assert np.abs(array.astype(int) - upright).max() < 20


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff\xe0" + bytes(20)]
)
def test_unreadable(content):
    with pytest.raises(OSError):
        load_image(io.BytesIO(content))


def test_truncated(pixels):
    large = Image.fromarray(np.tile(pixels, (20, 20, 1)))
    for format in ("JPEG", "PNG", "WEBP"):
        content = stored(large, format).getvalue()
        with pytest.raises(OSError):
            load_image(io.BytesIO(content[: len(content) // 2]))
