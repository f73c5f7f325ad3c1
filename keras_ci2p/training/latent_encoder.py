"""Photos to latents, batch by batch."""

import os
import warnings

import keras
import numpy as np

from keras_ci2p.data import DataError, transforms
from keras_ci2p.extras import require


class LatentEncoder:
    """Decodes and augments photos in parallel, ahead of the compressor.

    Args:
        transform: `AnalysisTransform`.
        settings: `CacheSettings`.
        num_threads: Threads that decode and augment; None for one per core.
    """

    def __init__(self, transform, settings, num_threads=None):
        # Called in this way, it is compiled on the backends that compile.
        images = keras.Input((*settings.image_size, 3), dtype="uint8", name="images")
        self._model = keras.Model(images, transform(images))
        self._settings = settings
        self._threads = num_threads or os.cpu_count() or 1
        self.transform = transform
        self.latent_shape = self._model.output_shape[1:]
        self.photos_per_batch = settings.batch_images // settings.views
        if transform.is_randomly_initialized:
            warnings.warn("The latents are made with a compressor of random weights.", stacklevel=3)

    def latents(self, photos, split, numbers):
        """Yields the latents of photos, all views of one after the other, in batches.

        Args:
            photos: `ImageManifest` of the split.
            split: "train" for the augmented views, "val" for the central crop.
            numbers: Which of the photos.

        Yields:
            float32 `(batch, height / 16, width / 16, channels)`; all batches but the last are of `batch_images`.
        """
        grain = require("grain", extra="train")
        size = self._settings.batch_images
        views = _Views(photos, split, self._settings)
        batches = grain.MapDataset.source(numbers).map(views).batch(size // views.count, batch_fn=np.concatenate)
        for images in batches.to_iter_dataset(grain.ReadOptions(self._threads, 2 * self._threads)):
            # Always of one shape: compiled once, and the same arithmetic.
            filled = np.zeros((size, *images.shape[1:]), "uint8")
            filled[: len(images)] = images
            yield self._model.predict_on_batch(filled)[: len(images)].astype("float32")


class _Views:
    """Number of a photo to its views, uint8 `(views, height, width, 3)`."""

    def __init__(self, photos, split, settings):
        self._photos = photos
        self._settings = settings
        self._is_training = split == "train"
        self.count = settings.views if self._is_training else 1

    def __call__(self, number):
        try:
            photo = self._photos.open(number)
        except OSError as error:
            file = self._photos.files[number]
            raise DataError(f"{file} can no longer be read ({error}). Begin a new cache without it.") from error
        s = self._settings
        if not self._is_training:
            return transforms.center_crop(photo, s.image_size)[None]
        # Of nothing else than these three, so that it does not matter what is made together or again.
        generators = (np.random.default_rng((s.seed, number, view)) for view in range(s.views))
        return np.stack([transforms.augment(photo, s.image_size, rng, s.augmentation) for rng in generators])
