"""How fast a run is, and whether it waits for its data."""

import time

import grain


class TimedDataset(grain.IterDataset):
    """The batches of another dataset; counts them and the time that passes until each is there.

    Attributes:
        seconds: Waited since the last `reset`.
        batches: Delivered since then.
    """

    def __init__(self, dataset):
        super().__init__()
        self._dataset = dataset
        self.reset()

    def reset(self):
        self.seconds, self.batches = 0.0, 0

    def __iter__(self):
        return _TimedIterator(self, iter(self._dataset))


class _TimedIterator(grain.DatasetIterator):
    def __init__(self, dataset, iterator):
        super().__init__()
        self._dataset = dataset
        self._iterator = iterator

    def __next__(self):
        began = time.perf_counter()
        batch = next(self._iterator)
        self._dataset.seconds += time.perf_counter() - began
        self._dataset.batches += 1
        return batch

    def get_state(self):
        return self._iterator.get_state()

    def set_state(self, state):
        self._iterator.set_state(state)
