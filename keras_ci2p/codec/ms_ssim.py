"""MS-SSIM, as CompressAI measures it and trains by it (the package pytorch-msssim): in NumPy, or in `keras.ops`."""

from typing import Any

import numpy as np

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# Of an image's shorter side: the window fits into the smallest scale.
LEAST_SIDE = (_WINDOW - 1) * 2 ** (len(_WEIGHTS) - 1) + 1


def ms_ssim(image: np.ndarray, other: np.ndarray) -> float:
    """Multi-scale structural similarity, at most 1 (Wang, Simoncelli and Bovik, 2003): the mean of the channels.

    Args:
        image, other: `(height, width, channels)`, 0..255, of the same shape; both sides at least `LEAST_SIDE`, 161.

    Returns:
        float.

    Raises:
        ValueError: Other shapes.

    Examples:
        >>> image = np.random.default_rng(0).integers(0, 256, (161, 161, 3))
        >>> round(keras_ci2p.codec.ms_ssim(image, image), 4)
        1.0
    """
    return float(batch_ms_ssim(np, *(x[None].astype("float32") for x in (image, other)))[0])


def batch_ms_ssim(xp: Any, images: Any, others: Any) -> Any:
    """`ms_ssim` of each of a batch of images, by the functions of `xp`; what trains by it gets gradients.

    Args:
        xp: `numpy` or `keras.ops`.
        images, others: float32 `(batch, height, width, channels)`, as in `ms_ssim`.

    Returns:
        `(batch,)`, float32.

    Raises:
        ValueError: Other shapes; sizes that TensorFlow does not know, as they change from batch to batch.
    """
    sides = images.shape[1:3]
    if tuple(sides) != tuple(others.shape[1:3]) or None in sides or min(sides) < LEAST_SIDE:
        raise ValueError(
            f"MS-SSIM compares two images of one shape, at least {LEAST_SIDE} pixels high and wide. Received: "
            f"{tuple(images.shape)} and {tuple(others.shape)}"
        )
    product = 1.0
    for scale, weight in enumerate(_WEIGHTS):
        if scale > 0:
            images, others = _halve(xp, images), _halve(xp, others)
        similarity, contrast = _similarity(xp, images, others)
        factor = similarity if scale == len(_WEIGHTS) - 1 else contrast
        # A power has no finite gradient at 0.
        is_positive = factor > 0
        product = product * xp.where(is_positive, xp.power(xp.where(is_positive, factor, 1.0), weight), 0.0)
    return xp.mean(product, axis=-1)


def _similarity(xp: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Means of SSIM, and of its part of contrast and structure: both `(batch, channels)`."""
    blurred = _blur(xp.concatenate([x, y, x * x, y * y, x * y], axis=-1))
    channels = x.shape[-1]
    mean_x, mean_y, square_x, square_y, product = (blurred[..., i * channels : (i + 1) * channels] for i in range(5))
    covariance = product - mean_x * mean_y
    variances = square_x - mean_x**2 + square_y - mean_y**2
    contrast = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return xp.mean(luminance * contrast, axis=(1, 2)), xp.mean(contrast, axis=(1, 2))


def _blur(x: Any) -> Any:
    """With a Gaussian window, where it fits."""
    weights = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    # From the end, for slices that need no size.
    taps = [(float(weight), i, i - _WINDOW + 1 or None) for i, weight in enumerate(weights / weights.sum())]
    x = sum(weight * x[:, start:end] for weight, start, end in taps)
    return sum(weight * x[:, :, start:end] for weight, start, end in taps)


def _halve(xp: Any, x: Any) -> Any:
    """Means of two by two pixels; an odd side gets a zero before it, as in pytorch-msssim."""
    _, height, width, channels = x.shape
    x = xp.pad(x, [(0, 0), (height % 2, 0), (width % 2, 0), (0, 0)])
    x = xp.reshape(x, (-1, (height + 1) // 2, 2, (width + 1) // 2, 2, channels))
    return xp.mean(x, axis=(2, 4))
