"""Photos to latents, and to a teacher's targets, batch by batch."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import keras
import numpy as np

from keras_ci2p.data import DataError, transforms
from keras_ci2p.data.augmentation import draw
from keras_ci2p.extras import require

# Images that a teacher is asked about at a time, by several threads: EfficientNet-Lite2 answers fastest so.
_TEACHER_BATCH = 16


class LatentEncoder:
    """Decodes and augments photos in parallel, ahead of the compressor.

    Args:
        transform: `AnalysisTransform`.
        settings: `CacheSettings`.
        num_threads: Threads that decode and augment; None for one per core.
        targets: `TeacherTargets`, or None.
    """

    def __init__(self, transform, settings, num_threads=None, targets=None):
        # Called in this way, it is compiled on the backends that compile.
        images = keras.Input((*settings.image_size, 3), dtype="uint8", name="images")
        self._model = keras.Model(images, transform(images))
        self._settings = settings
        self._targets = targets
        self._threads = num_threads or os.cpu_count() or 1
        self.transform = transform
        self.latent_shape = self._model.output_shape[1:]
        if transform.is_randomly_initialized:
            warnings.warn("The latents are made with a compressor of random weights.", stacklevel=3)

    def encode(self, photos, split, numbers, views=None):
        """Yields the latents of photos, all views of one after the other, in batches.

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
                parts = range(0, len(images) if teaches else 0, _TEACHER_BATCH)
                # Meanwhile the compressor is at work.
                targets = [pool.submit(self._targets.stored, teacher_images[i : i + _TEACHER_BATCH]) for i in parts]
                filled = np.zeros((size, *images.shape[1:]), "uint8")
                filled[: len(images)] = images
                latents = self._model.predict_on_batch(filled)[: len(images)].astype("float32")
                yield latents, _joined([part.result() for part in targets]) if teaches else None

    def teacher_views(self, photos, numbers):
        """Yields the teacher's views of training photos, uint8 batches: what `encode` shows it."""
        views = range(self._settings.views)
        size = self._targets.teacher.image_size
        for _, images in self._batches(photos, "train", numbers, views, len(views), size):
            yield images

    def _batches(self, photos, split, numbers, views, size, teacher_size):
        """Yields `(images, teacher's images or None)`, loaded ahead by several threads."""
        grain = require("grain", extra="train")
        load = _Views(photos, split, self._settings, views, teacher_size)
        batches = grain.MapDataset.source(numbers).map(load).batch(size // len(views), batch_fn=_concatenate)
        return batches.to_iter_dataset(grain.ReadOptions(self._threads, 2 * self._threads))


def _joined(parts):
    """`TeacherTargets.stored` of a batch from those of its parts."""
    logits, features = zip(*parts, strict=True)
    return np.concatenate(logits), [np.concatenate(maps) for maps in zip(*features, strict=True)]


def _concatenate(elements):
    images, teacher_images = zip(*elements, strict=True)
    return np.concatenate(images), None if teacher_images[0] is None else np.concatenate(teacher_images)


class _Views:
    """Number of a photo to its views, uint8 `(views, height, width, 3)`, and the same views in the teacher's size."""

    def __init__(self, photos, split, settings, views, teacher_size):
        self._photos = photos
        self._settings = settings
        self._is_training = split == "train"
        self._views = views
        self._teacher_size = teacher_size

    def __call__(self, number):
        try:
            photo = self._photos.open(number)
        except OSError as error:
            file = self._photos.files[number]
            raise DataError(f"{file} can no longer be read ({error}). Begin a new cache without it.") from error
        s = self._settings
        if not self._is_training:
            return transforms.center_crop(photo, s.image_size)[None], None
        # Of nothing else than these three, so that it does not matter what is made together or again.
        views = [self._view(photo, np.random.default_rng((s.seed, number, view))) for view in self._views]
        images, teacher_images = zip(*views, strict=True)
        return np.stack(images), None if self._teacher_size is None else np.stack(teacher_images)

    def _view(self, photo, rng):
        """The view, and the same cut from the photo in the teacher's size; not enlarged from the smaller one."""
        s = self._settings
        params = draw(s.augmentation, (photo.height, photo.width), s.image_size, rng)
        image = transforms.apply_draw(photo, params, s.image_size, rng)
        if self._teacher_size is None:
            return image, None
        params = params.scaled(s.image_size, self._teacher_size)
        return image, transforms.apply_draw(photo, params, self._teacher_size, rng)
