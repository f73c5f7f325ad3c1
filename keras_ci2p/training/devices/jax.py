"""Several devices with JAX: `keras.distribution.DataParallel`, also over several hosts."""

import os

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from keras_ci2p.training.devices.base import Devices, FillBatches, first


def open_jax(wanted):
    """`open_devices` on JAX."""
    processes = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    if processes > 1 and wanted is None:
        raise ValueError(f"KERAS_DISTRIBUTION_NUM_PROCESSES is {processes}: train with devices='all'.")
    if processes > 1 and not jax.distributed.is_initialized():
        keras.distribution.initialize()
    if wanted is None:
        return Devices()
    names = keras.distribution.list_devices()
    if jax.process_count() > 1 and wanted not in ("all", len(names)):
        raise ValueError(
            f"{jax.process_count()} processes train on all of their {len(names)} devices. Received: devices={wanted}"
        )
    names = first(names, wanted)
    return JaxDevices(names) if len(names) > 1 else Devices()


class JaxDevices(Devices):
    def __init__(self, names):
        self.count = len(names)
        self.shard = (jax.process_index(), jax.process_count())
        self._distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)

    def scope(self):
        return self._distribution.scope()

    def validation(self, batches, size):
        return batches.map(FillBatches(self.count, size, self.shard))

    def mean(self, logs):
        # Metrics are the same on all hosts already; what each has measured itself is not.
        values = multihost_utils.process_allgather(np.array(list(logs.values()), "float32"))
        return dict(zip(logs, np.atleast_2d(values).mean(axis=0).tolist(), strict=True))

    def _gather(self, digest):
        digests = multihost_utils.process_allgather(np.frombuffer(digest, "uint8"))
        return [row.tobytes() for row in np.atleast_2d(digests)]
