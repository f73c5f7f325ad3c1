"""What KerasHub puts before the models: images of any size to the model's size, their values as they are."""

from keras_ci2p.hub.backbones import CI2PViTBackbone, CI2PViTDualScaleBackbone
from keras_ci2p.hub.kerashub import keras_hub, register


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
