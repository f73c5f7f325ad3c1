"""Makes the batches of a grain dataset in processes."""

import atexit
import contextlib
import importlib.util
import os
import signal
import sys
import threading
import weakref
from multiprocessing import parent_process, util
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from keras_ci2p.utils import require

if TYPE_CHECKING:
    import grain
else:
    grain = require("grain", extra="train")


class WorkerDataset(grain.IterDataset):
    """Makes the batches of a dataset in processes of their own, in the same order.

    Each iterator has its own processes. They start with its first batch, and end when it is used up, closed or
    dropped.

    Args:
        parent: grain `IterDataset` that can be pickled and begins with a `MapDataset`.
        num_workers: Number of processes; each makes every `num_workers`-th batch.
    """

    def __init__(self, parent, num_workers):
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        super().__init__(parent.mp_prefetch(options, worker_init_fn=_begin_worker))
        self._num_workers = num_workers

    def __iter__(self):
        return _WorkerIterator(iter(self._parent))

    def __str__(self):
        return f"WorkerDataset({self._num_workers} workers)"


class _WorkerIterator(grain.DatasetIterator):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches
        self._running = False
        _open.add(self)

    def __next__(self):
        if self._running:
            return _copied(next(self._batches))
        if not flags.FLAGS.is_parsed():
            # grain reads flags, which only programs built with absl parse.
            flags.FLAGS.mark_as_parsed()
        with _numpy_for_children():
            # Without this a restored iterator starts one worker after the other.
            self._batches.start_prefetch()
            batch = next(self._batches)
        self._running = True
        return _copied(batch)

    def close(self):
        super().close()
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        self._batches.set_state(state)
        self._running = False


def _copied(batch):
    """The batch in memory of this process. The shared memory goes at once: grain deletes it with its last array, by a
    thread and modules that are gone by then where a script holds a batch until it ends."""
    if isinstance(batch, dict):
        return {name: _copied(part) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(map(_copied, batch))
    if getattr(batch, "shm", None) is None:
        return batch
    batch._unlink_on_del = False
    batch.shm.unlink()
    return np.array(batch)


_open = weakref.WeakSet()


@atexit.register
def _close_all():
    """Closes all iterators before Python shuts down: later they would complain."""
    for iterator in list(_open):
        iterator.close()


_environment = threading.Lock()


@contextlib.contextmanager
def _numpy_for_children():
    """Lets processes that start meanwhile import Keras with NumPy, should they import it: half the time and memory."""
    if importlib.util.find_spec("jax") is None:
        # Keras 3.15 imports JAX for NumPy's backend.
        yield
        return
    with _environment:
        before = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "numpy"
        try:
            yield
        finally:
            if before is None:
                del os.environ["KERAS_BACKEND"]
            else:
                os.environ["KERAS_BACKEND"] = before


def _begin_worker(index, count):
    # The terminal sends Ctrl-C to the workers too; it is the parent that ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Last of all, when the queues are empty.
    util.Finalize(None, _end, exitpriority=-100)


def _end_with_parent():
    """Ends the worker with its parent, which could not end it where it was killed."""
    parent_process().join()
    os._exit(1)


def _end():
    """Ends the process at once: to shut down all that grain imports takes Python a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
