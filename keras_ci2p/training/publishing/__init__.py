"""From a training run to a preset that can be shipped: compact weights, measured anew, with a model card."""

from keras_ci2p.training.publishing.publish import publish
from keras_ci2p.training.publishing.subject import PublishError

__all__ = ["PublishError", "publish"]
