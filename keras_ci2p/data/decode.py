"""Any picture file to an upright RGB image."""

import numpy as np
from PIL import Image, ImageOps


def load_image(source):
    """Reads a picture as upright RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, palettes, grey and CMYK
    are converted. Of several frames the first counts.

    Args:
        source: Path or binary file object of any format that Pillow reads.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        OSError: Not readable, truncated, empty or no picture.
    """
    try:
        with Image.open(source) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except OSError:
        raise
    except Exception as error:
        # Pillow's decoders raise SyntaxError, ValueError, struct.error and more on damaged files.
        raise OSError(f"cannot decode the picture: {error}") from error


def _to_rgb(image):
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    # `convert` would copy, which takes as long as decoding a small JPEG.
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image):
    values = np.asarray(image).astype("float64")
    if image.mode.startswith("I"):
        # 16-bit files; Pillow widens some of them to 32 bits without changing the values.
        values = values / 257 if values.max(initial=0) > 255 or image.mode != "I" else values
    elif values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype("uint8"))
