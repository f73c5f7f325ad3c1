"""What PyTorch has a kernel for, where Keras composes it of operations or copies its inputs.

`benchmarks/optimizations.py` measures the gain.
"""

import keras


def on_torch():
    """Whether Keras computes with PyTorch."""
    return keras.backend.backend() == "torch"


def linear(inputs, kernel, bias=None):
    """Product along the last axis. Keras adds the bias in a pass of its own.

    Args:
        inputs: torch tensor `(..., channels)`.
        kernel: `(channels, units)`, of the same dtype.
        bias: `(units,)`, or None.
    """
    import torch

    return torch.nn.functional.linear(inputs, kernel.T, bias)


def conv2d(inputs, kernel, bias, strides, padding, dilation):
    """Convolution of images, channels last. Keras copies them to channels first and back.

    Args:
        inputs: torch tensor `(batch, height, width, channels)`.
        kernel: `(rows, columns, channels / groups, filters)`, of the same dtype.
        bias: `(filters,)`, or None.
        strides, padding, dilation: `(rows, columns)`; the zeros of the padding are on both sides.
    """
    import torch

    # A view: PyTorch's memory format channels_last.
    images = inputs.permute(0, 3, 1, 2)
    kernel = kernel.permute(3, 2, 0, 1)
    groups = images.shape[1] // kernel.shape[1]
    outputs = torch.nn.functional.conv2d(images, kernel, bias, strides, padding, dilation, groups)
    return outputs.permute(0, 2, 3, 1)


def batch_norm(inputs, scale, offset, epsilon):
    """Normalises each channel by the statistics of the batch.

    Args:
        inputs: torch tensor `(batch, ..., channels)`, float32 or float64.
        scale, offset: torch tensors `(channels,)`, or None.
        epsilon: Added to the variance.

    Returns:
        The normalised tensor, and the channels' means and (biased) variances, which have no gradients.
    """
    import torch

    channels = inputs.shape[-1]
    # An image in memory format channels_last, for which the kernel is fast.
    image = inputs.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)
    outputs, mean, inverse_deviation = torch.native_batch_norm(image, scale, offset, None, None, True, 0.0, epsilon)
    variance = (inverse_deviation.square().reciprocal() - epsilon).clamp(min=0)
    return outputs.permute(0, 2, 3, 1).reshape(inputs.shape), mean, variance


# Up to so many tokens PyTorch's fused attention gains nothing on a CPU; with products in bfloat16 it takes a hundred
# times as long, since it prepares each of its many small products anew.
SHORT = 64


def is_short(query):
    """Whether `short_attention` is for such a query: float32, on a CPU, of few tokens."""
    import torch

    return query.dtype == torch.float32 and query.device.type == "cpu" and query.shape[1] <= SHORT


def short_attention(query, key, value):
    """`softmax(query key^T / sqrt(head_dim)) value`, each `(batch, tokens, heads, head_dim)`, by plain products."""
    import torch

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    weights = torch.softmax(torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)), -1)
    return torch.matmul(weights, value).transpose(1, 2)
