"""JAX's own kernels on a CPU, and its devices."""

import functools
import os

import keras
import numpy as np
from keras import ops

from keras_ci2p.backend.common import Devices, FillBatches, first

if keras.backend.backend() == "jax":
    import jax
    from jax.experimental import multihost_utils


@functools.cache
def on_jax_cpu():
    """Whether Keras computes with JAX on a CPU."""
    if keras.backend.backend() != "jax":
        return False
    return jax.default_backend() == "cpu"


def depthwise_conv(inputs, kernel, strides):
    """Depthwise convolution of padded images, as the sum over the kernel's positions: its gradient is ten times faster.

    With strides, images are taken apart first: a sum over strided slices has gradients that XLA computes slowly.

    Args:
        inputs: `(batch, height, width, channels)`, padded.
        kernel: `(rows, columns, channels, 1)`.
        strides: `(rows, columns)`.
    """
    rows, columns, channels, _ = kernel.shape
    down, right = strides
    _, height, width, _ = inputs.shape
    out_height, out_width = (height - rows) // down + 1, (width - columns) // right + 1
    inputs = ops.pad(inputs, ((0, 0), (0, -height % down), (0, -width % right), (0, 0)))
    # [:, :, i, :, j]: the pixels `strides` apart from (i, j) on.
    inputs = ops.reshape(inputs, (-1, -(-height // down), down, -(-width // right), right, channels))
    return sum(
        inputs[:, i // down : i // down + out_height, i % down, j // right : j // right + out_width, j % right]
        * kernel[i, j, :, 0]
        for i in range(rows)
        for j in range(columns)
    )


def as_rows(layer, inputs):
    """`layer(inputs)` of a layer that acts on the last axis, all others made one: its gradient is twice as fast."""
    outputs = layer(ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(outputs, (*ops.shape(inputs)[:-1], outputs.shape[-1]))


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
