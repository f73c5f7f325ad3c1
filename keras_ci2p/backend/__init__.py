"""What depends on the backend or on the machine: precision, devices, memory, versions."""

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import keras


def make_deterministic():
    """The same result each time: deterministic kernels, on torch one thread as well."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()


# JAX's words for the precision of float32 products, and torch's.
MATMUL_PRECISIONS = {"float32": "highest", "tensorfloat32": "high", "bfloat16": "medium"}


def set_matmul_precision(precision):
    """Lets products of float32 matrices be computed with fewer bits, where the processor is faster so.

    Weights, activations and sums stay float32. "bfloat16" is for torch on a CPU with AMX too; TensorFlow knows
    "tensorfloat32" alone, for GPUs.

    Args:
        precision: One of `MATMUL_PRECISIONS`.

    Raises:
        ValueError: TensorFlow cannot do it.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        torch.set_float32_matmul_precision(MATMUL_PRECISIONS[precision])
    elif backend == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", precision)
    elif backend == "tensorflow":
        import tensorflow as tf

        if precision == "bfloat16":
            raise ValueError(
                "TensorFlow computes no float32 products in bfloat16. Received: matmul_precision='bfloat16'"
            )
        tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")


def environment():
    """Backend, versions, processor and device, for the record of a run."""
    backend = keras.backend.backend()
    packages = ("keras_ci2p", "keras", backend, "numpy", "pillow", "grain")
    return {
        "backend": backend,
        **hardware(),
        "versions": {package: _version(package) for package in packages},
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


_CPU_FILE = Path("/proc/cpuinfo")
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}


def hardware():
    """dict of `cores` (a number), `cpu` and `device`: the models of the processor and of what Keras computes on."""
    cpu = _cpu()
    return {"cores": os.cpu_count(), "cpu": cpu, "device": _accelerator() or cpu}


def _cpu():
    entries = {}
    if _CPU_FILE.is_file():
        for line in _CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip(), value.strip())
    name = entries.get("model name") or platform.processor() or platform.machine()
    flags = entries.get("flags", "").split()
    # Virtual machines give processors of very different speed one name.
    widest = next((words for flag, words in _VECTORS.items() if flag in flags), None)
    return f"{name}, {widest}" if widest else name


def _accelerator():
    """Name of the backend's first GPU or TPU, None where there is none."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else None


# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# As the largest unsigned number; one of 31 bits is reached by the steps of larger models.
_NEVER = -1
_AHEAD = 64 * 2**20


def keep_freed_memory():
    """Keeps the memory of one training step for the next, where the C library would return it to the system.

    glibc gives each large block pages of its own and returns them when it is freed, so that each step of training has
    the pages of all its activations cleared and mapped anew; `benchmarks/optimizations.py` measures what that costs.
    Afterwards large blocks come from one heap that does not shrink. Call it before the first computation. It holds for
    the whole process, which is why `import keras_ci2p` does not do it; the command line does.

    Not under JAX: it takes the memory of a step as one block, which soon no longer fits between the others, so that
    the heap grows to twice the size. There `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment makes new pages
    cheap.

    Returns:
        Whether it was done: on Linux with glibc, under PyTorch or TensorFlow, unless the environment sets
        `MALLOC_...` or `GLIBC_TUNABLES`.
    """
    if keras.backend.backend() == "jax":
        return False
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    # Other C libraries have no mallopt; musl is one.
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Heaps other than the first cannot hold large blocks.
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _AHEAD, _ARENA_MAX: 1}
    accepted = [library.mallopt(key, value) for key, value in options.items()]
    return all(accepted)


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
        from keras_ci2p.backend.jax import open_jax as open_on_backend
    elif backend == "tensorflow":
        from keras_ci2p.backend.tensorflow import open_tensorflow as open_on_backend
    else:
        from keras_ci2p.backend.torch import open_torch as open_on_backend
    return open_on_backend(devices)


def arithmetic():
    """dict of `threads`, those of one operation on the CPU, and `float32_products`, in the backend's own words."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return {"threads": torch.get_num_threads(), "float32_products": torch.get_float32_matmul_precision()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if backend == "jax":
        import jax

        return {"threads": cores, "float32_products": jax.config.jax_default_matmul_precision or "default"}
    import tensorflow as tf

    # 0 stands for all.
    threads = tf.config.threading.get_intra_op_parallelism_threads() or cores
    may_round = tf.config.experimental.tensor_float_32_execution_enabled()
    return {"threads": threads, "float32_products": "tensor_float_32 where there is" if may_round else "float32"}


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
