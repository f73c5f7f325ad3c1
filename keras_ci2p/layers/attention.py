"""Fused attention, wherever the backend has it."""

import keras
from keras import ops


def scaled_dot_product_attention(query, key, value):
    """`softmax(query key^T / sqrt(head_dim)) value`, each `(batch, tokens, heads, head_dim)`."""
    dtype = query.dtype
    if keras.backend.standardize_dtype(dtype) == "float16" and _lacks_float16_products():
        query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
    return ops.cast(ops.dot_product_attention(query, key, value), dtype)


def _lacks_float16_products():
    """JAX's attention asks for matrix products of float16 that XLA does not have on a CPU."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"
