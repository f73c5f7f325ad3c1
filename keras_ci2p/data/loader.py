"""Loads batches of images from a folder, in threads or processes."""

import functools
import warnings
from itertools import cycle, islice

import grain
import numpy as np
from PIL import Image

from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation, collate, draw
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.sources import open_data
from keras_ci2p.data.transforms import augment, center_crop
from keras_ci2p.data.workers import WorkerDataset
from keras_ci2p.utils import num_cpus, require


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
        num_threads: Threads that decode; None for one per CPU of this process.
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
    from keras_ci2p.data.mixup import MixBatches

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
        from keras_ci2p.data.mixup import DrawMix

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
    return augment(image, image_size, rng, augmentation)


def _center_crop(image, image_size, rng):
    return center_crop(image, image_size)


class EpochDataset(grain.IterDataset):
    """Batches of examples; each time it is gone through, the next epoch.

    Args:
        examples: grain `RandomMap` from an index to one example, with `__len__` and `stack(list of examples)`, the
            batch.
        batch_size: Examples in a batch, over all shards.
        shuffle: Whether each epoch has a new order.
        drop_remainder: Whether to drop the rest that fills no batch.
        seed: Of order and augmentation.
        targets: Function from a batch's inputs to a dict of arrays; the labels become a dict of those and of `labels`,
            before the batch is mixed. None for the labels alone.
        mix: grain `RandomMap` from batch to batch, or None.
        num_threads: Threads that load, in each worker where there are any; None for one per CPU of this
            process, or per worker.
        num_workers: Processes that load; 0 to load in this one. `examples` and `mix` are pickled for them, and a script
            that starts them must guard its main part by `if __name__ == "__main__":`.
        shard: `(index, count)`: of each batch only every `count`-th example, from the `index`-th on.
        **attributes: Become attributes.
    """

    def __init__(
        self,
        examples,
        *,
        batch_size,
        shuffle,
        drop_remainder,
        seed,
        targets=None,
        mix=None,
        num_threads=None,
        num_workers=0,
        shard=(0, 1),
        **attributes,
    ):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        index, count = shard
        self.batch_size = min(batch_size, len(examples))
        if self.batch_size % count:
            raise ValueError(f"A batch of {self.batch_size} examples cannot be shared out evenly among {count}.")
        self.epoch = 0
        indices = grain.MapDataset.range(len(examples)).seed(seed)
        if shuffle:
            indices = indices.shuffle()
        if drop_remainder:
            indices = indices[: len(examples) // self.batch_size * self.batch_size]
        # Batched before it is repeated: no batch holds examples of two epochs.
        loaded = indices.random_map(examples)[index::count]
        batches = loaded.batch(self.batch_size // count, batch_fn=examples.stack)
        if targets is not None:
            batches = batches.map(_AddTargets(targets))
        self._batches = batches if mix is None else batches.random_map(mix)
        self.steps_per_epoch = len(self._batches)
        self._num_workers = num_workers
        threads = num_threads or (1 if num_workers else num_cpus())
        self._read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def __iter__(self):
        return _EpochIterator(self)

    def repeated(self, initial_epoch=0):
        """An endless grain `IterDataset` that begins with the given epoch."""
        return self._from(initial_epoch * self.steps_per_epoch)

    def repeated_from_batch(self, batch):
        """An endless grain `IterDataset` that begins with the given batch, counted through all epochs."""
        return self._from(batch)

    def one_epoch(self, epoch):
        """A grain `IterDataset` of one epoch, always the same."""
        return self._from(epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch)

    def _from(self, first, end=None):
        batches = self._batches.repeat()[first:end]
        batches = batches.to_iter_dataset(self._read_options)
        return WorkerDataset(batches, self._num_workers) if self._num_workers else batches

    def __str__(self):
        return f"EpochDataset({self.steps_per_epoch} batches of {self.batch_size})"


class _AddTargets(grain.transforms.Map):
    """`(inputs, labels)` to `(inputs, {"labels": labels, ...})` with what a function makes of the inputs."""

    def __init__(self, targets):
        self._targets = targets

    def map(self, element):
        inputs, labels = element
        return inputs, {"labels": labels, **self._targets(inputs)}


class _EpochIterator(grain.DatasetIterator):
    """One epoch. The dataset's counter moves on when it is used up: a look at the first batches does not count."""

    def __init__(self, dataset):
        super().__init__()
        self._dataset = dataset
        self._epoch = dataset.epoch
        self._batches = iter(dataset.one_epoch(self._epoch))

    def __next__(self):
        try:
            return next(self._batches)
        except StopIteration:
            self._dataset.epoch = self._epoch + 1
            raise

    def close(self):
        self._batches.close()
        super().close()

    def get_state(self):
        return {"epoch": self._epoch, "batches": self._batches.get_state()}

    def set_state(self, state):
        self._epoch = state["epoch"]
        self._batches = iter(self._dataset.one_epoch(self._epoch))
        self._batches.set_state(state["batches"])


_UNREADABLE = "unreadable"


class PhotoExamples(grain.transforms.RandomMap):
    """Index to `(image, one-hot label)`; to `_UNREADABLE` where the photo can no longer be read.

    Args:
        manifest: `ImageManifest`.
        image_size: `(height, width)` of the images.
        transform: Function `(PIL image, image_size, numpy generator) -> uint8 array`.
        fill: Whether others of the batch take the places of unreadable photos, so that it keeps its size; else they are
            left out.
    """

    def __init__(self, manifest, image_size, transform, fill=False):
        self._fill = fill
        self._manifest = manifest
        self._labels = np.eye(len(manifest.class_names), dtype="float32")
        self._image_size = image_size
        self._transform = transform

    def __len__(self):
        return len(self._manifest)

    def random_map(self, element, rng):
        try:
            image = self._manifest.open(element)
        except OSError as error:
            # It was readable when the data were scanned; a long run must not end for it.
            file = self._manifest.files[element]
            warnings.warn(f"{file} can no longer be read and is left out: {error}", stacklevel=2)
            return _UNREADABLE
        return self._transform(image, self._image_size, rng), self._labels[self._manifest.labels[element]]

    def stack(self, elements):
        readable = self.readable(elements)
        if not readable:
            empty = np.empty((0, *self._image_size, 3), "float32")
            return empty, np.empty((0, len(self._labels)), "float32")
        images, labels = zip(*readable, strict=True)
        return np.stack(images, dtype="float32"), np.stack(labels)

    def readable(self, elements):
        """The elements that could be read."""
        readable = [element for element in elements if element is not _UNREADABLE]
        missing = len(elements) - len(readable)
        return readable + list(islice(cycle(readable), missing)) if self._fill else readable


class RawExamples(PhotoExamples):
    """Index to `((photo, source size, Draw), one-hot label)`; the batch is what `BatchAugmentation` takes, and labels.

    The draws are those that `PhotoExamples` with the same seed carries out itself.

    Args:
        manifest: As `PhotoExamples` takes it.
        image_size: `(height, width)` of the augmented images.
        augmentation: `Augmentation`.
        photo_size: `(height, width)` to which whole photos are squeezed; None for one and a half times `image_size`.
            A larger one keeps more detail in small crops, but aliases in large ones.
        in_memory: Whether to keep the squeezed photos, so that each is decoded once. For threads: processes would keep
            one each. 18,000 photos of 384 x 384 need 8 GB.
    """

    def __init__(self, manifest, image_size, augmentation, photo_size=None, in_memory=False):
        self._photo_size = tuple(photo_size or (side * 3 // 2 for side in image_size))
        self._augmentation = augmentation
        photos = SqueezedPhotos(manifest, self._photo_size)
        super().__init__(InMemory(photos) if in_memory else photos, image_size, self._draw, fill=True)

    def _draw(self, photo, image_size, rng):
        pixels, source_size = photo
        return pixels, source_size, draw(self._augmentation, source_size, image_size, rng)

    def stack(self, elements):
        readable = self.readable(elements)
        photos = [photo for (photo, _, _), _ in readable]
        source_sizes = [size for (_, size, _), _ in readable]
        draws = [drawn for (_, _, drawn), _ in readable]
        labels = [label for _, label in readable]
        inputs = {
            "images": np.array(photos, "uint8").reshape(-1, *self._photo_size, 3),
            **collate(self._augmentation, draws, source_sizes, self._image_size),
        }
        return inputs, np.array(labels, "float32").reshape(-1, len(self._labels))


class SqueezedPhotos:
    """A manifest whose `open` gives `(uint8 array of one size, (height, width) of the photo itself)`."""

    def __init__(self, manifest, photo_size):
        self._manifest = manifest
        self.photo_size = photo_size
        self.class_names, self.files, self.labels = manifest.class_names, manifest.files, manifest.labels

    def __len__(self):
        return len(self._manifest)

    def open(self, index):
        height, width = self.photo_size
        photo = self._manifest.open(index)
        squeezed = photo.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(squeezed), (photo.height, photo.width)


class InMemory:
    """`SqueezedPhotos` that are opened once and kept."""

    def __init__(self, photos):
        self._photos = photos
        self.class_names, self.files, self.labels = photos.class_names, photos.files, photos.labels
        # The system hands out memory as it is written.
        self._pixels = np.empty((len(photos), *photos.photo_size, 3), "uint8")
        self._source_sizes = [None] * len(photos)

    def __len__(self):
        return len(self._photos)

    def open(self, index):
        if self._source_sizes[index] is None:
            # The size last: it says that the pixels are there.
            self._pixels[index], self._source_sizes[index] = self._photos.open(index)
        return self._pixels[index], self._source_sizes[index]
