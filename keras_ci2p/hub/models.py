"""CI2P-ViT among KerasHub's models: backbones, classifiers, preprocessors."""

import keras

from keras_ci2p import models
from keras_ci2p.models.backbone import CompressorMixin
from keras_ci2p.models.image_classifier import HEAD_ARGUMENTS, activation_name, check_classes, classify, head_model
from keras_ci2p.presets import HUB, complete_metadata
from keras_ci2p.utils import require

keras_hub = require("keras_hub", extra="hub")

# `keras_ci2p.models` has registered classes of the same names.
register = keras.saving.register_keras_serializable(package=HUB)


class HubBackbone(keras_hub.models.Backbone):
    """Base class: a `keras_hub.models.Backbone` over the functional graph of a `core_class` of ours.

    Args:
        dtype: Dtype policy of the layers; with a `DTypePolicyMap`, each layer's own.
        name, trainable: As in `keras.Model`.
        **arguments: Of the `core_class`.
    """

    core_class = None

    def __init__(self, dtype=None, name=None, trainable=True, **arguments):
        core = self.core_class(dtype=dtype, **arguments)
        super().__init__(inputs=core.input, outputs=core.output, dtype=dtype, name=name, trainable=trainable)

        # === Config ===
        self._arguments = tuple(argument for argument in core.get_config() if argument not in ("dtype", "name"))
        for argument in self._arguments:
            if not hasattr(type(self), argument):
                setattr(self, argument, getattr(core, argument))

    def get_config(self):
        config = super().get_config()
        return {**config, **{argument: getattr(self, argument) for argument in self._arguments}}

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves the backbone as a preset that `keras_ci2p` reads as well.

        Args:
            preset_dir: Directory to write to.
            max_shard_size: Largest size of a weight file in GB; None for a single file.
        """
        super().save_to_preset(preset_dir, max_shard_size=max_shard_size)
        complete_metadata(preset_dir)

    def default_lora_layer_names(self):
        return ["qkv"]


@register
class CI2PViTBackbone(CompressorMixin, HubBackbone):
    """`keras_ci2p.CI2PViTBackbone` as a KerasHub backbone: images to tokens.

    Args: As in `keras_ci2p.CI2PViTBackbone`, and `trainable`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255, channels last.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Example:
        >>> backbone = keras_ci2p.hub.CI2PViTBackbone(image_shape=(64, 64, 3), num_layers=2)
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 768)
    """

    core_class = models.CI2PViTBackbone


@register
class CI2PViTDualScaleBackbone(CompressorMixin, HubBackbone):
    """`keras_ci2p.CI2PViTDualScaleBackbone` as a KerasHub backbone: images to tokens.

    Args: As in `keras_ci2p.CI2PViTDualScaleBackbone`, and `trainable`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255, channels last.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.
    """

    core_class = models.CI2PViTDualScaleBackbone


class HubPreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """Base class: an image converter before the model."""

    @classmethod
    def for_image_shape(cls, image_shape):
        """The preprocessor of a model for images of `image_shape`, `(height, width, 3)`; None for any size.

        The largest window of that aspect ratio is resized bilinearly, with antialiasing. Values stay RGB in 0..255.
        """
        height, width, _ = image_shape
        size = None if None in (height, width) else (height, width)
        return cls(cls.image_converter_cls(image_size=size, antialias=True))

    @classmethod
    def _add_missing_kwargs(cls, loader, kwargs):
        # What `keras_ci2p` has saved holds no preprocessor.
        if "image_converter" not in kwargs:
            image_shape = loader.config["config"]["image_shape"]
            kwargs["image_converter"] = cls.for_image_shape(image_shape).image_converter
        return kwargs


@register
class CI2PViTImageConverter(keras_hub.layers.ImageConverter):
    """Resizes and crops images for `CI2PViTBackbone`, which takes RGB in 0..255: no scale, no offset.

    Args: As in `keras_hub.layers.ImageConverter`.
    """

    backbone_cls = CI2PViTBackbone


@register
class CI2PViTImageClassifierPreprocessor(HubPreprocessor):
    """The preprocessor of `CI2PViTImageClassifier`.

    Args:
        image_converter: `CI2PViTImageConverter`.
    """

    backbone_cls = CI2PViTBackbone
    image_converter_cls = CI2PViTImageConverter


@register
class CI2PViTDualScaleImageConverter(keras_hub.layers.ImageConverter):
    """Resizes and crops images for `CI2PViTDualScaleBackbone`, which takes RGB in 0..255: no scale, no offset.

    Args: As in `keras_hub.layers.ImageConverter`.
    """

    backbone_cls = CI2PViTDualScaleBackbone


@register
class CI2PViTDualScaleImageClassifierPreprocessor(HubPreprocessor):
    """The preprocessor of `CI2PViTDualScaleImageClassifier`.

    Args:
        image_converter: `CI2PViTDualScaleImageConverter`.
    """

    backbone_cls = CI2PViTDualScaleBackbone
    image_converter_cls = CI2PViTDualScaleImageConverter


class HubImageClassifier(CompressorMixin, keras_hub.models.ImageClassifier):
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
        check_classes(num_classes, class_names)
        outputs, head = classify(backbone, num_classes, activation)

        # === Config ===
        # Before the constructor, which compiles: the default loss asks for the activation.
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.num_classes = head.units
        self.class_names = None if class_names is None else list(class_names)
        self.activation = activation_name(head)

        # === Functional model ===
        # Past the constructor of KerasHub's classifier, which pools over a grid and not over tokens.
        keras_hub.models.Task.__init__(self, inputs=backbone.input, outputs=outputs, **kwargs)

    def get_config(self):
        # Not the base class's, which tells of arguments that this one does not have.
        config = keras_hub.models.Task.get_config(self)
        head = {argument: getattr(self, argument) for argument in HEAD_ARGUMENTS}
        return {**config, **head, "class_names": None if self.class_names is None else list(self.class_names)}

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
        head_model(self.get_layer("head")).save_weights(filepath)

    def load_task_weights(self, filepath):
        head_model(self.get_layer("head")).load_weights(filepath)


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
