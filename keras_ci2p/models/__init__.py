"""The models: CI2P-ViT, its dual-scale form, and the Vision Transformer that they are compared with."""

from keras_ci2p.models.ci2p_classifier import CI2PClassifier
from keras_ci2p.models.ci2p_vit import CI2PViT, CI2PViTBackbone
from keras_ci2p.models.ci2p_vit_dual_scale import CI2PViTDualScale, CI2PViTDualScaleBackbone
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.variants import DUAL_SCALE_VARIANTS, VARIANTS
from keras_ci2p.models.vit import ViT, ViTBackbone

# By the names of the command line's `--model`.
CLASSIFIERS = {"ci2p": CI2PViT, "ci2p_dual": CI2PViTDualScale, "vit": ViT}

__all__ = [
    "CLASSIFIERS",
    "DUAL_SCALE_VARIANTS",
    "VARIANTS",
    "CI2PClassifier",
    "CI2PViT",
    "CI2PViTBackbone",
    "CI2PViTDualScale",
    "CI2PViTDualScaleBackbone",
    "Compressor",
    "ViT",
    "ViTBackbone",
]
