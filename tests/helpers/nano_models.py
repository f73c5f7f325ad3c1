"""Arguments of KerasHub models small enough for any test, our models of the same sizes, and what is asked of both."""

import keras
import numpy as np
from conftest import NANO

from keras_ci2p import CI2PViT, CI2PViTDualScale

COMPRESSOR = {"num_filters": 8, "latent_channels": 12}
PLAIN = {"image_shape": (64, 64, 3), "compressor": COMPRESSOR, **NANO}
DUAL = {**PLAIN, "early_dim": 16, "merge_at": 1}
VIT = {"image_shape": (64, 64, 3), "patch_size": 16, **NANO}


def our_model(model_class=CI2PViT, **arguments):
    sizes = DUAL if model_class is CI2PViTDualScale else PLAIN
    return model_class(num_classes=3, class_names=["cat", "dog", "owl"], **{**sizes, **arguments})


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def assert_same_weights(model, other):
    """Of two models or layers: bit for bit, in the same order."""
    for weight, expected in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), to_numpy(expected))
