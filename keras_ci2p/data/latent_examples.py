"""The grain dataset of stored latents."""

from typing import NamedTuple

import grain
import numpy as np

from keras_ci2p.data.folder import DataError
from keras_ci2p.data.grain_dataset import EpochDataset
from keras_ci2p.data.latent_storage import decode


class LatentRecords:
    """The latents of one split by their number, `photo * views + view`; reads from several threads and processes.

    Args:
        cache: A complete `LatentCache`.
        split: "train" or "val".
    """

    def __init__(self, cache, split):
        # Not the cache itself, which lists every photo: worker processes get this object pickled.
        self._root, self._shape, self._store = cache.root, cache.latent_shape, cache.store
        self._source = grain.sources.ArrayRecordDataSource(
            [
                _Shard(str(cache.root / shard["file"]), 0, shard["records"], shard["records"])
                for shard in cache.shards(split)
            ]
        )

    def __len__(self):
        return len(self._source)

    def __getitem__(self, number):
        """float32 `(height, width, channels)`; DataError where the file is damaged."""
        if not 0 <= number < len(self):
            raise IndexError(f"There are {len(self)} latents. Received: number={number}")
        try:
            return decode(self._source[number], self._shape, self._store)
        # ArrayRecord raises RuntimeError where a record does not fit its hash.
        except (RuntimeError, ValueError) as error:
            raise DataError(f"The latent cache {self._root} is damaged at record {number}: {error}") from error


class _Shard(NamedTuple):
    """A file as ArrayRecord wants it described, so that it is opened only when it is first read."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class LatentDataset(EpochDataset):
    """`EpochDataset` of `(latents, one-hot labels)`; each epoch has one view of each photo.

    A photo begins with a view drawn at random and takes the next one in each epoch, so that all are used alike.

    Args:
        cache: A complete `LatentCache`.
        split: "train" or "val".
        views: How many of the stored views to use.
        seed: Of the order and the first views.
        mix: grain `RandomMap` from batch to batch, or None.
        **options: As in `EpochDataset`.
    """

    def __init__(self, cache, split, *, views, seed, mix=None, **options):
        super().__init__(_PhotoNumbers(len(cache.split(split))), seed=seed, cache=cache, **options)
        batches = self._batches.map_with_index(_ReadBatch(cache, split, views, seed, self.steps_per_epoch))
        self._batches = batches if mix is None else batches.random_map(mix)


class _PhotoNumbers(grain.transforms.RandomMap):
    """Number of a photo to itself: which of its latents to read depends on the epoch, which only a batch knows."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def random_map(self, element, rng):
        return element

    def stack(self, elements):
        return np.array(elements)


class _ReadBatch(grain.transforms.MapWithIndex):
    """Photo numbers to `(latents, labels)`, float32."""

    def __init__(self, cache, split, views, seed, steps_per_epoch):
        photos = cache.split(split)
        self._records = LatentRecords(cache, split)
        self._stored_views = cache.views(split)
        self._labels = np.array(photos.labels)
        self._one_hot = np.eye(len(photos.class_names), dtype="float32")
        self._views = views
        self._first_view = np.random.default_rng(seed).integers(views, size=len(photos))
        self._steps_per_epoch = steps_per_epoch

    def map_with_index(self, index, element):
        epoch = index // self._steps_per_epoch
        numbers = element * self._stored_views + (self._first_view[element] + epoch) % self._views
        return np.stack([self._records[number] for number in numbers]), self._one_hot[self._labels[element]]
