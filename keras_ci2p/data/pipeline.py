"""Photos of a folder as batches for `fit`, decoded and augmented in parallel."""

from pathlib import Path

from keras_ci2p.data.folder import DataError, ImageManifest, scan_folder
from keras_ci2p.data.transforms import center_crop, random_resized_crop
from keras_ci2p.extras import require


def image_folder(
    root,
    *,
    image_size=256,
    batch_size=32,
    split="train",
    seed=0,
    augment=None,
    num_threads=None,
    size_multiple=16,
):
    """The photos below `root/<class>/` as batches of images and one-hot labels.

    The result goes to `fit`, `evaluate` and `predict` as it is, on every backend. Going through it once is one
    epoch: each epoch of the training split has a new order and new augmentations, the same for the same seed. The
    training split drops the rest that fills no batch, so that the shapes stay the same; the others keep it.

    Args:
        root: Folder with one subfolder per class, or an `ImageManifest` of `scan_folder`.
        image_size: Height and width of the images, or `(height, width)`.
        batch_size: Images in a batch.
        split: "train", "val" or "all" (`keras_ci2p.data.validation_mask`).
        seed: Seed of order and augmentation, an integer in 0..2**32-1.
        augment: Function `(PIL image, (height, width), numpy generator) -> uint8 array`; None for the split's own
            (`random_resized_crop` for training, else the central crop); False for the central crop.
        num_threads: Threads that decode; None for one per core.
        size_multiple: What height and width must be multiples of: a model that takes any size cannot check them in
            compiled code. 32 for `CI2PViT`, 16 for `ViT`.

    Returns:
        A grain `IterDataset` of `(images, labels)`: float32 `(batch, height, width, 3)`, RGB in 0..255, and
        float32 `(batch, classes)`. It has `class_names`, `manifest`, `steps_per_epoch`, `epoch` and
        `repeated(initial_epoch)`, an endless dataset for `fit(..., steps_per_epoch=...)`.

    Raises:
        DataError: No such folder, fewer than two classes, an empty split, a wrong size.
        ImportError: grain is not installed.
    """
    require("grain", extra="train")
    from keras_ci2p.data.grain_dataset import EpochDataset
    from keras_ci2p.data.photo_examples import PhotoExamples

    if batch_size < 1:
        raise DataError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1 or any(side % size_multiple for side in size):
        raise DataError(
            f"`image_size` must be one or two positive multiples of {size_multiple}. Received: image_size={image_size}"
        )
    is_training = split == "train"
    if augment is None and is_training:
        augment = random_resized_crop
    manifest = root if isinstance(root, ImageManifest) else scan_folder(Path(root))
    manifest = manifest.split(split)
    return EpochDataset(
        PhotoExamples(manifest, size, augment or _center_crop),
        batch_size=batch_size,
        shuffle=is_training,
        drop_remainder=is_training,
        seed=seed,
        num_threads=num_threads,
        manifest=manifest,
        class_names=manifest.class_names,
    )


def _center_crop(image, image_size, rng):
    return center_crop(image, image_size)
