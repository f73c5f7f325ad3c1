"""CI2P-ViT (arXiv 2502.10120) for Keras 3: compressed images as patches of a Vision Transformer."""

from keras_ci2p import convert, layers, models, presets
from keras_ci2p.models import CI2PViT, CI2PViTBackbone, ViT, ViTBackbone
from keras_ci2p.presets import list_presets
from keras_ci2p.version import __version__

__all__ = [
    "CI2PViT",
    "CI2PViTBackbone",
    "ViT",
    "ViTBackbone",
    "__version__",
    "convert",
    "layers",
    "list_presets",
    "models",
    "presets",
]
