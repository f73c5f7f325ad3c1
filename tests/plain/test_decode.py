import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from keras_ci2p.data import load_image, scan_folder
from keras_ci2p.data.manifest import check_image
from keras_ci2p.data.transforms import decode_image


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


def test_an_image_that_the_memory_does_not_hold_costs_that_image_alone(tmp_path, monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr("keras_ci2p.data.transforms._to_rgb", fail)
    Image.new("RGB", (8, 8)).save(tmp_path / "large.png")
    with pytest.raises(OSError, match="too large for this machine's memory"):
        load_image(tmp_path / "large.png")
    assert check_image((tmp_path / "large.png").read_bytes())[1].startswith("too large")


@pytest.mark.parametrize("kind", ["uint16 PNG", "uint16 TIFF", "int32 TIFF", "float32 TIFF"])
@pytest.mark.parametrize(("bits", "white"), [(8, 255), (12, 4095), (16, 65535)])
def test_grey_of_more_than_8_bits(kind, bits, white):
    """White is the largest value of the fewest of 8, 12 and 16 bits that hold the image's own."""
    dtype, format = kind.split()
    most = {8: 200, 12: 1000, 16: 5000}[bits]
    values = np.array([[0, 1, most // 2, most]])
    content = stored(Image.fromarray(values.astype(dtype)), format)
    image, note = decode_image(content)
    np.testing.assert_array_equal(np.asarray(image)[0, :, 1], np.rint(values[0] * (255 / white)))
    if bits == 16:
        assert note is None
    else:
        assert note == f"has more than 8 bits, uses {bits} or fewer of them, and is scaled as if it had {bits}: " + (
            f"{white} is white"
        )
        with pytest.warns(UserWarning, match=f"The image has more than 8 bits.* {white} is white"):
            load_image(content)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 65536]], "values up to 65536: more than 16 bits"),
        ([[0, np.nan]], "not finite"),
        ([[0, np.inf]], "not finite"),
    ],
)
def test_grey_that_has_no_scale(values, message):
    with pytest.raises(OSError, match=message):
        loaded(Image.fromarray(np.array(values, "float32")), "TIFF")
    np.testing.assert_array_equal(
        loaded(Image.fromarray(np.array([[-5.0, 255.0]], "float32")), "TIFF")[0, :, 0], [0, 255]
    )


def colour_png(values):
    """A PNG of 16 bits for each colour, `(height, width, 3)`, which Pillow cannot write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_16_bits(pixels):
    image, note = decode_image(io.BytesIO(colour_png(pixels.astype("uint16") * 256)))
    np.testing.assert_array_equal(image, pixels)
    assert note is None
    # Pillow keeps the upper 8 bits.
    image, note = decode_image(io.BytesIO(colour_png(pixels.astype("uint16") * 16)))
    np.testing.assert_array_equal(image, pixels // 16)
    assert note.startswith("has 16 bits for each colour, uses 12 or fewer of them, and is nearly black")


def test_bits_are_counted_in_a_folder(photos, recwarn):
    for path in sorted(photos.glob("*/*.png"))[:3]:
        Image.fromarray(np.full((40, 48), 4000, "uint16")).save(path)
    (photos / "dog" / "dark.png").write_bytes(colour_png(np.full((8, 8, 3), 500, "uint16")))
    manifest = scan_folder(photos)
    grey, dark = sorted(str(warning.message) for warning in recwarn if warning.category is UserWarning)
    assert "1 image, the first is dog/dark.png, each of which has 16 bits for each colour" in grey + dark
    assert "3 images, the first is bird/000.png, each of which has more than 8 bits, uses 12" in grey + dark
    assert np.asarray(manifest.open(0)).mean() == 249 and not manifest.skipped
    # Once said, it is not said again of each.
    assert len([warning for warning in recwarn if "bits" in str(warning.message)]) == 2


FRAMES = [Image.new("RGB", (12, 8), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO", "PDF"])
def test_of_several_frames_the_first_is_taken(format, photos):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has AVIF from 11.3 on")
    path = photos / "cat" / f"moving.{format.lower()}"
    FRAMES[0].save(path, format, save_all=True, append_images=FRAMES[1:])
    if format == "PDF":
        with pytest.warns(UserWarning, match="cat/moving.pdf: no image"):
            scan_folder(photos)
        return
    assert Image.open(path).n_frames == 3
    assert np.abs(np.asarray(load_image(path)).astype(int) - [255, 0, 0]).max() < 12
    manifest = scan_folder(photos)
    assert manifest.open(manifest.files.index(f"cat/{path.name}")).size == (12, 8)
    # Cut off within the first frame.
    path.write_bytes(path.read_bytes()[:40])
    with pytest.warns(UserWarning, match="skipped 1 file"):
        scan_folder(photos)


@pytest.mark.parametrize("format", ["AVIF", "WEBP", "BMP", "PPM", "JPEG2000", "TGA", "ICO", "DDS"])
def test_other_formats(format, pixels):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow has AVIF from 11.3 on")
    smooth = Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)
    lossless = {"WEBP": {"lossless": True}, "ICO": {"sizes": [(48, 40)]}, "AVIF": {"quality": 100}}.get(format, {})
    array = loaded(smooth, format, **lossless)
    assert np.abs(array.astype(int) - np.asarray(smooth)).mean() < (3 if format == "AVIF" else 0.5)


HEIC = b"\0\0\0\x18ftypheic" + bytes(60)


def test_heic_is_named(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (photos / "cat" / "IMG_0001.HEIC").write_bytes(HEIC)
    with pytest.warns(UserWarning, match="cat/IMG_0001.HEIC: HEIC, which needs: pip install pillow-heif; or store it"):
        scan_folder(photos)
    with pytest.raises(OSError, match="pip install pillow-heif"):
        load_image(photos / "cat" / "IMG_0001.HEIC")


def test_heic_is_read_by_pillow_heif(photos, monkeypatch):
    """A stand-in: what the package registers is called, and opens the file anew."""
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))

    def register():
        class Plugin(ImageFile.ImageFile):
            format = "HEIF"

            def _open(self):
                assert self.fp.read(12) == HEIC[:12]
                self._mode, self._size = "RGB", (5, 4)
                self.tile = [("raw", (0, 0, 5, 4), 12, ("RGB", 0, 1))]

        Image.register_open("HEIF", Plugin, lambda prefix: prefix[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    (photos / "cat" / "IMG_0001.HEIC").write_bytes(HEIC)
    manifest = scan_folder(photos)
    assert manifest.open(manifest.files.index("cat/IMG_0001.HEIC")).size == (5, 4)


def test_a_huge_image_is_told_with_what_helps(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    Image.new("RGB", (101, 100)).save(photos / "cat" / "huge.png")
    Image.new("RGB", (101, 100)).save(photos / "cat" / "huge.jpg")
    match = "huge.png: more than 10,000 pixels, which Pillow takes for an attack. Make it smaller, or"
    with pytest.warns(UserWarning, match=match) as caught:
        assert len(scan_folder(photos)) == 30
    assert "skipped 2 files" in str(caught[0].message)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(scan_folder(photos)) == 32
