"""CI2P-ViT among KerasHub's models. Importing this registers the classes, so that KerasHub's loader finds them."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "models": [
            "CI2PViTBackbone",
            "CI2PViTDualScaleBackbone",
            "CI2PViTDualScaleImageClassifier",
            "CI2PViTDualScaleImageClassifierPreprocessor",
            "CI2PViTDualScaleImageConverter",
            "CI2PViTImageClassifier",
            "CI2PViTImageClassifierPreprocessor",
            "CI2PViTImageConverter",
        ],
        "replace_patch_embedding": ["ClassTokenAndPositions", "replace_patch_embedding"],
    },
)

# Not lazily: KerasHub's loader finds only classes that are registered.
for _name in __all__:
    __getattr__(_name)
