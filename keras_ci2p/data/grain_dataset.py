"""The grain dataset behind `image_folder`; the only module here that imports grain."""

import os
import warnings

import grain
import numpy as np

from keras_ci2p.data.decode import load_image


class ImageFolderDataset(grain.IterDataset):
    """Batches of a manifest's photos; each time it is gone through, the next epoch. Made by `image_folder`."""

    def __init__(self, manifest, *, image_size, batch_size, shuffle, drop_remainder, seed, transform, num_threads):
        super().__init__()
        self.manifest = manifest
        self.class_names = manifest.class_names
        self.batch_size = min(batch_size, len(manifest))
        self.epoch = 0
        photos = grain.MapDataset.range(len(manifest)).seed(seed)
        if shuffle:
            photos = photos.shuffle()
        load = _Loader(manifest, image_size, transform)
        # Batched before it is repeated: no batch holds photos of two epochs.
        self._batches = photos.random_map(load).batch(
            self.batch_size, drop_remainder=drop_remainder, batch_fn=load.stack
        )
        self.steps_per_epoch = len(self._batches)
        threads = num_threads or os.cpu_count() or 1
        self._read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)

    def __iter__(self):
        return _EpochIterator(self)

    def repeated(self, initial_epoch=0):
        """An endless grain `IterDataset` that begins with the given epoch."""
        return self._from(initial_epoch)

    def one_epoch(self, epoch):
        """A grain `IterDataset` of one epoch, always the same."""
        return self._from(epoch, epoch + 1)

    def _from(self, first, end=None):
        n = self.steps_per_epoch
        batches = self._batches.repeat()[first * n : None if end is None else end * n]
        return batches.to_iter_dataset(self._read_options)

    def __str__(self):
        return f"ImageFolderDataset({self.manifest.root}, {len(self.manifest)} photos)"


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

    def get_state(self):
        return {"epoch": self._epoch, "batches": self._batches.get_state()}

    def set_state(self, state):
        self._epoch = state["epoch"]
        self._batches = iter(self._dataset.one_epoch(self._epoch))
        self._batches.set_state(state["batches"])


class _Loader(grain.transforms.RandomMap):
    """Index to `(image, one-hot label)`; to `_UNREADABLE` where the photo can no longer be read."""

    def __init__(self, manifest, image_size, transform):
        self._paths = [manifest.root / file for file in manifest.files]
        self._labels = np.eye(len(manifest.class_names), dtype="float32")[list(manifest.labels)]
        self._image_size = image_size
        self._transform = transform

    def random_map(self, element, rng):
        path = self._paths[element]
        try:
            image = load_image(path)
        except OSError as error:
            # It was readable when the folder was scanned; a long run must not end for it.
            warnings.warn(f"{path} can no longer be read and is left out: {error}", stacklevel=2)
            return _UNREADABLE
        image = self._transform(image, self._image_size, rng)
        return np.asarray(image, "float32"), self._labels[element]

    def stack(self, elements):
        readable = [element for element in elements if element is not _UNREADABLE]
        if not readable:
            empty = np.empty((0, *self._image_size, 3), "float32")
            return empty, np.empty((0, self._labels.shape[1]), "float32")
        images, labels = zip(*readable, strict=True)
        return np.stack(images), np.stack(labels)


_UNREADABLE = "unreadable"
