"""A classifier as it is exported: batch normalisations folded into products, its attention among the outputs."""

import keras
import numpy as np
from keras import ops

from keras_ci2p.models.image_classifier import ImageClassifier


def fold_batch_norm(model: ImageClassifier) -> ImageClassifier:
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

    Examples:
        >>> model = keras_ci2p.CI2PViT(
        ...     (32, 32, 3), num_classes=3, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
        ... )
        >>> folded = keras_ci2p.export.fold_batch_norm(model)
        >>> folded(np.zeros((1, 32, 32, 3), "uint8")).shape
        (1, 3)
    """
    folded = float32_copy(model)
    for layer in folded._flatten_layers():
        for norm in layer._flatten_layers(include_self=False, recursive=False):
            if isinstance(norm, keras.layers.BatchNormalization):
                # In this library the normalisation of `expand` is called `expand_norm`.
                _fold(getattr(layer, norm.name.removesuffix("_norm")), norm)
    return folded


def inference_function(model, outputs):
    """The function that is exported, of a classifier that `fold_batch_norm` made.

    Args:
        model: A classifier of fixed image size.
        outputs: Names of what it gives: that of the model's own output first, perhaps that of its attention.

    Returns:
        A function of images that gives the model's output; of several outputs a dict.
    """
    if len(outputs) == 1:
        return lambda images: model(images, training=False)
    own, attention = outputs
    blocks = model.attention_blocks()
    inner = keras.Model(model.input, [model.output, *(block.input for block in blocks)])

    def serve(images):
        output, *tokens = inner(images, training=False)
        return {own: output, attention: received_attention(blocks, tokens, model.grid_size)}

    return serve


def received_attention(blocks, tokens, grid_size):
    """How much what is classified, the mean of the tokens, has of each input token.

    That is `keras_ci2p.layers.attention_rollout` of all blocks, its mean over the output tokens, times their number.

    Args:
        blocks: `TransformerBlock`s, the first one first.
        tokens: What each takes, `(batch, tokens, hidden_dim)`.
        grid_size: `(rows, columns)` of the tokens.

    Returns:
        float32 tensor `(batch, rows, columns)`, on average 1.
    """
    share = None
    for block, inputs in zip(reversed(blocks), reversed(tokens), strict=True):
        weights = ops.mean(block.attention_scores(inputs), axis=1)
        # As many times the mean over the queries as there are tokens; then one row through layer after layer.
        through = ops.sum(weights, axis=1) if share is None else ops.sum(share[:, :, None] * weights, axis=1)
        share = (through + (1.0 if share is None else share)) / 2
    return ops.reshape(share, (-1, *grid_size))


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
        shift = bias[0] * scale + shift
    # Apple's GPUs know no float64.
    kernel, shift = kernel.astype("float32"), shift.astype("float32")
    if bias:
        product.set_weights([kernel, shift])
        norm.call = lambda inputs, training=None, mask=None: inputs
    else:
        product.set_weights([kernel])
        norm.beta.assign(shift)
        norm.call = lambda inputs, training=None, mask=None: inputs + keras.ops.convert_to_tensor(norm.beta)
