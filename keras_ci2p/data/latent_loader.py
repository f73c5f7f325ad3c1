"""Loads batches of latents from a cache."""

from typing import NamedTuple

import grain
import numpy as np

from keras_ci2p.data.latent_cache import LatentCache, decode, decode_targets, open_cache
from keras_ci2p.data.loader import EpochDataset
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.mixup import target_arrays
from keras_ci2p.utils import require


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
    """The latents of a cache as batches for `CI2PViT.latent_classifier`, the counterpart of `image_folder`.

    Each epoch of the training split holds every photo once, in a new order, each time another one of its views; the
    validation split holds the central crops in order. What is left out here is as in `image_folder`.

    Args:
        cache: `LatentCache`, or its directory.
        batch_size: Latents in a batch.
        split: "train" or "val".
        seed: Of the order and the views, an integer in 0..2**32-1.
        views: How many of the stored views of each photo to use, or "all".
        mixup, cutmix, mix_probability: As in `image_folder`, on latents.
        temperature: To learn from the teacher whose targets the cache holds: what its logits are divided by. The labels
            of the training split then are a dict: `labels`, `teacher` (its probabilities at that temperature) and
            `features_0`, ... (its projected feature maps), as `keras_ci2p.training.DistilledClassifier` takes them.
            None for the labels alone.
        num_threads, num_workers, shard: As in `image_folder`.

    Returns:
        A grain `IterDataset` of `(latents, labels)`: float32 `(batch, height / 16, width / 16, channels)` and float32
        `(batch, classes)`. It has `cache`, `class_names`, `manifest`, `steps_per_epoch`, `epoch` and
        `repeated(initial_epoch)`.

    Raises:
        DataError: No cache, one that is unfinished or damaged; a wrong split, batch size or number of views.
        ImportError: grain is not installed.
    """
    require("grain", extra="train")
    from keras_ci2p.data.mixup import MixBatches

    cache = cache if isinstance(cache, LatentCache) else open_cache(cache)
    manifest = cache.split(split)
    if batch_size < 1:
        raise DataError(f"`batch_size` must be positive. Received: batch_size={batch_size}")
    is_training = split == "train"
    stored = cache.views(split)
    used = stored if views == "all" or not is_training else views
    if used not in range(1, stored + 1):
        raise DataError(f'`views` must be "all" or in 1..{stored}, the views in the cache. Received: views={views!r}')
    if temperature is not None and cache.teacher is None:
        raise DataError(
            f"The latent cache {cache.root} holds no targets of a teacher. Make a new one: keras-ci2p cache DATA OUT "
            "--teacher T"
        )
    return LatentDataset(
        cache,
        split,
        views=used,
        seed=seed,
        temperature=temperature if is_training else None,
        mix=MixBatches(mixup, cutmix, mix_probability) if is_training and (mixup or cutmix) else None,
        batch_size=batch_size,
        shuffle=is_training,
        drop_remainder=is_training,
        num_threads=num_threads,
        num_workers=num_workers,
        shard=shard,
        manifest=manifest,
        class_names=manifest.class_names,
    )


class _Records:
    """The records of one split by their number, `photo * views + view`; reads from several threads and processes."""

    def __init__(self, cache, split, file_of):
        # Not the cache itself, which lists every photo: worker processes get this object pickled.
        self._root = cache.root
        self._views = cache.views(split)
        self._parts = [
            (part.first_view, part.views, _source(cache.root, part.shards, file_of)) for part in cache.parts(split)
        ]
        self._length = cache.num_records(split)

    def __len__(self):
        return self._length

    def __getitem__(self, number):
        """What a record holds; DataError where the file is damaged."""
        if not 0 <= number < len(self):
            raise IndexError(f"There are {len(self)} latents. Received: number={number}")
        photo, view = divmod(int(number), self._views)
        first, views, source = next(part for part in reversed(self._parts) if part[0] <= view)
        try:
            return self._decode(source[photo * views + view - first])
        # ArrayRecord raises RuntimeError where a record does not fit its hash.
        except (RuntimeError, ValueError) as error:
            raise DataError(f"The latent cache {self._root} is damaged at record {number}: {error}") from error


class LatentRecords(_Records):
    """The latents of one split by their number: float32 `(height, width, channels)`.

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
    """What the teacher says of the training views by their number: `(logits, list of feature maps)`, float32.

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
        temperature: At which the teacher's probabilities are mixed; None for labels without a teacher's targets.
        mix: grain `RandomMap` from batch to batch, or None.
        **options: As in `EpochDataset`.
    """

    def __init__(self, cache, split, *, views, seed, temperature=None, mix=None, **options):
        super().__init__(_PhotoNumbers(len(cache.split(split))), seed=seed, cache=cache, **options)
        read = _ReadBatch(cache, split, views, seed, self.steps_per_epoch, temperature)
        batches = self._batches.map_with_index(read)
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
    """Photo numbers to `(latents, labels)`, float32; with a teacher the labels are a dict with `target_arrays`."""

    def __init__(self, cache, split, views, seed, steps_per_epoch, temperature):
        photos = cache.split(split)
        self._records = LatentRecords(cache, split)
        self._targets = None if temperature is None else TargetRecords(cache)
        self._temperature = temperature
        self._stored_views = cache.views(split)
        self._labels = np.array(photos.labels)
        self._one_hot = np.eye(len(photos.class_names), dtype="float32")
        self._views = views
        self._first_view = np.random.default_rng(seed).integers(views, size=len(photos))
        self._steps_per_epoch = steps_per_epoch

    def map_with_index(self, index, element):
        epoch = index // self._steps_per_epoch
        numbers = element * self._stored_views + (self._first_view[element] + epoch) % self._views
        latents, labels = np.stack([self._records[number] for number in numbers]), self._one_hot[self._labels[element]]
        if self._targets is None:
            return latents, labels
        logits, features = zip(*(self._targets[number] for number in numbers), strict=True)
        features = [np.stack(maps) for maps in zip(*features, strict=True)]
        return latents, {"labels": labels, **target_arrays(np.stack(logits), features, self._temperature)}
