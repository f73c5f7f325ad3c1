"""Loads batches of images and labels, in threads or processes."""

import functools
import warnings
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from keras_ci2p.codec.rans import CodecError
from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation, Mixup, SampleMixup, collate_params, sample_params
from keras_ci2p.data.manifest import DataError, ImageManifest
from keras_ci2p.data.sources import open_data
from keras_ci2p.data.transforms import as_image_size, center_crop
from keras_ci2p.data.transforms import augment as augment_image
from keras_ci2p.data.workers import WorkerDataset
from keras_ci2p.utils import PathLike, num_cpus, require

if TYPE_CHECKING:
    import grain
else:
    grain = require("grain", extra="train")


def image_folder(
    root: ImageManifest | PathLike,
    *,
    image_size: int | tuple[int, int] = 256,
    batch_size: int = 32,
    split: str = "train",
    seed: int = 0,
    augment: Augmentation | Callable | bool | None = None,
    augment_on: str = "host",
    in_memory: bool = False,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
    targets: Callable | None = None,
    num_threads: int | None = None,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    patch_size: int = 16,
    class_names: Sequence[str] | None = None,
    size_multiple: int | None = None,
) -> "DataLoader":
    """Loads the images below `root/<class>/` as batches of images and one-hot labels, for `fit`, `evaluate`, `predict`.

    Pixels are promised: of `.ci2p` files, which hold latents, `latent_folder` makes batches.

    Args:
        root: What `open_data` takes; for several splits the manifest it returns, since it reads and hashes every file.
        image_size: Height and width of the images, or `(height, width)`.
        batch_size: Images in a batch.
        split: "train", "val", "test" or "all", as in `ImageManifest.split`.
        seed: Seed of order and augmentation, an integer in 0..2**32-1.
        augment: `Augmentation`, or a function `(PIL image, (height, width), numpy generator) -> uint8 array`; None for
            `CROP_AND_FLIP` in training and `center_crop` elsewhere; False for `center_crop`.
        augment_on: "host", or "device": training batches hold whole images, resized, and the parameters of their
            `Augmentation`, for `keras_ci2p.training.AugmentedClassifier`.
        in_memory: With "device", whether to keep the training images, decoded; 18,000 for 256 px need 8 GB.
        mixup, cutmix, mix_probability: Beta distributions' parameters (paper: 0.8 and 1), 0 for none, and the
            probability of mixing a batch; for the training split only.
        targets, num_threads, num_workers, shard: As in `DataLoader`; targets of the training split only.
        class_names: Names of the classes in the order of the labels, such as a model's, which may have further ones;
            None for those of the data, sorted.
        patch_size: Patch size in pixels that height and width must be multiples of: 32 for `CI2PViT`, 16 for `ViT`.

    Returns:
        `DataLoader` of float32 images `(batch, height, width, 3)`, RGB in 0..255, and labels `(batch, classes)`.

    Raises:
        DataError: Data that cannot be used, an empty split, a wrong size.

    Examples:
        >>> train = keras_ci2p.data.image_folder("photos", image_size=32, batch_size=8)
        >>> [(images.shape, labels.shape) for images, labels in train]
        [((8, 32, 32, 3), (8, 3)), ((8, 32, 32, 3), (8, 3)), ((8, 32, 32, 3), (8, 3))]
    """
    if size_multiple is not None:
        warnings.warn("`size_multiple` is now called `patch_size`.", DeprecationWarning, stacklevel=2)
        patch_size = size_multiple
    image_size = check_image_size(image_size, patch_size)
    _check_options(batch_size, seed, augment, augment_on, in_memory, targets, num_workers)
    is_training = split == "train"
    manifest = open_data(root).split(split)
    manifest.check_pixels("`image_folder`")
    if class_names is not None:
        manifest = manifest.with_class_names(class_names)
    augment = CROP_AND_FLIP if augment is None and is_training else augment
    if is_training and augment_on == "device":
        load = LoadRawImage(manifest, image_size, augment, in_memory)
        mix = SampleMixup(mixup, cutmix, image_size, mix_probability)
    else:
        load = LoadImage(manifest, image_size, _transform(augment), fill=is_training)
        mix = Mixup(mixup, cutmix, mix_probability)
    return DataLoader(
        load,
        batch_size=batch_size,
        shuffle=is_training,
        drop_remainder=is_training,
        seed=seed,
        targets=targets if is_training else None,
        mix=mix if is_training and (mixup or cutmix) else None,
        num_threads=num_threads,
        num_workers=num_workers,
        shard=shard,
        manifest=manifest,
    )


def check_image_size(image_size, patch_size):
    """Returns `(height, width)` as `as_image_size` does; DataError unless they are positive multiples of the patch."""
    try:
        return as_image_size(image_size, patch_size)
    except ValueError as error:
        raise DataError(str(error)) from None


def _check_options(batch_size, seed, augment, augment_on, in_memory, targets, num_workers):
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise DataError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise DataError(f"`seed` must be an integer in 0..2**32-1. Received: seed={seed!r}")
    if not (augment is None or augment is False or isinstance(augment, Augmentation) or callable(augment)):
        raise DataError(f"`augment` must be an `Augmentation`, a function or None. Received: augment={augment!r}")
    if augment_on not in ("host", "device"):
        raise DataError(f'`augment_on` must be "host" or "device". Received: augment_on={augment_on!r}')
    received = f"Received: augment_on={augment_on!r}, num_workers={num_workers}"
    if in_memory and (augment_on != "device" or num_workers):
        raise DataError(
            '`in_memory` goes with augment_on="device" and without worker processes, which would keep the images once '
            f"each. {received}"
        )
    if targets is not None and (augment_on == "device" or num_workers):
        raise DataError(
            f"`targets` are made of images that are augmented on the host, by threads of this process. {received}"
        )


def _transform(augment):
    if isinstance(augment, Augmentation):
        # Not a closure: worker processes get it pickled.
        return functools.partial(augment_image, augmentation=augment)
    return augment or _center_crop


def _center_crop(image, image_size, rng):
    return center_crop(image, image_size)


class DataLoader(grain.IterDataset):
    """Loads batches of examples; each time it is iterated over, those of the next epoch.

    Each epoch has a new order, where it is shuffled, and new augmentations, the same for the same seed. With
    `drop_remainder` all batches have the same size.

    Args:
        load: From the index of an example and a numpy generator to the example, a callable or a grain `RandomMap`; it
            has a length, and `collate(examples)`, which makes them a batch `(inputs, labels)`.
        batch_size: Examples in a batch, over all shards.
        shuffle: Whether each epoch has a new order.
        drop_remainder: Whether to drop the remainder that fills no batch.
        seed: Seed of order and augmentation, an integer in 0..2**32-1.
        targets: Function from a batch's inputs to a dict of arrays, such as a teacher's targets; the labels become a
            dict of these and of `labels`. Arrays `(batch, rows, columns, channels)` are then mixed as the images are,
            the others as the labels. None for the labels alone.
        mix: From a batch and a numpy generator to a batch, such as `Mixup`; None for no mixing.
        num_threads: Threads that load, in each worker where there are any; None for one per CPU, or one per worker.
        num_workers: Processes that load, in place of threads of this one; 0 for none. `load` and `mix` are pickled for
            them, and a script that starts them must guard its main part by `if __name__ == "__main__":`.
        shard: `(index, count)`: of each batch only every `count`-th example, from the `index`-th on.
        manifest: `ImageManifest` of the examples, or None.

    Attributes:
        batch_size: Examples in a batch over all shards; fewer than asked for where there are not so many.
        epoch: Number of the epoch that is next.
        steps_per_epoch: Batches in an epoch.
        manifest: As given.
    """

    def __init__(
        self,
        load,
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
        manifest=None,
    ):
        super().__init__()
        index, count = shard
        self.batch_size = min(batch_size, len(load))
        if self.batch_size % count:
            raise ValueError(
                f"A batch of {self.batch_size} examples cannot be shared out evenly among {count}. "
                f"Received: shard={shard}"
            )
        self.epoch = 0
        self.manifest = manifest
        # grain derives the random numbers of each step from its position in this chain: another step, and all change.
        indices = grain.MapDataset.range(len(load)).seed(seed)
        if shuffle:
            indices = indices.shuffle()
        if drop_remainder:
            indices = indices[: len(load) // self.batch_size * self.batch_size]
        # Batched before it is repeated: no batch holds examples of two epochs.
        loaded = indices.random_map(load)[index::count]
        batches = loaded.batch(self.batch_size // count, batch_fn=load.collate)
        batches = self._finish(batches)
        if targets is not None:
            batches = batches.map(functools.partial(_add_targets, targets))
        self._batches = batches if mix is None else batches.random_map(mix)
        self._stand_in = getattr(load, "stand_in", None)
        self._num_workers = num_workers
        threads = num_threads or (1 if num_workers else num_cpus())
        self._read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def _finish(self, batches):
        """Returns the batches that are mixed, of those that `load.collate` makes."""
        return batches

    @property
    def class_names(self):
        """The manifest's class names."""
        return self.manifest.class_names

    @property
    def steps_per_epoch(self):
        return len(self._batches)

    def __len__(self):
        return self.steps_per_epoch

    def __iter__(self):
        return _EpochIterator(self)

    def repeat(self, initial_epoch=0):
        """Returns an endless grain `IterDataset` with `class_names` that begins with an epoch, for `fit`."""
        return self.repeat_from_batch(initial_epoch * self.steps_per_epoch)

    def repeated(self, initial_epoch=0):
        """Former name of `repeat`."""
        warnings.warn("`repeated()` is now called `repeat()`.", DeprecationWarning, stacklevel=2)
        return self.repeat(initial_epoch)

    def repeat_from_batch(self, batch):
        """Returns an endless grain `IterDataset` that begins with a batch, counted through all epochs."""
        batches = self._batches.repeat()[batch:]
        # Not left out, since those who take a number of steps for an epoch would take batches of the next one.
        return self._read(batches if self._stand_in is None else batches.map(self._stand_in))

    def one_epoch(self, epoch):
        """Returns a grain `IterDataset` of one epoch, always the same, without the batches of no readable image."""
        first = epoch * self.steps_per_epoch
        return self._read(self._batches.repeat()[first : first + self.steps_per_epoch].filter(_has_examples))

    def _read(self, batches):
        batches = batches.to_iter_dataset(self._read_options)
        batches = WorkerDataset(batches, self._num_workers) if self._num_workers else batches
        if self.manifest is not None:
            # For a model that compares them with its own.
            batches.class_names = self.class_names
        return batches

    def __str__(self):
        return f"DataLoader({self.steps_per_epoch} batches of {self.batch_size})"


def _add_targets(targets, batch):
    inputs, labels = batch
    return inputs, {"labels": labels, **targets(inputs)}


def _has_examples(batch):
    _, labels = batch
    return len(labels["labels"] if isinstance(labels, dict) else labels) > 0


class _EpochIterator(grain.DatasetIterator):
    """One epoch. The loader's counter moves on when it is used up: a look at the first batches does not count."""

    def __init__(self, loader):
        super().__init__()
        self._loader = loader
        self._epoch = loader.epoch
        self._batches = iter(loader.one_epoch(self._epoch))

    def __next__(self):
        try:
            return next(self._batches)
        except StopIteration:
            self._loader.epoch = self._epoch + 1
            raise

    def close(self):
        self._batches.close()
        super().close()

    def get_state(self):
        return {"epoch": self._epoch, "batches": self._batches.get_state()}

    def set_state(self, state):
        self._epoch = state["epoch"]
        self._batches = iter(self._loader.one_epoch(self._epoch))
        self._batches.set_state(state["batches"])


_UNREADABLE = "unreadable"
# What files raise that were readable when the data were scanned.
READ_ERRORS = (OSError, MemoryError, CodecError)


class LoadImage:
    """Loads the image of an index with its one-hot label, for `DataLoader`.

    Images that can no longer be read are left out of their batch with a warning, or replaced by others of it.

    Args:
        manifest: `ImageManifest`.
        image_size: `(height, width)` of the images.
        transform: Function `(PIL image, image_size, numpy generator) -> uint8 array`.
        fill: Whether images of the batch take the places of unreadable ones, so that it keeps its size.

    Raises:
        DataError: (When it loads.) No image of the data can be read any longer.
    """

    def __init__(self, manifest, image_size, transform, fill=False):
        self._manifest = manifest
        self._labels = np.eye(len(manifest.class_names), dtype="float32")
        self._image_size = image_size
        self._shape = (*image_size, 3)
        self._transform = transform
        self._fill = fill

    def __len__(self):
        return len(self._manifest)

    def __call__(self, index, rng):
        try:
            return self._load(index, rng)
        except READ_ERRORS as error:
            # It was readable when the data were scanned; a long run must not end for it.
            file = self._manifest.files[index]
            warnings.warn(f"{file} can no longer be read and is left out: {error}", stacklevel=2)
            return _UNREADABLE

    def _load(self, index, rng):
        image = self._transform(self._manifest.open(index), self._image_size, rng)
        return image, self._labels[self._manifest.labels[index]]

    def collate(self, examples):
        """Makes a batch of examples: `(images, labels)`, float32; of no images where none of them could be read."""
        readable = self._readable(examples)
        if not readable:
            return np.empty((0, *self._shape), "float32"), np.empty((0, len(self._labels)), "float32")
        images, labels = zip(*readable, strict=True)
        return np.stack(images, dtype="float32"), np.stack(labels)

    def stand_in(self, batch):
        """Returns a batch, or where it has no images one of the first readable image of the data."""
        return batch if self._fill or _has_examples(batch) else self.collate([self._first_readable()])

    def _readable(self, examples):
        readable = [example for example in examples if example is not _UNREADABLE]
        if not readable:
            first = self._first_readable()
            readable = [first] if self._fill else []
        return list(islice(cycle(readable), len(examples))) if self._fill else readable

    def _first_readable(self):
        """The first example of the data that can be read."""
        for index in range(len(self)):
            try:
                return self._load(index, np.random.default_rng(0))
            except READ_ERRORS:
                continue
        raise DataError(f"None of the {len(self)} images of {self._manifest.root} can be read any longer. Is it there?")


class LoadRawImage(LoadImage):
    """Loads the whole image of an index, resized, with sampled `AugmentParams` and its one-hot label.

    The batch is what `BatchAugmentation` takes, and labels. The parameters are those that `LoadImage` with the same
    seed applies itself.

    Args:
        manifest: `ImageManifest`.
        image_size: `(height, width)` of the augmented images. Whole images are resized to one and a half times that.
        augmentation: `Augmentation`.
        in_memory: Whether to keep the resized images, so that each is decoded once; for threads, since processes would
            keep one each. 18,000 images of 384 x 384 need 8 GB.
    """

    def __init__(self, manifest, image_size, augmentation, in_memory=False):
        if not isinstance(augmentation, Augmentation):
            raise DataError(f"What is augmented on the device is an `Augmentation`. Received: augment={augmentation!r}")
        super().__init__(manifest, image_size, None, fill=True)
        self._augmentation = augmentation
        self._raw_size = tuple(side * 3 // 2 for side in image_size)
        self._source_sizes = [None] * len(manifest) if in_memory else None
        # The system hands out memory as it is written.
        self._pixels = np.empty((len(manifest), *self._raw_size, 3), "uint8") if in_memory else None

    def _load(self, index, rng):
        pixels, source_size = self._open(index)
        params = sample_params(self._augmentation, source_size, self._image_size, rng)
        return (pixels, source_size, params), self._labels[self._manifest.labels[index]]

    def _open(self, index):
        """Returns the resized image and `(height, width)` of the image itself."""
        if self._source_sizes is not None and self._source_sizes[index] is not None:
            return self._pixels[index], self._source_sizes[index]
        image = self._manifest.open(index)
        height, width = self._raw_size
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        source_size = image.height, image.width
        if self._source_sizes is not None:
            # The size last: it says that the pixels are there.
            self._pixels[index], self._source_sizes[index] = pixels, source_size
        return pixels, source_size

    def collate(self, examples):
        """Makes a batch of examples: the dict that `BatchAugmentation` takes, and float32 labels."""
        images, labels = zip(*self._readable(examples), strict=True)
        pixels, source_sizes, params = zip(*images, strict=True)
        inputs = {
            "images": np.stack(pixels),
            **collate_params(self._augmentation, params, source_sizes, self._image_size),
        }
        return inputs, np.stack(labels)
