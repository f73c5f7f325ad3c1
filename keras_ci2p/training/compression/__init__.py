"""Training of compressors: resumable runs, and how good a compressor is."""

from keras_ci2p.training.compression.evaluation import evaluate_compressor
from keras_ci2p.training.compression.pictures import plot_reconstructions, show_reconstructions
from keras_ci2p.training.compression.run import train_compressor
from keras_ci2p.training.compression.settings import CompressorSettings

__all__ = [
    "CompressorSettings",
    "evaluate_compressor",
    "plot_reconstructions",
    "show_reconstructions",
    "train_compressor",
]
