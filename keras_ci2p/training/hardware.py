"""What a model is trained or measured on, in words."""

import os
import platform
from pathlib import Path

import keras

_CPU_FILE = Path("/proc/cpuinfo")


def hardware():
    """dict of `cores` (a number), `cpu` and `device`: the models of the processor and of what Keras computes on."""
    cpu = _cpu()
    return {"cores": os.cpu_count(), "cpu": cpu, "device": _accelerator() or cpu}


def _cpu():
    if _CPU_FILE.is_file():
        for line in _CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


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
