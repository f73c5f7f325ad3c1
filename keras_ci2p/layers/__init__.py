"""Keras layers of CI2P-ViT. They know nothing of models, files or data."""

from keras_ci2p.utils import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "batch_augmentation": ["BatchAugmentation", "BatchMixing"],
        "compression_layers": [
            "AttentionBlock",
            "EntropyBottleneck",
            "GDN",
            "ResidualBlock",
            "ResidualUnit",
            "StridedResidualBlock",
        ],
        "compression_transforms": ["AnalysisTransform", "SynthesisTransform"],
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
