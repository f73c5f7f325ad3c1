"""Photos of a folder as batches for `fit`, decoded and augmented in parallel."""

import functools

from keras_ci2p.data import transforms
from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation
from keras_ci2p.data.folder import DataError
from keras_ci2p.data.source import open_data
from keras_ci2p.extras import require


def image_folder(
    root,
    *,
    image_size=256,
    batch_size=32,
    split="train",
    seed=0,
    augment=None,
    augment_on="host",
    in_memory=False,
    mixup=0.0,
    cutmix=0.0,
    mix_probability=1.0,
    targets=None,
    num_threads=None,
    num_workers=0,
    shard=(0, 1),
    size_multiple=16,
):
    """The photos below `root/<class>/` as batches of images and one-hot labels.

    The result goes to `fit`, `evaluate` and `predict` as it is, on every backend. Going through it once is one
    epoch: each epoch of the training split has a new order and new augmentations, the same for the same seed. The
    training split drops the rest that fills no batch, so that the shapes stay the same; the others keep it.

    Args:
        root: What `open_data` takes: a folder with one subfolder per class, or with such folders train, val and test;
            "tfds:NAME", or an `ImageManifest`.
        image_size: Height and width of the images, or `(height, width)`.
        batch_size: Images in a batch.
        split: "train", "val", "test" or "all". Data that are not split already have no "test", and
            `keras_ci2p.data.validation_mask` tells "train" from "val".
        seed: Seed of order and augmentation, an integer in 0..2**32-1.
        augment: `Augmentation`, or a function `(PIL image, (height, width), numpy generator) -> uint8 array`; None for
            the split's own (`CROP_AND_FLIP` for training, else the central crop); False for the central crop.
        augment_on: "host", or "device": the training photos stay as they are, and each batch holds what was drawn for
            them, for `keras_ci2p.training.AugmentedClassifier`. Takes an `Augmentation`.
        in_memory: With "device", whether to keep the training photos as they go to the device, so that each is decoded
            once; 18,000 of them need 8 GB for images of 256 px.
        mixup, cutmix: Parameters of the Beta distributions of Mixup and CutMix; 0 for none (paper: 0.8 and 1). Only the
            training split is mixed.
        mix_probability: With which a batch is mixed.
        targets: Function from a batch of training images, float32 `(batch, height, width, 3)` in 0..255, to a dict of
            arrays, such as what a teacher says of them. The labels then are a dict of these and of `labels`; what
            has the shape `(batch, rows, columns, channels)` is mixed as the images are, all else as the labels.
        num_threads: Threads that decode; None for one per core.
        num_workers: Processes that decode, in place of threads of this one; 0 for none.
        shard: `(index, count)`: of each batch only every `count`-th image, from the `index`-th on.
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
    from keras_ci2p.data.mix_batches import MixBatches
    from keras_ci2p.data.photo_examples import PhotoExamples

    if batch_size < 1:
        raise DataError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1 or any(side % size_multiple for side in size):
        raise DataError(
            f"`image_size` must be one or two positive multiples of {size_multiple}. Received: image_size={image_size}"
        )
    is_training = split == "train"
    if in_memory and (augment_on != "device" or num_workers):
        raise DataError(
            '`in_memory` goes with augment_on="device" and without worker processes, which would keep the photos once '
            f"each. Received: augment_on={augment_on!r}, num_workers={num_workers}"
        )
    if targets is not None and (augment_on == "device" or num_workers):
        raise DataError(
            "`targets` are made of images that are augmented on the host, by threads of this process. Received: "
            f"augment_on={augment_on!r}, num_workers={num_workers}"
        )
    if augment is None and is_training:
        augment = CROP_AND_FLIP
    manifest = open_data(root).split(split)
    mixes = is_training and bool(mixup or cutmix)
    if is_training and augment_on == "device":
        from keras_ci2p.data.raw_examples import DrawMix, RawExamples

        if not isinstance(augment, Augmentation):
            raise DataError(f"What is augmented on the device is an `Augmentation`. Received: augment={augment!r}")
        examples = RawExamples(manifest, size, augment, in_memory=in_memory)
        mix = DrawMix(mixup, cutmix, size, mix_probability) if mixes else None
    else:
        examples = PhotoExamples(manifest, size, _transform(augment), fill=is_training)
        mix = MixBatches(mixup, cutmix, mix_probability) if mixes else None
    return EpochDataset(
        examples,
        batch_size=batch_size,
        shuffle=is_training,
        drop_remainder=is_training,
        seed=seed,
        targets=targets if is_training else None,
        mix=mix,
        num_threads=num_threads,
        num_workers=num_workers,
        shard=shard,
        manifest=manifest,
        class_names=manifest.class_names,
    )


def _transform(augment):
    if isinstance(augment, Augmentation):
        # Not a closure: worker processes get it pickled.
        return functools.partial(_augment, augment)
    return augment or _center_crop


def _augment(augmentation, image, image_size, rng):
    return transforms.augment(image, image_size, rng, augmentation)


def _center_crop(image, image_size, rng):
    return transforms.center_crop(image, image_size)
