"""The grain dataset that feeds `fit`; what it feeds is up to its examples."""

import os

import grain

from keras_ci2p.data.workers import WorkerDataset


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
        num_threads: Threads that load, in each worker where there are any; None for one per core, or per worker.
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
        threads = num_threads or (1 if num_workers else os.cpu_count() or 1)
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
