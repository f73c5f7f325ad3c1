"""Batch normalisation as part of the product before it, which is what it is once its statistics are fixed."""

import keras
import numpy as np


def fold_batch_norm(model):
    """A copy of a classifier for inference whose batch normalisations are folded into the products before them.

    The running statistics make `norm(kernel * x + bias)` one product: the kernel is multiplied by
    `gamma / sqrt(variance + epsilon)` of each output channel, and what remains is a bias. The logits are those of
    `model` up to rounding.

    The copy computes in float32 whatever the model's dtype policy is. It cannot be trained, and not be saved as a
    preset: save `model`.

    Args:
        model: A `CI2PViT`, `CI2PViTDualScale` or `ViT`, not quantised. It stays as it is.

    Returns:
        A model of the same class.
    """
    folded = float32_copy(model)
    for layer in folded._flatten_layers():
        for norm in layer._flatten_layers(include_self=False, recursive=False):
            if isinstance(norm, keras.layers.BatchNormalization):
                # In this library the normalisation of `expand` is called `expand_norm`.
                _fold(getattr(layer, norm.name.removesuffix("_norm")), norm)
    return folded


def float32_copy(model):
    """A copy of a classifier, of dtype policy float32 and not trainable."""
    copy = type(model).from_config({**model.get_config(), "dtype": "float32"})
    copy.set_weights(model.get_weights())
    copy.trainable = False
    return copy


def _fold(product, norm):
    gamma, beta, mean, variance = (
        keras.ops.convert_to_numpy(weight).astype("float64")
        for weight in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.epsilon)
    shift = beta - mean * scale
    kernel, *bias = product.get_weights()
    # The kernel of a depthwise convolution ends in (channels, 1).
    is_depthwise = isinstance(product, keras.layers.DepthwiseConv2D)
    kernel = kernel * (scale[:, None] if is_depthwise else scale)
    if bias:
        product.set_weights([kernel, bias[0] * scale + shift])
        norm.call = lambda inputs, training=None, mask=None: inputs
    else:
        product.set_weights([kernel])
        norm.beta.assign(shift)
        norm.call = lambda inputs, training=None, mask=None: inputs + keras.ops.convert_to_tensor(norm.beta)
