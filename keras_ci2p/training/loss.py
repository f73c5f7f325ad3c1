"""The loss: cross-entropy with soft targets."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SoftTargetCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits with soft targets, label smoothing and class weights.

    The target becomes `(1 - label_smoothing) * target + label_smoothing / classes` (mmpretrain's mode "original", after
    mixing), the loss of each image is weighted by its target's mean class weight.

    Args:
        label_smoothing: In [0, 1).
        class_weights: One number for each class, or None for 1.

    Input shape: targets and logits `(batch, classes)`.
    """

    def __init__(self, label_smoothing=0.0, class_weights=None, name="loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else list(class_weights)

    def call(self, y_true, y_pred):
        loss = keras.losses.categorical_crossentropy(
            y_true, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )
        if self.class_weights is not None:
            loss = loss * ops.sum(y_true * ops.convert_to_tensor(self.class_weights, dtype=y_true.dtype), -1)
        return loss

    def get_config(self):
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
        }


def balanced_weights(counts):
    """Class weights that make each class count alike: `images / (classes * images of the class)`.

    Args:
        counts: Images of each class.
    """
    return [sum(counts) / (len(counts) * count) for count in counts]
