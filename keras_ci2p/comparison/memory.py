"""How much memory this process has held."""

import sys
from pathlib import Path

import keras

_STATUS = Path("/proc/self/status")


def peak_memory():
    """The most bytes that this process has held so far; None where the system does not tell."""
    # Not `ru_maxrss` on Linux: a new process inherits its parent's.
    if _STATUS.is_file():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_device_memory():
    """The most bytes that the backend has held on its first GPU or TPU; None where it computes on the CPU."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        statistics = jax.devices()[0].memory_stats()
        return None if statistics is None else statistics["peak_bytes_in_use"]
    import tensorflow as tf

    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if has_gpu else None
