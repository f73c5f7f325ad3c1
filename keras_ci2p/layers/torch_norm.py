"""What PyTorch normalises by a kernel of its own, where Keras composes it of operations."""


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
