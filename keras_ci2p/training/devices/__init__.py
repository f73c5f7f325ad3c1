"""One run on several devices: the devices are opened before the model is built, and every backend uses its own engine.

JAX: `keras.distribution.DataParallel`. TensorFlow: `tf.distribute.MirroredStrategy`. torch: `torchrun` and
`DistributedDataParallel`. Each device computes on an equal part of every batch, and the step is the one that a single
device would take on the whole batch.

Batch normalisation sees the whole batch on JAX and TensorFlow. On torch each device normalises by its own part, and the
running statistics are the means over the devices.
"""

import keras

from keras_ci2p.training.devices.base import Devices

__all__ = ["Devices", "open_devices"]


def open_devices(devices=None):
    """The devices to train on. To be called before anything is computed, since several processes meet here.

    On torch each device has a process, which `torchrun` has started. With JAX there can be several hosts, a process
    on each, that find each other by `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `KERAS_DISTRIBUTION_NUM_PROCESSES` and
    `KERAS_DISTRIBUTION_PROCESS_ID` (`keras.distribution.initialize`); they train on all devices of all.

    Args:
        devices: "all", the number of devices, or None for a single one.

    Raises:
        ValueError: Another value, more devices than there are, or processes that were started for another number.
    """
    is_number = isinstance(devices, int) and not isinstance(devices, bool)
    if not (devices in (None, "all") or is_number and devices > 0):
        raise ValueError(f"`devices` must be 'all', a positive number or None. Received: devices={devices!r}")
    backend = keras.backend.backend()
    # Each engine's module imports its backend.
    if backend == "jax":
        from keras_ci2p.training.devices.jax import open_jax as open_on_backend
    elif backend == "tensorflow":
        from keras_ci2p.training.devices.tensorflow import open_tensorflow as open_on_backend
    else:
        from keras_ci2p.training.devices.torch import open_torch as open_on_backend
    return open_on_backend(devices)
