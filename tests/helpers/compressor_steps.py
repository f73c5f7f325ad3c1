"""Twenty steps of training a small compressor that are the same everywhere: weights, images and noise from numpy."""

import numpy as np

from keras_ci2p import Compressor

STEPS, BATCH, SIZE = 20, 2, 32
CHANNELS = (6, 8)
# A small lambda: Keras and PyTorch place Adam's epsilon differently, which shows where gradients are almost zero.
LMBDA, LEARNING_RATE, AUXILIARY_LEARNING_RATE, CLIP_NORM = 0.001, 2e-3, 1e-2, 1.0


def make_compressor():
    compressor = Compressor("bmshj2018-factorized", quality=None, channels=CHANNELS)
    rng = np.random.default_rng(7)
    for variable in compressor.weights:
        if variable.path.endswith("kernel"):
            fan_in = int(np.prod(variable.shape[:3]))
            variable.assign(rng.standard_normal(variable.shape) / np.sqrt(fan_in))
        elif "bias" in variable.path:
            variable.assign(rng.uniform(-0.5, 0.5, variable.shape))
    return compressor


def make_batches():
    """`(images, noise)` of each step: smooth pictures, uint8."""
    rng = np.random.default_rng(8)
    coarse = rng.uniform(0, 255, (STEPS, BATCH, SIZE // 8, SIZE // 8, 3))
    images = coarse.repeat(8, axis=2).repeat(8, axis=3).astype("uint8")
    noise = rng.uniform(-0.5, 0.5, (STEPS, BATCH, SIZE // 16, SIZE // 16, CHANNELS[1])).astype("float32")
    return list(zip(images, noise, strict=True))
