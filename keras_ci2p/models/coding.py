"""Coding images by a compressor: latents to integers, integers to strings, and back."""

import hashlib
import itertools
import zlib
from typing import Any

import numpy as np
from keras import ops

from keras_ci2p import backend
from keras_ci2p.codec.rans import CodecError, decode_latents, encode_latents, to_symbols
from keras_ci2p.codec.tables import (
    SCALES,
    EntropyTables,
    IntegerSynthesis,
    crc_of,
    factorized_tables,
    gaussian_tables,
    read_tables,
    scale_indexes,
)
from keras_ci2p.layers.compression_transforms import DOWNSAMPLING, LEAKY_SLOPE
from keras_ci2p.models.rate_distortion import RateDistortionModel
from keras_ci2p.utils import Tensor

# Of a hyper-latent: latents to it, in height and in width.
HYPER_STRIDE = 4
# In latents: the side of the tiles in which large images are coded, for photos of many megapixels to fit into memory,
# and how far the transforms look beyond what they give (the encoder 30 pixels, the decoder 1.9 latents).
_TILE = 64
_MARGIN = 2


class CodingModel(RateDistortionModel):
    """Base class of compressors: what `compress`, `decompress` and `.ci2p` files need.

    A factorized prior has one stream, of the latents; a hyperprior a second one, of the hyper-latents, from which the
    scales and means come that the first is coded by.

    Subclasses have `architecture`, `latent_channels`, `num_filters`, `entropy_bottleneck`, `hyper_analysis` and
    `hyper_synthesis`, None where there are none; `encode` and `decode`.
    """

    # Of the weights that the hash tells: the bottleneck's tables.
    _tables: tuple[bytes, EntropyTables] | None = None
    _gaussian_tables: EntropyTables | None = None
    # Layers, or None.
    entropy_bottleneck: Any
    gaussian_conditional: Any
    hyper_analysis: Any
    hyper_synthesis: Any

    @property
    def downsampling_factor(self) -> int:
        """Pixels to a number of the coarsest latent: 16, with a hyperprior 64."""
        return DOWNSAMPLING if self.hyper_synthesis is None else HYPER_STRIDE * DOWNSAMPLING

    def compress(self, images: Tensor) -> dict[str, Any]:
        """Bitstreams of a batch of images: the strings of CompressAI's `compress`.

        The entropy coder runs on the host, compiled where numba is installed (extra `codec`).

        Those of a hyperprior are only decoded where its float network gives the same scales, as CompressAI's: on the
        same backend, hardware and number of threads. `.ci2p` files are decoded everywhere.

        Args:
            images: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, of any size: the edges are repeated, as
                much on one side as on the other, up to multiples of 16, of a hyperprior 64.

        Returns:
            dict: `strings`, for each stream (latents; of a hyperprior also hyper-latents) a list of bytes, one for each
            image; `shape`, rows and columns of the coarsest latent.

        Raises:
            ValueError: The architecture's prior is not part of this package; a wrong shape.
            keras_ci2p.codec.CodecError: Latents that cannot be coded, from weights or images that are not finite.
        """
        symbols, strings = self.encode_images(images)
        return {"strings": strings, "shape": symbols[-1].shape[1:3]}

    def decompress(
        self, strings: list[list[bytes]], shape: tuple[int, int], image_size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Images of bitstreams.

        Args:
            strings, shape: As `compress` of this compressor, or CompressAI's of the same weights, returned them.
            image_size: `(height, width)` of the images before they were padded; None for multiples of 16 (64).

        Returns:
            float32 array `(batch, height, width, 3)`, RGB in 0..255.

        Raises:
            ValueError: The architecture's prior is not part of this package; another number of streams; a size that
                does not fit.
            keras_ci2p.codec.CodecError: A string that was damaged, or coded by another compressor. Not all damage is
                found: a `.ci2p` file's checksum finds it.
        """
        _, latents = self.decode_strings(strings, shape)
        return self.restore_images(latents, image_size)

    def encode_images(
        self, images: Tensor, synthesis: IntegerSynthesis | None = None
    ) -> tuple[tuple[np.ndarray, ...], list[list[bytes]]]:
        """Integers of images, and their strings.

        Args:
            images: As in `compress`.
            synthesis: What `integer_synthesis` gave, for files; None for a hyperprior's float network.

        Returns:
            `(symbols, strings)`: for each stream an int32 array `(batch, rows, columns, channels)`, latents or
            hyper-latents less their medians or means; and a list of bytes, one for each image.

        Raises: As `compress`.
        """
        self._check_prior()
        images = ops.convert_to_numpy(images)
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"Images have the shape (batch, height, width, 3). Received: shape={images.shape}")
        sides = [self._padding(side) for side in images.shape[1:3]]
        latents = _in_tiles(self.encode, np.pad(images, [(0, 0), *sides, (0, 0)], mode="edge"), DOWNSAMPLING, 1)
        if self.hyper_synthesis is None:
            symbols = to_symbols(latents - self._medians())
            return (symbols,), [self._encode_each(symbols)]
        hyper_symbols = to_symbols(_on_host(self.hyper_analysis, latents) - self._medians())
        indexes, means = self._predict(hyper_symbols, synthesis)
        symbols = to_symbols(latents - means)
        return (symbols, hyper_symbols), [self._encode_each(symbols, indexes), self._encode_each(hyper_symbols)]

    def decode_strings(
        self, strings: list[list[bytes]], shape: tuple[int, int], synthesis: IntegerSynthesis | None = None
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """The inverse of `encode_images`.

        Args:
            strings, shape: As in `decompress`.
            synthesis: As it was in `encode_images`.

        Returns:
            `(symbols, latents)`: as of `encode_images`; and the dequantised latents, float32 array `(batch, rows,
            columns, M)`.

        Raises: As `decompress`.
        """
        self._check_prior()
        streams = 1 if self.hyper_synthesis is None else 2
        counts = [len(some) for some in strings]
        if len(counts) != streams or len(set(counts)) != 1 or not counts[0] or len(shape) != 2 or min(shape) < 1:
            raise ValueError(
                f"{self.architecture} has {('one list', 'two lists alike')[streams - 1]} of strings, and latents "
                f"of a shape (rows, columns). Received lists of {counts} strings, shape={tuple(shape)}"
            )
        channels = self.entropy_bottleneck.quantiles.shape[0]
        coarsest = self._decode_each(strings[-1], (*shape, channels), self.entropy_tables)
        if streams == 1:
            return (coarsest,), (coarsest + self._medians()).astype("float32")
        indexes, means = self._predict(coarsest, synthesis)
        symbols = self._decode_each(strings[0], indexes.shape[1:], self.gaussian_tables, indexes)
        return (symbols, coarsest), (symbols + means).astype("float32")

    def _encode_each(self, symbols, indexes=None):
        tables = self.entropy_tables if indexes is None else self.gaussian_tables
        indexes = [None] * len(symbols) if indexes is None else indexes
        return [encode_latents(image, tables, some) for image, some in zip(symbols, indexes, strict=True)]

    @staticmethod
    def _decode_each(strings, shape, tables, indexes=None):
        indexes = [None] * len(strings) if indexes is None else indexes
        images = zip(strings, indexes, strict=True)
        return np.stack([decode_latents(string, shape, tables, some) for string, some in images])

    def _predict(self, hyper_symbols, synthesis):
        """Tables of the latents, int32, and their means, float32 or 0: both `(batch, rows, columns, M)`."""
        if synthesis is None:
            parameters = _on_host(self.hyper_synthesis, (hyper_symbols + self._medians()).astype("float32"))
        else:
            parameters = np.stack([synthesis(image) for image in hyper_symbols])
        means = parameters[..., self.latent_channels :].astype("float32")
        return scale_indexes(parameters[..., : self.latent_channels]), means if means.size else 0

    def integer_synthesis(self) -> IntegerSynthesis | None:
        """The hyper-synthesis in integers, `IntegerSynthesis`, for files; None where the prior has none.

        It has the weights as they are now.

        Raises:
            keras_ci2p.codec.CodecError: Weights that are not finite, or far too large.
        """
        if self.hyper_synthesis is None:
            return None
        weights = [weight.astype("float32") for weight in self.hyper_synthesis.get_weights()]
        slope = LEAKY_SLOPE if self.hyper_synthesis.means else 0.0
        return IntegerSynthesis(weights[::2], weights[1::2], slope, self._medians())

    def restore_images(self, latents: np.ndarray, image_size: tuple[int, int] | None = None) -> np.ndarray:
        """Images of latents as `decompress` returns them: clipped to 0..255, and cut to `image_size`."""
        images = _in_tiles(self.decode, latents, 1, DOWNSAMPLING)
        height, width = image_size or images.shape[1:3]
        (top, bottom), (left, right) = self._padding(height), self._padding(width)
        if (height + top + bottom, width + left + right) != images.shape[1:3]:
            raise ValueError(
                f"Images of {height} x {width} pixels have no latents of {' x '.join(map(str, latents.shape[1:3]))}. "
                f"Received: image_size={image_size}"
            )
        return images[:, top : top + height, left : left + width].clip(0, 255)

    def crop_latents(self, latents: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """Of latents those that see a pixel of the images, before these were padded from `image_size`."""
        for axis, side in enumerate(image_size, start=1):
            before, _ = self._padding(side)
            latents = latents.take(range(before // DOWNSAMPLING, -(-(before + side) // DOWNSAMPLING)), axis)
        return latents

    def _padding(self, side):
        """Pixels before and after a side of an image, up to a multiple: CompressAI's `compute_padding`."""
        missing = -side % self.downsampling_factor
        return missing // 2, missing - missing // 2

    @property
    def entropy_tables(self) -> EntropyTables:
        """`keras_ci2p.codec.EntropyTables` of the entropy bottleneck: of the latents, or of the hyper-latents.

        They follow the weights: made when they are first needed after a change, once. A preset holds them, so that they
        are the same on every machine. Others that are assigned, as those of a CompressAI checkpoint, serve until the
        weights change.
        """
        self._check_prior()
        key = self.prior_hash()
        if self._tables is None or self._tables[0] != key:
            bottleneck = self.entropy_bottleneck
            matrices, biases, factors = (
                [ops.convert_to_numpy(w) for w in some]
                for some in (bottleneck.matrices, bottleneck.biases, bottleneck.factors)
            )
            self._tables = key, factorized_tables(matrices, biases, factors, ops.convert_to_numpy(bottleneck.quantiles))
        return self._tables[1]

    @entropy_tables.setter
    def entropy_tables(self, tables: EntropyTables) -> None:
        self._check_prior()
        channels = self.entropy_bottleneck.quantiles.shape[0]
        if len(tables.offset) != channels:
            raise CodecError(f"{self.name} needs {channels} tables. Received: {len(tables.offset)}")
        self._tables = self.prior_hash(), tables

    @property
    def gaussian_tables(self) -> EntropyTables | None:
        """`keras_ci2p.codec.EntropyTables` of a hyperprior's latents, one for each of 64 scales; None without one.

        They are the same for all weights. Others can be assigned, as those of a CompressAI checkpoint.
        """
        if self.hyper_synthesis is None:
            return None
        return self._gaussian_tables or gaussian_tables()

    @gaussian_tables.setter
    def gaussian_tables(self, tables: EntropyTables) -> None:
        if self.hyper_synthesis is None:
            raise ValueError(f"The prior of {self.architecture} is no hyperprior: it has no Gaussian tables.")
        if len(tables.offset) != len(SCALES):
            raise CodecError(f"{self.name} needs {len(SCALES)} Gaussian tables. Received: {len(tables.offset)}")
        self._gaussian_tables = tables

    def prior_crc(self) -> int:
        """CRC-32 of what strings are read by: tables, medians, and the weights of a hyperprior's synthesis."""
        crc = _crc_of_floats(self._medians(), self.entropy_tables.crc)
        gaussian = self.gaussian_tables
        if gaussian is not None:
            crc = zlib.crc32(gaussian.crc.to_bytes(4, "little"), crc)
            for weight in self.hyper_synthesis.get_weights():
                crc = _crc_of_floats(weight, crc)
        return crc

    def _medians(self):
        return ops.convert_to_numpy(self.entropy_bottleneck.medians)

    def prior_hash(self) -> bytes:
        """SHA-256 of the bottleneck's weights, 32 bytes, by which tables are known to be theirs."""
        digest = hashlib.sha256()
        for weight in self.entropy_bottleneck.get_weights():
            digest.update(weight.astype("<f4").tobytes())
        return digest.digest()

    def _check_prior(self):
        if self.entropy_bottleneck is None:
            raise ValueError(f"The prior of {self.architecture} is not part of this package.")

    def tables_file(self) -> bytes | None:
        """The tables as bytes, for `load_tables`; None where there is no prior, or no table can be made."""
        if self.entropy_bottleneck is None:
            return None
        try:
            more = {"weights": np.frombuffer(self.prior_hash(), "uint8")}
            if self.gaussian_tables is not None:
                more["gaussian"] = np.frombuffer(self.gaussian_tables.to_bytes(), "uint8")
            return self.entropy_tables.to_bytes(**more)
        except CodecError:
            # Of a training that has diverged: no reason not to save it.
            return None

    def load_tables(self, content: bytes) -> None:
        """Takes stored tables where they are of these weights; else they are made anew when they are needed."""
        try:
            tables, more = read_tables(content)
            if more["weights"].tobytes() == self.prior_hash():
                self.entropy_tables = tables
            if self.hyper_synthesis is not None:
                self.gaussian_tables, _ = read_tables(more["gaussian"].tobytes())
        except (CodecError, KeyError):
            pass


def _crc_of_floats(values, crc):
    return crc_of(np.ascontiguousarray(values, "<f4").view("<i4"), crc)


def _on_host(transform, inputs):
    with backend.no_grad():
        return ops.convert_to_numpy(ops.cast(transform(inputs), "float32"))


def _in_tiles(transform, inputs, input_stride, output_stride):
    """A transform of a batch of images or latents, by tiles with so much around them that their edges do not show.

    Args:
        transform: Function of an array `(batch, height, width, channels)`.
        inputs: Such an array.
        input_stride, output_stride: Rows of the inputs and of the outputs to a row of latents.

    Returns:
        float32 array.
    """
    sides = [side // input_stride for side in inputs.shape[1:3]]
    outputs = None
    for top, left in itertools.product(*(range(0, side, _TILE) for side in sides)):
        starts = [max(start - _MARGIN, 0) for start in (top, left)]
        stops = [min(start + _TILE + _MARGIN, side) for start, side in zip((top, left), sides, strict=True)]
        rows, columns = (slice(a * input_stride, b * input_stride) for a, b in zip(starts, stops, strict=True))
        tile = _on_host(transform, inputs[:, rows, columns])
        if outputs is None:
            outputs = np.empty((len(inputs), *(side * output_stride for side in sides), tile.shape[-1]), "float32")
        # Without the margins.
        inside = [(start - first) * output_stride for start, first in zip((top, left), starts, strict=True)]
        size = _TILE * output_stride
        part = outputs[:, top * output_stride :, left * output_stride :][:, :size, :size]
        part[:] = tile[:, inside[0] :, inside[1] :][:, : part.shape[1], : part.shape[2]]
    return outputs
