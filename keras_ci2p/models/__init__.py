"""The models: CI2P-ViT and the Vision Transformer that it is compared with."""

from keras_ci2p.models.ci2p_vit import CI2PViT, CI2PViTBackbone
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.variants import VARIANTS
from keras_ci2p.models.vit import ViT, ViTBackbone

# By the names of the command line's `--model`.
CLASSIFIERS = {"ci2p": CI2PViT, "vit": ViT}

__all__ = ["CLASSIFIERS", "VARIANTS", "CI2PViT", "CI2PViTBackbone", "Compressor", "ViT", "ViTBackbone"]
