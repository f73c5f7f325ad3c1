"""Attention, fused wherever the backend has it, and its weights."""

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.jax_cpu import on_jax_cpu
from keras_ci2p.layers.torch_kernels import is_short, on_torch, short_attention


def scaled_dot_product_attention(query, key, value):
    """`softmax(query key^T / sqrt(head_dim)) value`, each `(batch, tokens, heads, head_dim)`."""
    dtype = query.dtype
    if on_torch() and is_short(query):
        return short_attention(query, key, value)
    # XLA has no float16 matrix product there.
    if keras.backend.standardize_dtype(dtype) == "float16" and on_jax_cpu():
        query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
    return ops.cast(ops.dot_product_attention(query, key, value), dtype)


def attention_scores(query, key):
    """The weights of `scaled_dot_product_attention`, which the fused kernels keep to themselves.

    Args:
        query, key: `(batch, tokens, heads, head_dim)`.

    Returns:
        float32 `(batch, heads, tokens, tokens)`, queries along the third axis; each row sums to 1.
    """
    products = ops.einsum("bqhd,bkhd->bhqk", ops.cast(query, "float32"), ops.cast(key, "float32"))
    return ops.softmax(products / query.shape[-1] ** 0.5, axis=-1)


def attention_rollout(maps):
    """Attention of a whole model to its input tokens (Abnar and Zuidema 2020, arXiv 2005.00928).

    Heads are averaged; half of each layer is its input, by the skip connection; the layers are multiplied.

    Args:
        maps: Array `(batch, layers, heads, tokens, tokens)`, as `attention_maps` of a classifier gives it.

    Returns:
        Array `(batch, tokens, tokens)`: what each output token, along the second axis, has of each input token. Rows
        sum to 1.
    """
    layers = (np.mean(maps, axis=2) + np.eye(maps.shape[-1], dtype=maps.dtype)) / 2
    rollout = layers[:, 0]
    for i in range(1, layers.shape[1]):
        rollout = layers[:, i] @ rollout
    return rollout
