"""Steps of training small compressors that are the same everywhere: weights, images and noise from numpy."""

from dataclasses import dataclass

import numpy as np

from keras_ci2p import Compressor

BATCH = 2
CHANNELS = (6, 8)
LEARNING_RATE, AUXILIARY_LEARNING_RATE, CLIP_NORM = 2e-3, 1e-2, 1.0


@dataclass(frozen=True)
class Case:
    """What is trained: an architecture, for a metric; images of a size, a number of steps.

    Lambdas are small: Keras and PyTorch place Adam's epsilon differently, which shows where gradients are almost zero.
    """

    architecture: str
    metric: str = "mse"
    size: int = 64
    steps: int = 20
    lmbda: float = 0.001

    @property
    def name(self):
        return f"{self.architecture}/{self.metric}"


CASES = (
    Case("bmshj2018-factorized", size=32),
    Case("bmshj2018-hyperprior", lmbda=2e-5),
    Case("mbt2018-mean", lmbda=2e-5),
    Case("mbt2018-mean", "ms-ssim", size=192, steps=6, lmbda=2.0),
)


def make_compressor(case):
    compressor = Compressor(case.architecture, quality=None, channels=CHANNELS)
    rng = np.random.default_rng(7)
    for variable in compressor.weights:
        if variable.path.endswith("kernel"):
            fan_in = int(np.prod(variable.shape[:3]))
            variable.assign(rng.standard_normal(variable.shape) / np.sqrt(fan_in))
        elif "bias" in variable.path:
            variable.assign(rng.uniform(-0.5, 0.5, variable.shape))
    return compressor


def make_batches(case):
    """`{"images", "noise", "hyper_noise"}` of each step: smooth pictures, uint8; the last of hyperpriors alone."""
    rng = np.random.default_rng(8)
    side = case.size // 8
    coarse = rng.uniform(0, 255, (case.steps, BATCH, side, side, 3))
    images = coarse.repeat(8, axis=2).repeat(8, axis=3).astype("uint8")
    is_factorized = "factorized" in case.architecture
    parts = {"noise": (16, CHANNELS[1])} | ({} if is_factorized else {"hyper_noise": (64, CHANNELS[0])})
    noises = {
        name: rng.uniform(-0.5, 0.5, (case.steps, BATCH, *[case.size // stride] * 2, channels)).astype("float32")
        for name, (stride, channels) in parts.items()
    }
    return [{"images": image, **{name: noise[i] for name, noise in noises.items()}} for i, image in enumerate(images)]
