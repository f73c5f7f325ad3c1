"""The pictures that every backend gets."""

import itertools

import numpy as np

from keras_ci2p.data import DataError, image_folder, open_data
from keras_ci2p.layers.ci2p_patch_embedding import PATCH_SIZE
from keras_ci2p.models import CLASSIFIERS, CI2PClassifier

SYNTHETIC_CLASSES = 10
_WAVES = 6


def make_pictures(settings):
    """What is trained on and predicted for, as `CompareSettings` say.

    Returns:
        dict of arrays: `images`, uint8 `(steps, batch, height, width, 3)`, RGB in 0..255, augmented; `labels`, float32
        `(steps, batch, classes)`, one-hot; `held_out`, uint8 `(pictures, height, width, 3)`, at most a batch.

    Raises:
        DataError: Data that cannot be used, or fewer training photos than a batch has.
    """
    return _synthetic(settings) if settings.data is None else _photos(settings)


def _photos(settings):
    manifest = open_data(settings.data)
    is_ci2p = issubclass(CLASSIFIERS[settings.model], CI2PClassifier)
    common = {
        "image_size": settings.image_size,
        "batch_size": settings.batch_size,
        "size_multiple": PATCH_SIZE if is_ci2p else 16,
    }
    training = image_folder(manifest, split="train", seed=settings.seed, **common)
    if training.batch_size < settings.batch_size:
        raise DataError(
            f"{settings.data} has {len(training.manifest)} training photos, fewer than a batch. "
            f"Received: batch_size={settings.batch_size}"
        )
    batches = iter(training.repeated())
    images, labels = zip(*itertools.islice(batches, settings.steps), strict=True)
    batches.close()
    held_out, _ = next(iter(image_folder(manifest, split="val", **common)))
    return {
        "images": np.stack(images).astype("uint8"),
        "labels": np.stack(labels),
        "held_out": held_out.astype("uint8"),
    }


def _synthetic(settings):
    rng = np.random.default_rng(settings.seed)
    shape = (settings.steps, settings.batch_size)
    pictures = smooth_pictures((settings.steps + 1) * settings.batch_size, settings.image_size, rng)
    labels = np.eye(SYNTHETIC_CLASSES, dtype="float32")[rng.integers(0, SYNTHETIC_CLASSES, shape)]
    return {
        "images": pictures[settings.batch_size :].reshape(*shape, *pictures.shape[1:]),
        "labels": labels,
        "held_out": pictures[: settings.batch_size],
    }


def smooth_pictures(count, size, rng):
    """Pictures with the slow changes of photos: in each channel a few waves of random direction.

    Args:
        count: Pictures.
        size: Height and width in pixels.
        rng: `numpy.random.Generator`.

    Returns:
        uint8 `(count, size, size, 3)`, RGB in 0..255.
    """
    place = np.linspace(0, 2 * np.pi, size, dtype="float32")
    pictures = np.empty((count, size, size, 3), "uint8")
    for picture in pictures:
        for channel in range(3):
            rows, columns = rng.uniform(-4, 4, (2, _WAVES, 1, 1)).astype("float32")
            phases = rng.uniform(0, 2 * np.pi, (_WAVES, 1, 1)).astype("float32")
            waves = np.cos(rows * place[:, None] + columns * place + phases).mean(axis=0)
            picture[..., channel] = np.clip(128 + 180 * waves, 0, 255)
    return pictures
