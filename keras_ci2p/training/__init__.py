"""Training runs that can be interrupted, and their evaluation."""

from keras_ci2p.training.evaluation import evaluate
from keras_ci2p.training.run import RunError, train
from keras_ci2p.training.settings import TrainSettings

__all__ = ["RunError", "TrainSettings", "evaluate", "train"]
