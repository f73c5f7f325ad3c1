"""Keras layers of CI2P-ViT. They know nothing of models, files or data."""

from keras_ci2p.layers.analysis_transform import AnalysisTransform
from keras_ci2p.layers.attention import attention_rollout
from keras_ci2p.layers.batch_augmentation import BatchAugmentation
from keras_ci2p.layers.batch_mixing import BatchMixing
from keras_ci2p.layers.ci2p_patch_embedding import CI2PPatchEmbedding
from keras_ci2p.layers.drop_path import DropPath
from keras_ci2p.layers.entropy_bottleneck import EntropyBottleneck
from keras_ci2p.layers.fine_patch_generator import FinePatchGenerator
from keras_ci2p.layers.gdn import GDN
from keras_ci2p.layers.image_normalization import ImageNormalization
from keras_ci2p.layers.inverted_residual import InvertedResidual
from keras_ci2p.layers.leff import LeFF
from keras_ci2p.layers.leff_block import LeFFBlock
from keras_ci2p.layers.patch_generator import PatchGenerator
from keras_ci2p.layers.patch_merging import PatchMerging
from keras_ci2p.layers.position_embedding import PositionEmbedding
from keras_ci2p.layers.residual_blocks import AttentionBlock, ResidualBlock, ResidualUnit, StridedResidualBlock
from keras_ci2p.layers.symmetric_conv import SymmetricConv2D, SymmetricDepthwiseConv2D
from keras_ci2p.layers.synthesis_transform import SymmetricConv2DTranspose, SynthesisTransform
from keras_ci2p.layers.transformer_block import TransformerBlock

__all__ = [
    "AnalysisTransform",
    "AttentionBlock",
    "BatchAugmentation",
    "BatchMixing",
    "CI2PPatchEmbedding",
    "DropPath",
    "EntropyBottleneck",
    "FinePatchGenerator",
    "GDN",
    "ImageNormalization",
    "InvertedResidual",
    "LeFF",
    "LeFFBlock",
    "PatchGenerator",
    "PatchMerging",
    "PositionEmbedding",
    "ResidualBlock",
    "ResidualUnit",
    "StridedResidualBlock",
    "SymmetricConv2D",
    "SymmetricConv2DTranspose",
    "SymmetricDepthwiseConv2D",
    "SynthesisTransform",
    "TransformerBlock",
    "attention_rollout",
]
