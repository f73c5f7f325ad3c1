"""The pictures that a compressor is trained and measured on."""

from pathlib import Path

from keras_ci2p.data import image_folder, open_data
from keras_ci2p.data.crops import middle_crop, random_crop
from keras_ci2p.data.folder import ImageManifest, scan_pictures
from keras_ci2p.data.tfds import PREFIX


def open_pictures(source):
    """The pictures that `source` names: a folder at whatever depth, "tfds:NAME" or an `ImageManifest`.

    Raises:
        DataError: Data that cannot be used as they are.
    """
    if isinstance(source, ImageManifest) or str(source).startswith(PREFIX):
        return open_data(source)
    return scan_pictures(Path(source))


def training_crops(pictures, size, batch_size, seed, num_workers=0):
    """Random crops of the training split, as an endless source of batches; their labels mean nothing."""
    return image_folder(
        pictures,
        split="train",
        image_size=size,
        batch_size=batch_size,
        seed=seed,
        augment=random_crop,
        num_workers=num_workers,
    )


def middle_crops(pictures, size, batch_size):
    """The central crop of each picture, in order."""
    return image_folder(pictures, split="all", image_size=size, batch_size=batch_size, augment=middle_crop)


def held_out(pictures, split="val", most=None):
    """Up to `most` pictures of a split, chosen by their contents alone."""
    pictures = pictures.split(split)
    order = sorted(range(len(pictures)), key=lambda i: pictures.digests[i])
    return pictures.subset(order[:most])
