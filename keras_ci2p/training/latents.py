"""Latents of files: of compressed ones as they hold them, of images by the compressor; and that of a cache."""

import functools
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_ci2p.codec.file_format import STRIDE, ImageCodec, read_compressed
from keras_ci2p.codec.rans import CodecError
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data.augmentation import Augmentation, sample_params
from keras_ci2p.data.latent_loader import LatentMirror, check_files, check_latent_augmentation, crop_latents
from keras_ci2p.data.loader import READ_ERRORS
from keras_ci2p.data.manifest import DataError, in_threads, is_compressed, warn_of_notes
from keras_ci2p.data.transforms import apply_params, center_crop, decode_image
from keras_ci2p.layers.compression_transforms import AnalysisTransform
from keras_ci2p.layers.embedding import compressor_config
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import classified, evaluation_size, predict_filled, ranked
from keras_ci2p.names import zoo_names
from keras_ci2p.presets import METADATA, WEIGHTS, list_presets, open_preset, preset_name, save_preset
from keras_ci2p.utils import PathLike, num_cpus, require, user_path


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


# Images that a teacher is asked about at a time, by several threads: EfficientNet-Lite2 answers fastest so.
_TEACHER_BATCH = 16


class LatentEncoder:
    """Decodes and augments images in parallel, ahead of the compressor.

    Args:
        transform: `AnalysisTransform`.
        settings: `LatentCacheConfig`.
        num_threads: Threads that decode and augment; None for one per CPU of this process.
        targets: `TeacherTargets`, or None.
        reader: What `latent_reader` gives, for `.ci2p` files among the images.
    """

    def __init__(self, transform, settings, num_threads=None, targets=None, reader=None):
        # Called in this way, it is compiled on the backends that compile.
        images = keras.Input((*settings.image_size, 3), dtype="uint8", name="images")
        self._model = keras.Model(images, transform(images))
        self._settings = settings
        self._targets = targets
        self._reader = reader
        self._threads = num_threads or num_cpus()
        self.transform = transform
        self.latent_shape = self._model.output_shape[1:]
        if transform.is_randomly_initialized:
            warnings.warn("The latents are made with a compressor of random weights.", stacklevel=3)

    def encode(self, photos, split, numbers, views=None):
        """Yields the latents of images, all views of one after the other, in batches.

        Args:
            photos: `ImageManifest` of the split.
            split: "train" for the augmented views, "val" for the central crop.
            numbers: Which of the photos.
            views: Numbers of the training views, a range; None for those of the settings.

        Yields:
            `(latents, targets)`: float32 `(batch, height / 16, width / 16, channels)`, as many in all batches but the
            last; `TeacherTargets.stored` of the same views, None without a teacher and for validation.
        """
        views = range(self._settings.views) if views is None else views
        views = views if split == "train" else range(1)
        teaches = self._targets is not None and split == "train"
        teacher_size = self._targets.teacher.image_size if teaches else None
        # Always of one shape: compiled once, and the same arithmetic.
        size = replace(self._settings, views=len(views) if split == "train" else self._settings.views).batch_images
        with ThreadPoolExecutor(self._threads) as pool:
            for images, teacher_images in self._batches(photos, split, numbers, views, size, teacher_size):
                parts = range(0, len(teacher_images) if teaches else 0, _TEACHER_BATCH)
                # Meanwhile the compressor is at work.
                targets = [pool.submit(self._targets.stored, teacher_images[i : i + _TEACHER_BATCH]) for i in parts]
                latents = self._encoded(images, size)
                yield latents, _joined([part.result() for part in targets]) if teaches else None

    def _encoded(self, views, size):
        """The latents of a batch: of the views of each image, uint8 images or float32 latents."""
        images = [some for some in views if some.dtype == "uint8"]
        if images:
            images, each = np.concatenate(images), len(images[0])
            filled = np.zeros((size, *images.shape[1:]), "uint8")
            filled[: len(images)] = images
            latents = self._model.predict_on_batch(filled)[: len(images)].astype("float32")
            encoded = iter(latents.reshape(-1, each, *latents.shape[1:]))
        return np.concatenate([next(encoded) if some.dtype == "uint8" else some for some in views])

    def teacher_views(self, photos, numbers):
        """Yields the teacher's views of training images, uint8 batches: what `encode` shows it."""
        views = range(self._settings.views)
        size = self._targets.teacher.image_size
        for _, images in self._batches(photos, "train", numbers, views, len(views), size):
            yield images

    def _batches(self, photos, split, numbers, views, size, teacher_size):
        """Yields `(list of the images' views, teacher's images or None)`, loaded ahead by several threads."""
        grain = require("grain", extra="train")
        load = _Views(photos, split, self._settings, views, teacher_size, self._reader)
        batches = grain.MapDataset.source(numbers).map(load).batch(size // len(views), batch_fn=_concatenate)
        return batches.to_iter_dataset(grain.ReadOptions(self._threads, 2 * self._threads))


def _joined(parts):
    """`TeacherTargets.stored` of a batch from those of its parts."""
    logits, features = zip(*parts, strict=True)
    return np.concatenate(logits), [np.concatenate(maps) for maps in zip(*features, strict=True)]


def _concatenate(elements):
    images, teacher_images = zip(*elements, strict=True)
    return list(images), None if teacher_images[0] is None else np.concatenate(teacher_images)


class _Views:
    """Number of an image to its views, uint8 `(views, height, width, 3)`, and the same views in the teacher's size.

    Of a `.ci2p` file of the compressor the views are latents, float32 `(views, height / 16, width / 16, channels)`.
    """

    def __init__(self, photos, split, settings, views, teacher_size, reader=None):
        self._photos = photos
        self._read = photos.open if reader is None else lambda i: reader.read(photos.root / photos.files[i])[0]
        self._reader = reader
        self._settings = settings
        self._is_training = split == "train"
        self._views = views
        self._teacher_size = teacher_size

    def __call__(self, number):
        try:
            photo = self._read(number)
        except READ_ERRORS as error:
            file = self._photos.files[number]
            raise DataError(f"{file} can no longer be read ({error}). Begin a new cache without it.") from error
        s = self._settings
        # Of nothing else than these three, so that it does not matter what is made together or again.
        generators = [np.random.default_rng((s.seed, number, view)) for view in self._views]
        if isinstance(photo, np.ndarray):
            augmentation = s.augmentation if self._is_training else None
            return self._reader.views(photo, s.image_size, augmentation, generators), None
        if not self._is_training:
            return center_crop(photo, s.image_size)[None], None
        views = [self._view(photo, rng) for rng in generators]
        images, teacher_images = zip(*views, strict=True)
        return np.stack(images), None if self._teacher_size is None else np.stack(teacher_images)

    def _view(self, photo, rng):
        """The view, and the same cut from the image in the teacher's size; not enlarged from the smaller one."""
        s = self._settings
        params = sample_params(s.augmentation, (photo.height, photo.width), s.image_size, rng)
        image = apply_params(photo, params, s.image_size, rng)
        if self._teacher_size is None:
            return image, None
        params = params.scaled(s.image_size, self._teacher_size)
        return image, apply_params(photo, params, self._teacher_size, rng)


_ANALYSIS = keras.saving.get_registered_name(AnalysisTransform)


def analysis_of(compressor):
    """The `AnalysisTransform` of a `Compressor`; one that is given as it is."""
    return compressor.analysis if isinstance(compressor, Compressor) else compressor


def write_compressor(directory, compressor):
    """Writes a `Compressor`, or an `AnalysisTransform` where there is no more, as a preset."""
    if isinstance(compressor, Compressor):
        compressor.save_to_preset(directory)
        return
    config = {"registered_name": _ANALYSIS, "config": compressor_config(compressor)}
    save_preset(directory, config, None, {WEIGHTS: _as_model(compressor).save_weights}, metadata={})


def cached_compressor(cache):
    """The compressor that made a latent cache, as `CI2PViT(compressor=...)` takes it.

    Args:
        cache: `keras_ci2p.data.LatentCache`.

    Returns:
        `Compressor`, or `AnalysisTransform` where only that was known.

    Raises:
        keras_ci2p.presets.PresetError: It is missing or damaged.
        DataError: It is not the one that made the latents.
    """
    preset = open_preset(cache.compressor_preset)
    if preset.registered_name() == _ANALYSIS:
        compressor = AnalysisTransform(**preset.config(_ANALYSIS, "an AnalysisTransform"))
        model = _as_model(compressor)
        with preset.reading(WEIGHTS) as path:
            model.load_weights(path)
    else:
        compressor = Compressor.from_preset(preset)
    cache.check_compressor(analysis_of(compressor))
    return compressor


def _as_model(transform):
    """Layers have no weight files of their own."""
    images = keras.Input((None, None, 3), name="images")
    return keras.Model(images, transform(images))
