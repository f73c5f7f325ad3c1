"""Weights of PyTorch checkpoints as Keras models, and back."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        ".names": ["zoo_names"],
        "compressai": ["DownloadError", "from_compressai", "read_compressor", "to_compressai"],
        "mmpretrain": ["from_mmpretrain", "to_mmpretrain"],
        "pretrained_vit": ["from_vit"],
        "state_dict": ["CheckpointError"],
    },
)
