"""Weights of PyTorch checkpoints as Keras models, and back."""

from keras_ci2p.convert.checkpoints import CheckpointError
from keras_ci2p.convert.compressai import from_compressai, to_compressai
from keras_ci2p.convert.mmpretrain import from_mmpretrain, to_mmpretrain
from keras_ci2p.convert.vit import from_vit
from keras_ci2p.convert.zoo import DownloadError, zoo_names

__all__ = [
    "CheckpointError",
    "DownloadError",
    "from_compressai",
    "from_mmpretrain",
    "from_vit",
    "to_compressai",
    "to_mmpretrain",
    "zoo_names",
]
