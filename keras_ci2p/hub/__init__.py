"""CI2P-ViT among KerasHub's models. Importing this registers the classes, so that KerasHub's loader finds them."""

from keras_ci2p.hub.backbones import CI2PViTBackbone, CI2PViTDualScaleBackbone
from keras_ci2p.hub.classifiers import CI2PViTDualScaleImageClassifier, CI2PViTImageClassifier
from keras_ci2p.hub.drop_in import ClassTokenAndPositions, replace_patch_embedding
from keras_ci2p.hub.preprocessing import (
    CI2PViTDualScaleImageClassifierPreprocessor,
    CI2PViTDualScaleImageConverter,
    CI2PViTImageClassifierPreprocessor,
    CI2PViTImageConverter,
)

__all__ = [
    "CI2PViTBackbone",
    "CI2PViTDualScaleBackbone",
    "CI2PViTDualScaleImageClassifier",
    "CI2PViTDualScaleImageClassifierPreprocessor",
    "CI2PViTDualScaleImageConverter",
    "CI2PViTImageClassifier",
    "CI2PViTImageClassifierPreprocessor",
    "CI2PViTImageConverter",
    "ClassTokenAndPositions",
    "replace_patch_embedding",
]
