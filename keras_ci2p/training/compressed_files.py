"""Compressed files and images as one kind of data: each as what a classifier takes, latents wherever it can be."""

import functools
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from keras_ci2p.annotations import PathLike
from keras_ci2p.codec.file_format import STRIDE, ImageCodec, read_compressed
from keras_ci2p.codec.rans import CodecError
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.convert.zoo import zoo_names
from keras_ci2p.data.augmentation import Augmentation
from keras_ci2p.data.latent_loader import LatentMirror, check_files, check_latent_augmentation, crop_latents
from keras_ci2p.data.loader import READ_ERRORS
from keras_ci2p.data.manifest import in_threads, is_compressed, warn_of_notes
from keras_ci2p.data.transforms import center_crop, decode_image
from keras_ci2p.layers.compression_transforms import AnalysisTransform
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import classified, evaluation_size, predict_filled, ranked
from keras_ci2p.presets import METADATA, list_presets, open_preset, preset_name
from keras_ci2p.utils import user_path


def open_codec(name, tables="weights"):
    """The `ImageCodec` of a compressor, or of the one that a classifier was trained with.

    Args:
        name, tables: As `keras_ci2p.convert.read_compressor` takes them.

    Raises:
        ValueError: No compressor, one that cannot code, or a classifier that does not tell where its own is.
    """
    compressor = read_compressor(name, tables)
    if compressor is None:
        raise ValueError("--compressor names the compressor to code with; none is no choice here.")
    if not isinstance(compressor, Compressor):
        preset = open_preset(name)
        return FileReader(compressor, named=preset.metadata.get("compressor")).own_codec(preset.directory)
    known = name if name in zoo_names() else None
    if known is None and not user_path(name).is_file():
        known = preset_name(open_preset(name).directory)
    return ImageCodec(compressor, known or "")


def known_compressor(name):
    """Returns the name in a file's header, which may say anything; CodecError unless this package knows it."""
    if name not in {*list_presets(), *zoo_names()}:
        of = f"names the compressor {name!r}, which is not known here" if name else "is of a compressor without a name"
        raise CodecError(f"it {of}: give --compressor")
    return name


class FileReader:
    """Reads images and `.ci2p` files for a classifier, these without pixels where they are of its own compressor.

    That is told by the fingerprint of the analysis transform, whatever presets are called. Threads may share it.

    Args:
        analysis: The classifier's `AnalysisTransform`; None for one without, to which all files are images.
        compressor: The `Compressor` of files, or its name as `open_codec` takes it, where neither they nor the
            classifier tell it; or None.
        named: What the classifier's preset calls its compressor, or None.

    Attributes:
        num_decoded: How many files were of other compressors, and decoded to images.
        mirror: `LatentMirror` that `views` flips by, or None.

    Examples:
        >>> model = keras_ci2p.CI2PViT((32, 32, 3), variant="tiny", num_layers=2)
        >>> reader = keras_ci2p.training.FileReader(model.compressor)
        >>> image, note = reader.read("photos/cat/000.png")
        >>> image.size
        (48, 40)
    """

    def __init__(
        self,
        analysis: AnalysisTransform | None,
        compressor: Compressor | PathLike | None = None,
        named: str | None = None,
    ) -> None:
        self._identity = None if analysis is None else analysis.weights_hash()[:16]
        self._codecs, self._opened, self._lock = {}, set(), threading.RLock()
        self._known = {*list_presets(), *zoo_names()}
        if isinstance(compressor, Compressor):
            self._add(ImageCodec(compressor))
        elif compressor is not None:
            self._add(open_codec(str(compressor)))
        # Both may be of files that are here no longer.
        names = filter(None, (named, (getattr(analysis, "source", None) or {}).get("name")))
        self._names = [name for name in names if name in self._known or (user_path(name) / METADATA).is_file()]
        self._decoded, self.mirror = set(), None

    @property
    def num_decoded(self) -> int:
        return len(self._decoded)

    def own_codec(self, where: Any) -> ImageCodec:
        """The `ImageCodec` of the classifier's compressor; ValueError, that `where` does not tell, if not found."""
        codec = self._find(self._identity, None)
        if codec is None:
            raise ValueError(
                f"{where} does not tell where the compressor is that it was trained with. Give it: --compressor"
            )
        return codec

    def read(self, path: PathLike) -> tuple[np.ndarray | Image.Image, str | None]:
        """The latents in a `.ci2p` file of the classifier's own compressor; of any other file its image.

        Returns:
            float32 array `(rows, columns, channels)`, or `PIL.Image.Image` of mode RGB; and what there is to say of the
            image, or None.

        Raises:
            OSError: The file cannot be read.
            CodecError: A damaged `.ci2p` file, or one of a compressor that is not found.
        """
        if not is_compressed(path):
            return decode_image(path)
        content, file, codec = self._opened_file(path)
        if file.compressor == self._identity:
            return codec.latents(content)[0].astype("float32"), None
        # One at a time: of a large photo it takes a gigabyte.
        with self._lock:
            self._decoded.add(str(path))
            return Image.fromarray(codec.decompress(content)), None

    def views(
        self,
        latents: np.ndarray,
        image_size: tuple[int, int],
        augmentation: Augmentation,
        generators: Iterable[np.random.Generator],
    ) -> np.ndarray:
        """Crops of a file's latents, one with each `numpy.random.Generator`: float32 `(views, *grid, channels)`."""
        grid = [side // STRIDE for side in image_size]
        return np.stack([crop_latents(latents, grid, augmentation, rng, self.mirror) for rng in generators])

    def picture(self, path: PathLike) -> Image.Image:
        """The image in a file of any kind, to be looked at: `PIL.Image.Image`; raises as `read`."""
        if not is_compressed(path):
            return decode_image(path)[0]
        content, _, codec = self._opened_file(path)
        return Image.fromarray(codec.decompress(content))

    def warn_of_decoded(self) -> None:
        """Warns once, with their number, of files that were decoded and encoded anew."""
        if self.num_decoded:
            warnings.warn(
                f"Files of other compressors, which were decoded to pixels and encoded anew: {self.num_decoded:,}",
                stacklevel=3,
            )

    def _opened_file(self, path):
        content = user_path(path).read_bytes()
        file = read_compressed(content)
        codec = self._find(file.compressor, file.name)
        if codec is None and file.compressor == self._identity:
            raise CodecError("it is of the classifier's own compressor, and nothing tells where that is: --compressor")
        if codec is None:
            known_compressor(file.name)
            raise CodecError(f"it is of another compressor than {file.name!r}, which it names: give --compressor")
        return content, file, codec

    def _find(self, identity, name):
        """The `ImageCodec` of a compressor; None where none is of it that was given, or is known by a name."""
        with self._lock:
            for candidate in (*([name] if name in self._known else []), *self._names):
                if identity not in self._codecs and candidate not in self._opened:
                    self._opened.add(candidate)
                    self._add(open_codec(candidate))
            return self._codecs.get(identity)

    def _add(self, codec):
        self._codecs.setdefault(codec.identity, codec)


def classify_files(model, reader, paths, top, batch_size, on_unreadable):
    """Yields what `keras_ci2p.models.image_classifier.classified` does, of images and of `.ci2p` files.

    Args:
        model: The classifier.
        reader: `FileReader` for it.
        paths, top, batch_size, on_unreadable: As in `classified`.
    """
    if not any(map(is_compressed, paths)):
        yield from classified(model, paths, top, batch_size, on_unreadable)
        return
    for path, outputs in outputs_of(model, reader, paths, batch_size, on_unreadable):
        yield path, ranked(model, outputs[None], top)[0]


def latent_reader(images, compressor, settings, teacher=None):
    """The `FileReader` that makes latents of the `.ci2p` files among images, for a cache; None without such files.

    Args:
        images: `ImageManifest`.
        compressor: `Compressor`, or an `AnalysisTransform` that tells where it is from.
        settings: `LatentCacheConfig`.
        teacher: What looks at the images too, or None.

    Raises:
        DataError: Files that are smaller than the views; an augmentation or a teacher, which need pixels.
    """
    if not images.compressed:
        return None
    if teacher is not None:
        images.check_pixels("A teacher")
    check_latent_augmentation(settings.augmentation)
    check_files(images, settings.image_size)
    is_whole = isinstance(compressor, Compressor)
    reader = FileReader(compressor.analysis if is_whole else compressor, compressor if is_whole else None)
    if settings.augmentation.flip:
        reader.mirror = LatentMirror.fit(reader.own_codec("The compressor"), images)
    return reader


# Batches that are read before they are computed, so that files of one size can be computed together.
_AHEAD = 4
# Of classifiers that are kept for latents of other grids.
_MOST_SIZES = 8


def outputs_of(model, reader, paths, batch_size, on_unreadable, image_size=None):
    """Yields `(path, outputs)` of each file in order, with the classifier's outputs `(num_classes,)`.

    Images are cut as `center_crop` does. Latents of another grid than the classifier's are cropped to whole tokens, and
    classified as they are; those of one shape in one batch.

    Args:
        model: The classifier.
        reader: `FileReader` for it.
        paths: List of files.
        batch_size: Files computed at a time.
        on_unreadable: Function of a path that cannot be read and the error; it is left out.
        image_size: `(height, width)` of the images; None for the model's.
    """
    size, notes = image_size or evaluation_size(model), []
    latents_of = functools.lru_cache(_MOST_SIZES)(lambda grid: model.latent_classifier_of(grid))

    def read(path):
        try:
            opened, note = reader.read(path)
            is_image = isinstance(opened, Image.Image)
            return (center_crop(opened, size) if is_image else _whole_tokens(opened, model.patch_size)), note
        except READ_ERRORS as error:
            return error, None

    for first in range(0, len(paths), _AHEAD * batch_size):
        some = paths[first : first + _AHEAD * batch_size]
        inputs, shapes = [], {}
        for i, (array, note) in enumerate(in_threads(read, some)):
            inputs.append(array)
            if note:
                notes.append((str(some[i]), note))
            if not isinstance(array, Exception):
                shapes.setdefault((array.dtype == "uint8", array.shape), []).append(i)
        outputs = {}
        for (is_image, shape), places in shapes.items():
            network = model if is_image else latents_of(shape[:2])
            for start in range(0, len(places), batch_size):
                part = places[start : start + batch_size]
                # Of all the numbers of files that may be left, few sizes are compiled.
                filled = min(batch_size, 1 << (len(part) - 1).bit_length())
                computed = predict_filled(network, np.stack([inputs[i] for i in part]), filled)
                outputs.update(zip(part, computed, strict=True))
        for i, path in enumerate(some):
            if i in outputs:
                yield path, outputs[i]
            else:
                on_unreadable(path, inputs[i])
    warn_of_notes("What was classified", notes)
    reader.warn_of_decoded()


def _whole_tokens(latents, patch_size):
    """The central latents of which whole tokens are made; CodecError where there are none."""
    token = patch_size // STRIDE
    grid = [side // token * token for side in latents.shape[:2]]
    if 0 in grid:
        raise CodecError(f"it is smaller than {patch_size} pixels, of which a token is made")
    return crop_latents(latents, grid)
