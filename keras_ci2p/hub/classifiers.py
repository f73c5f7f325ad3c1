"""The image classifiers as KerasHub tasks: pooling and head of `keras_ci2p.models` over our KerasHub backbones."""

import keras

from keras_ci2p.hub.backbones import CI2PViTBackbone, CI2PViTDualScaleBackbone
from keras_ci2p.hub.kerashub import keras_hub, register
from keras_ci2p.hub.preprocessing import (
    CI2PViTDualScaleImageClassifierPreprocessor,
    CI2PViTImageClassifierPreprocessor,
)
from keras_ci2p.models import CI2PClassifier
from keras_ci2p.models.ci2p_classifier import CI2PParts


class HubImageClassifier(CI2PParts, keras_hub.models.ImageClassifier):
    """Base class: the mean of the backbone's tokens is classified.

    Args:
        backbone: Of the class `backbone_cls`.
        num_classes: Number of classes.
        preprocessor: Of the class `preprocessor_cls`, or None: then `fit` and `predict` take images of the model's
            size. `from_preset` makes one for a preset that has none.
        class_names: Names of the classes, or None.
        activation: Activation of the head, None for logits.
        **kwargs: Of `keras_hub.models.Task`: `name`, `compile`.
    """

    def __init__(self, backbone, num_classes, preprocessor=None, class_names=None, activation=None, **kwargs):
        classifier = CI2PClassifier(backbone, num_classes, class_names, activation, name="classifier")
        # Past Keras's attribute tracking: its layers are this model's own.
        self.__dict__["_classifier"] = classifier

        # === Config ===
        # Before the constructor, which compiles: the default loss asks for the activation.
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.num_classes = num_classes
        self.class_names = classifier.class_names
        self.activation = classifier.activation

        # === Functional model ===
        # Past the constructor of KerasHub's classifier, which pools over a grid and not over tokens.
        keras_hub.models.Task.__init__(self, inputs=classifier.input, outputs=classifier.output, **kwargs)

    def get_config(self):
        # Not the base class's, which tells of arguments that this one does not have.
        return {
            **keras_hub.models.Task.get_config(self),
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config["backbone"], dict):
            config["backbone"] = keras.saving.deserialize_keras_object(config["backbone"])
        if "preprocessor" not in config:
            # What `keras_ci2p` has saved holds none.
            config["preprocessor"] = cls.preprocessor_cls.for_image_shape(config["backbone"].image_shape)
        if len(config.get("class_names") or ()) != config["num_classes"]:
            # `from_preset(..., num_classes=...)` puts its own number beside the preset's names.
            config["class_names"] = None
        return super().from_config(config)

    # A head is stored alike by both libraries.

    def save_task_weights(self, filepath):
        self._classifier._head_model().save_weights(filepath)

    def load_task_weights(self, filepath):
        self._classifier._head_model().load_weights(filepath)


@register
class CI2PViTImageClassifier(HubImageClassifier):
    """`keras_ci2p.CI2PViT` as a KerasHub task.

    Args:
        backbone: `CI2PViTBackbone`.
        num_classes: Number of classes.
        preprocessor: `CI2PViTImageClassifierPreprocessor`, or None: then `fit` and `predict` take images of the
            model's size. `from_preset` makes one for a preset that has none.
        class_names: Names of the classes, or None.
        activation: Activation of the head, None for logits.
        **kwargs: Of `keras_hub.models.Task`: `name`, `compile`.

    Example:
        >>> backbone = keras_ci2p.hub.CI2PViTBackbone(image_shape=(64, 64, 3), num_layers=2)
        >>> classifier = keras_ci2p.hub.CI2PViTImageClassifier(backbone, num_classes=3)
        >>> classifier.predict(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 3)
    """

    backbone_cls = CI2PViTBackbone
    preprocessor_cls = CI2PViTImageClassifierPreprocessor


@register
class CI2PViTDualScaleImageClassifier(HubImageClassifier):
    """`keras_ci2p.CI2PViTDualScale` as a KerasHub task.

    Args:
        backbone: `CI2PViTDualScaleBackbone`.
        num_classes, preprocessor, class_names, activation, **kwargs: As in `CI2PViTImageClassifier`, the preprocessor a
            `CI2PViTDualScaleImageClassifierPreprocessor`.
    """

    backbone_cls = CI2PViTDualScaleBackbone
    preprocessor_cls = CI2PViTDualScaleImageClassifierPreprocessor
