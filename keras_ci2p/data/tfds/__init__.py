"""Image classification sets of TensorFlow Datasets (TFDS), prepared as ArrayRecord and read without TensorFlow."""

from keras_ci2p.data.tfds.manifest import TFDSManifest, open_tfds
from keras_ci2p.data.tfds.sets import PREFIX, find_builder, prepare_tfds, prepared_directory

__all__ = ["PREFIX", "TFDSManifest", "find_builder", "open_tfds", "prepare_tfds", "prepared_directory"]
