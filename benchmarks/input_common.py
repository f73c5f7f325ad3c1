"""What the parts of `input.py` share."""

import contextlib
import os
import statistics

from keras_ci2p.data import Augmentation

AUGMENTATION = Augmentation()
BATCH = 32


def in_batches(paths):
    return [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]


def spread(values):
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def pinned(cores):
    """Threads and processes started meanwhile run on that many cores; where the system cannot, on all."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
