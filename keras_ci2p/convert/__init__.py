"""Weights of PyTorch checkpoints as Keras models."""

from keras_ci2p.convert.checkpoints import CheckpointError
from keras_ci2p.convert.mmpretrain import from_mmpretrain

__all__ = ["CheckpointError", "from_mmpretrain"]
