"""One model on several backends of Keras: what differs in its results, and in its cost."""

from keras_ci2p.comparison.compare import compare
from keras_ci2p.comparison.settings import BACKENDS, CompareSettings

__all__ = ["BACKENDS", "CompareSettings", "compare"]
