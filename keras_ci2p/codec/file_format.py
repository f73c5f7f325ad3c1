"""Files of compressed images, `.ci2p`: a header of at most 64 bytes in common cases, then the streams.

`docs/compressed.md` describes them byte by byte.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from keras_ci2p.codec.rans import CodecError
from keras_ci2p.codec.tables import crc_of

SUFFIX = ".ci2p"
VERSION = 1
# Pixels of an image to a latent, in height and in width.
STRIDE = 16
_MAGIC = b"CI2P"
# Height, width; the compressor; CRC of its prior.
_FIXED = struct.Struct("<HH8sI")
_NUMBER = struct.Struct("<I")
_LARGEST_SIDE = 2**16 - 1
_MOST_STREAMS = 4


@dataclass(frozen=True)
class CompressedImage:
    """What a `.ci2p` file holds.

    Attributes:
        name: Name of the compressor's preset, at most 255 bytes in UTF-8; "" for one without a name. Only a hint.
        compressor: The first 16 hexadecimal digits of the SHA-256 of its analysis transform, as
            `AnalysisTransform.weights_hash` has it.
        prior: CRC-32 of what the entropy coder codes by: tables and medians.
        height, width: Of the image, in pixels, 1..65535.
        crcs: For each stream the CRC-32 of the integers in it.
        strings: For each stream its bytes; 1 to 4 streams.

    Examples:
        >>> file = keras_ci2p.codec.CompressedImage(
        ...     name="mine", compressor="00" * 8, prior=0, height=50, width=70, crcs=(0,), strings=(b"latents",)
        ... )
        >>> keras_ci2p.codec.read_compressed(file.to_bytes()) == file
        True
    """

    name: str
    compressor: str
    prior: int
    height: int
    width: int
    crcs: tuple
    strings: tuple

    def to_bytes(self) -> bytes:
        """The file's bytes.

        Raises:
            CodecError: An image of more than 65535 pixels in a row or column; too long a name.
        """
        if not (0 < self.height <= _LARGEST_SIDE and 0 < self.width <= _LARGEST_SIDE):
            raise CodecError(
                f"A {SUFFIX} file holds images of 1 to {_LARGEST_SIDE:,} pixels in height and width. Received: "
                f"height={self.height}, width={self.width}"
            )
        name = self.name.encode()
        if len(name) > 255:
            raise CodecError(f"The name of a compressor has at most 255 bytes. Received: name={self.name!r}")
        fixed = _FIXED.pack(self.height, self.width, bytes.fromhex(self.compressor), self.prior)
        numbers = [*self.crcs, *(len(string) for string in self.strings[:-1])]
        header = b"".join(
            [
                _MAGIC,
                bytes([VERSION, len(self.strings)]),
                fixed,
                bytes([len(name)]),
                name,
                *map(_NUMBER.pack, numbers),
            ]
        )
        return b"".join([header, _NUMBER.pack(zlib.crc32(header)), *self.strings])


def read_compressed(content: bytes) -> CompressedImage:
    """The `CompressedImage` of a file's bytes; its streams are not looked into.

    Raises:
        CodecError: No such file, one of a later version, a damaged header or a file that was cut in it.

    Examples:
        >>> compressor = keras_ci2p.Compressor(quality=None, channels=(8, 12))
        >>> content = keras_ci2p.codec.ImageCodec(compressor).compress(np.zeros((50, 70, 3), "uint8"))
        >>> file = keras_ci2p.codec.read_compressed(content)
        >>> file.height, file.width, len(file.strings)
        (50, 70, 1)
    """
    if content[:4] != _MAGIC:
        raise CodecError(f"This is no {SUFFIX} file: it does not begin with {_MAGIC.decode()}.")
    try:
        version, count = content[4:6]
        if version != VERSION:
            raise CodecError(
                f"This {SUFFIX} file has format {version}; this version of keras_ci2p reads {VERSION}. "
                "A newer one may read it, unless it is damaged."
            )
        height, width, compressor, prior = _FIXED.unpack_from(content, 6)
        at = 6 + _FIXED.size
        name = content[at + 1 : at + 1 + content[at]]
        at += 1 + content[at]
        *numbers, crc = struct.unpack_from(f"<{max(2 * count - 1, 0) + 1}I", content, at)
    except (ValueError, IndexError, struct.error) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError(f"This {SUFFIX} file was cut off in its header.") from error
    at += 4 * len(numbers)
    if zlib.crc32(content[:at]) != crc or not 1 <= count <= _MOST_STREAMS:
        raise CodecError(f"The header of this {SUFFIX} file is damaged: its checksum is wrong.")
    strings, at = [], at + 4
    for length in numbers[count:]:
        strings.append(content[at : at + length])
        at += length
    if at > len(content):
        raise CodecError(f"This {SUFFIX} file was cut off in its streams.")
    strings.append(content[at:])
    return CompressedImage(
        name.decode(errors="replace"), compressor.hex(), prior, height, width, tuple(numbers[:count]), tuple(strings)
    )


class ImageCodec:
    """Images to the bytes of `.ci2p` files and back, by one compressor, whose weights stay as they are meanwhile.

    Args:
        compressor: `Compressor` with a factorized prior or a hyperprior, `bmshj2018-hyperprior` or `mbt2018-mean`.
        name: What the files say of it: the name of its preset, or "".

    Raises:
        ValueError: A compressor with another prior.
        CodecError: A compressor whose weights are not finite, or far too large.

    Examples:
        >>> codec = keras_ci2p.codec.ImageCodec(keras_ci2p.Compressor(quality=None, channels=(8, 12)))
        >>> content = codec.compress(np.zeros((50, 70, 3), "uint8"))
        >>> type(content), codec.decompress(content).shape
        (<class 'bytes'>, (50, 70, 3))
    """

    def __init__(self, compressor: Any, name: str = "") -> None:
        self.compressor = compressor
        self.name = name
        self.prior = compressor.prior_crc()
        self._synthesis = compressor.integer_synthesis()
        self.identity = compressor.analysis.weights_hash()[:16]

    def compress(self, image: np.ndarray) -> bytes:
        """The bytes of an image's file.

        Args:
            image: `(height, width, 3)`, uint8 or float, RGB in 0..255.

        Raises:
            CodecError: A side of more than 65535 pixels, or latents that cannot be coded.
        """
        symbols, strings = self.compressor.encode_images(image[None], self._synthesis)
        strings = tuple(string for (string,) in strings)
        height, width = image.shape[:2]
        return CompressedImage(self.name, self.identity, self.prior, height, width, _crcs(symbols), strings).to_bytes()

    def latents(self, content: bytes) -> np.ndarray:
        """The latents in the bytes of a file: float32 `(1, rows, columns, M)`, dequantised.

        Those that see a pixel of the image: without the rest of what it was padded by.

        Raises:
            CodecError: No such file, a damaged one, one of another compressor or of other tables; an image of more
                pixels than Pillow would open (`PIL.Image.MAX_IMAGE_PIXELS`, twice).
        """
        file = read_compressed(content)
        return self.compressor.crop_latents(self._latents(file), (file.height, file.width))

    def decompress(self, content: bytes) -> np.ndarray:
        """The image in the bytes of a file: uint8 `(height, width, 3)`; raises as `latents`."""
        file = read_compressed(content)
        (image,) = self.compressor.restore_images(self._latents(file), (file.height, file.width))
        return np.rint(image).astype("uint8")

    def check(self, content: bytes) -> None:
        """Raises as `latents` where the bytes are no file of this compressor; its streams are not looked into."""
        self._check(read_compressed(content))

    def _latents(self, file: CompressedImage) -> np.ndarray:
        self._check(file)
        shape = tuple(-(-side // self.compressor.downsampling_factor) for side in (file.height, file.width))
        symbols, latents = self.compressor.decode_strings([[string] for string in file.strings], shape, self._synthesis)
        if _crcs(symbols) != file.crcs:
            raise CodecError(f"This {SUFFIX} file is damaged: the checksum of its latents is wrong.")
        return latents

    def _check(self, file: CompressedImage) -> None:
        """Raises CodecError where a file is not of this compressor and prior, or too large."""
        if file.compressor != self.identity:
            # The name is whatever somebody wrote there.
            raise CodecError(
                f"This {SUFFIX} file is of another compressor, {file.name!r} ({file.compressor}), not of "
                f"{self.name!r} ({self.identity})."
            )
        if file.prior != self.prior or len(file.strings) != (1 if self._synthesis is None else 2):
            raise CodecError(
                f"This {SUFFIX} file was written with other tables of the entropy coder than these: those of another "
                "prior, or those that a CompressAI checkpoint holds (--tables checkpoint), or does not."
            )
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and file.height * file.width > 2 * most:
            raise CodecError(
                f"This {SUFFIX} file is to hold an image of {file.height} x {file.width} pixels; Pillow's limit "
                f"(PIL.Image.MAX_IMAGE_PIXELS) allows {2 * most:,} in all."
            )


def _crcs(symbols: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Of each stream's integers, `(1, rows, columns, channels)`, in the order in which they are coded."""
    return tuple(crc_of(some[0].transpose(2, 0, 1)) for some in symbols)
