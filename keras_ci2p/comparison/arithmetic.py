"""What a backend computes with."""

import os

import keras


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
