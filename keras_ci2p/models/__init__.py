"""The models: CI2P-ViT, its dual-scale form, and the Vision Transformer that they are compared with."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        ".names": ["DUAL_SCALE_VARIANTS", "VARIANTS"],
        "ci2p_vit": [
            "CI2PViT",
            "CI2PViTBackbone",
            "CI2PViTDualScale",
            "CI2PViTDualScaleBackbone",
            "CLASSIFIERS",
            "ViT",
            "ViTBackbone",
            "load_preset",
        ],
        "compressor": ["Compressor"],
    },
    renamed={"CI2PClassifier": "backbone.CompressorMixin"},
)
