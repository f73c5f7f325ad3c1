"""What differs between the backends while training; nothing else in the package knows which one it runs on."""

import importlib.metadata

import keras

from keras_ci2p.training.hardware import hardware


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
