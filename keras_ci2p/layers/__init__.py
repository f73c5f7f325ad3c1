"""Keras layers of CI2P-ViT. They know nothing of models, files or data."""

from keras_ci2p.names import lazy_imports

_importable, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "batch_augmentation": ["BatchAugmentation", "BatchMixing"],
        "compression_layers": [
            "AttentionBlock",
            "EntropyBottleneck",
            "GDN",
            "GaussianConditional",
            "ResidualBlock",
            "ResidualUnit",
            "StridedResidualBlock",
        ],
        "compression_transforms": ["AnalysisTransform", "HyperAnalysis", "HyperSynthesis", "SynthesisTransform"],
        "core": ["ImageNormalization", "SymmetricConv2D", "SymmetricConv2DTranspose", "SymmetricDepthwiseConv2D"],
        "embedding": [
            "CI2PPatchEmbedding",
            "FinePatchGenerator",
            "InvertedResidual",
            "PatchGenerator",
            "PositionEmbedding",
        ],
        "transformer": ["DropPath", "LeFF", "LeFFBlock", "PatchMerging", "TransformerBlock", "attention_rollout"],
    },
)
# Parts of other layers, and a former name: public in 0.1.0, and still there for who imports them.
_NOT_LISTED = {
    "AttentionBlock",
    "FinePatchGenerator",
    "ResidualBlock",
    "ResidualUnit",
    "StridedResidualBlock",
    "SymmetricConv2DTranspose",
}
__all__ = [name for name in _importable if name not in _NOT_LISTED]
