"""Views of images to latents, and the compressor of a cache: its preset, in it and out of it."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import keras
import numpy as np

from keras_ci2p.data.augmentation import sample_params
from keras_ci2p.data.loader import READ_ERRORS
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.transforms import apply_params, center_crop
from keras_ci2p.layers.compression_transforms import AnalysisTransform
from keras_ci2p.layers.embedding import compressor_config
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.presets import WEIGHTS, open_preset, save_preset
from keras_ci2p.utils import num_cpus, require

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
