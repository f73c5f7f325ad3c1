"""What a model is trained or measured on, in words."""

import os
import platform
from pathlib import Path

import keras

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
