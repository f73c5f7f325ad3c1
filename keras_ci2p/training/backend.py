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
