"""Loads batches of precomputed latents from a cache."""

from typing import NamedTuple

import numpy as np

from keras_ci2p.data.latent_cache import LatentCache, decode, decode_targets, open_cache
from keras_ci2p.data.loader import DataLoader
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.mixup import Mixup, target_arrays
from keras_ci2p.utils import require

grain = require("grain", extra="train")


def latent_folder(
    cache,
    *,
    batch_size=32,
    split="train",
    seed=0,
    views="all",
    mixup=0.0,
    cutmix=0.0,
    mix_probability=1.0,
    temperature=None,
    num_threads=None,
    num_workers=0,
    shard=(0, 1),
):
    """Loads the latents of a cache as batches for `CI2PViT.latent_classifier`, the counterpart of `image_folder`.

    Each epoch of the training split holds every image once, in a new order, each time another one of its views; the
    validation split holds the central crops in order.

    Args:
        cache: `LatentCache`, or its directory.
        batch_size: Latents in a batch.
        split: "train" or "val".
        seed: Seed of the order and the views, an integer in 0..2**32-1.
        views: How many of the stored views of each image to use, or "all".
        mixup, cutmix, mix_probability: As in `image_folder`, on latents.
        temperature: To learn from the teacher whose targets the cache holds: what its logits are divided by. The labels
            of the training split then are a dict: `labels`, `teacher` (its probabilities at that temperature) and
            `features_0`, ... (its projected feature maps), as `keras_ci2p.training.DistilledClassifier` takes them.
            None for the labels alone.
        num_threads, num_workers, shard: As in `DataLoader`.

    Returns:
        `LatentLoader`, a `DataLoader` of `(latents, labels)`: float32 `(batch, height / 16, width / 16, channels)` and
        float32 `(batch, classes)`.

    Raises:
        DataError: No cache, one that is unfinished or damaged; a wrong split, batch size or number of views.
    """
    cache = cache if isinstance(cache, LatentCache) else open_cache(cache)
    is_training = split == "train"
    manifest = cache.split(split)
    if batch_size < 1:
        raise DataError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    stored = cache.views(split)
    used = stored if views == "all" or not is_training else views
    if used not in range(1, stored + 1):
        raise DataError(f'`views` must be "all" or in 1..{stored}, the views in the cache. Received: views={views!r}')
    if temperature is not None and cache.teacher is None:
        raise DataError(
            f"The latent cache {cache.root} holds no targets of a teacher. Make a new one: keras-ci2p cache DATA OUT "
            "--teacher T"
        )
    return LatentLoader(
        cache,
        split,
        views=used,
        seed=seed,
        temperature=temperature if is_training else None,
        mix=Mixup(mixup, cutmix, mix_probability) if is_training and (mixup or cutmix) else None,
        batch_size=batch_size,
        shuffle=is_training,
        drop_remainder=is_training,
        num_threads=num_threads,
        num_workers=num_workers,
        shard=shard,
        manifest=manifest,
    )


class LatentLoader(DataLoader):
    """Loads batches of `(latents, one-hot labels)`; each epoch has one view of each image.

    An image begins with a view that is sampled and takes the next one in each epoch, so that all are used alike.

    Args:
        cache: A complete `LatentCache`.
        split: "train" or "val".
        views: How many of the stored views to use.
        seed: Seed of the order and the first views.
        temperature: What the teacher's logits are divided by; None for labels without a teacher's targets.
        **options: As in `DataLoader`.

    Attributes:
        cache: As given.
    """

    def __init__(self, cache, split, *, views, seed, temperature=None, **options):
        self.cache = cache
        self._load = LoadLatents(cache, split, views, seed, temperature)
        super().__init__(self._load, seed=seed, **options)

    def _finish(self, batches):
        # Which view to read depends on the epoch, which the number of a batch tells.
        self._load.steps_per_epoch = len(batches)
        return batches.map_with_index(self._load.read_batch)


class LoadLatents:
    """Loads the latents of a cache with their labels, for `LatentLoader`.

    Args:
        cache, split, views, seed, temperature: As in `LatentLoader`.

    Attributes:
        steps_per_epoch: Batches in an epoch; to be set before batches are read.
    """

    def __init__(self, cache, split, views, seed, temperature):
        manifest = cache.split(split)
        self._latents = LatentRecords(cache, split)
        self._targets = None if temperature is None else TargetRecords(cache)
        self._temperature = temperature
        self._stored_views = cache.views(split)
        self._labels = np.array(manifest.labels)
        self._one_hot = np.eye(len(manifest.class_names), dtype="float32")
        self._views = views
        self._first_view = np.random.default_rng(seed).integers(views, size=len(manifest))
        self.steps_per_epoch = None

    def __len__(self):
        return len(self._labels)

    def __call__(self, index, rng):
        return index

    def collate(self, indices):
        return np.array(indices)

    def read_batch(self, batch_number, indices):
        """Reads the latents of a batch.

        Args:
            batch_number: Number of the batch, counted through all epochs.
            indices: Integer array `(batch,)` of images.

        Returns:
            `(latents, labels)`, float32; with a teacher the labels are a dict with `target_arrays`.
        """
        epoch = batch_number // self.steps_per_epoch
        numbers = indices * self._stored_views + (self._first_view[indices] + epoch) % self._views
        latents = np.stack([self._latents[number] for number in numbers])
        labels = self._one_hot[self._labels[indices]]
        if self._targets is None:
            return latents, labels
        logits, features = zip(*(self._targets[number] for number in numbers), strict=True)
        features = [np.stack(maps) for maps in zip(*features, strict=True)]
        return latents, {"labels": labels, **target_arrays(np.stack(logits), features, self._temperature)}


class _Records:
    """Reads the records of a split by their number, `image * views + view`, in several threads and processes."""

    def __init__(self, cache, split, file_of):
        # Not the cache itself, which lists every image: worker processes get this object pickled.
        self._root = cache.root
        self._views = cache.views(split)
        self._parts = [
            (part.first_view, part.views, _source(cache.root, part.shards, file_of)) for part in cache.parts(split)
        ]
        self._length = cache.num_records(split)

    def __len__(self):
        return self._length

    def __getitem__(self, number):
        """Reads a record; DataError where the file is damaged."""
        if not 0 <= number < len(self):
            raise IndexError(f"There are {len(self)} latents. Received: number={number}")
        image, view = divmod(int(number), self._views)
        first, views, source = next(part for part in reversed(self._parts) if part[0] <= view)
        try:
            return self._decode(source[image * views + view - first])
        # ArrayRecord raises RuntimeError where a record does not fit its hash.
        except (RuntimeError, ValueError) as error:
            raise DataError(f"The latent cache {self._root} is damaged at record {number}: {error}") from error


class LatentRecords(_Records):
    """Reads the latents of a split by their number: float32 `(height, width, channels)`.

    Args:
        cache: A complete `LatentCache`.
        split: "train" or "val".
    """

    def __init__(self, cache, split):
        super().__init__(cache, split, lambda shard: shard)
        self._shape, self._store = cache.latent_shape, cache.store

    def _decode(self, record):
        return decode(record, self._shape, self._store)


class TargetRecords(_Records):
    """Reads a teacher's targets of the training views by their number: `(logits, list of feature maps)`, float32.

    Args:
        cache: A complete `LatentCache` with a teacher.
    """

    def __init__(self, cache):
        super().__init__(cache, "train", lambda shard: shard["targets"])
        features = cache.teacher["features"]
        self._num_classes = len(cache.class_names)
        self._shapes = [(row["rows"], row["columns"], row["channels"]) for row in features]
        self._steps = [np.array(row["steps"], "float32") for row in features]

    def _decode(self, record):
        logits, features = decode_targets(record, self._num_classes, self._shapes)
        return logits, [integers * step for integers, step in zip(features, self._steps, strict=True)]


def _source(root, shards, file_of):
    files = [(str(root / file_of(shard)["file"]), shard["records"]) for shard in shards]
    return grain.sources.ArrayRecordDataSource([_Shard(name, 0, records, records) for name, records in files])


class _Shard(NamedTuple):
    """Describes a file to ArrayRecord, so that it is opened only when it is first read."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int
