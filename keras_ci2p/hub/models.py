"""CI2P-ViT among KerasHub's models: backbones, classifiers, preprocessors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import keras

from keras_ci2p import models
from keras_ci2p.models.backbone import CompressorMixin, FixedGraph
from keras_ci2p.models.data_checks import ChecksData
from keras_ci2p.models.image_classifier import (
    NamedClasses,
    activation_name,
    check_activation,
    check_classes,
    head_model,
    pooled_head,
)
from keras_ci2p.presets import HUB, Preset, complete_metadata
from keras_ci2p.utils import Mixin, PathLike, Shape, require, room_for, user_path

if TYPE_CHECKING:
    import keras_hub
else:
    keras_hub = require("keras_hub", extra="hub")

# `keras_ci2p.models` has registered classes of the same names.
register = keras.saving.register_keras_serializable(package=HUB)


class HomePresets(Mixin):
    """Mixed into KerasHub's classes: "~" is the home directory, which KerasHub does not say."""

    @classmethod
    def from_preset(cls, preset: PathLike | Preset, *args: Any, **kwargs: Any) -> Any:
        # An address is no path.
        preset = str(user_path(preset)) if str(preset).startswith("~") else preset
        return super().from_preset(preset, *args, **kwargs)

    def save_to_preset(self, preset_dir: PathLike, *args: Any, **kwargs: Any) -> None:
        return super().save_to_preset(user_path(preset_dir), *args, **kwargs)


class HubBackbone(HomePresets, FixedGraph, keras_hub.models.Backbone):
    """Base class: a `keras_hub.models.Backbone` over the functional graph of a `core_class` of ours.

    Args:
        dtype: Dtype policy of the layers; with a `DTypePolicyMap`, each layer's own.
        name, trainable: As in `keras.Model`.
        **arguments: Of the `core_class`.
    """

    core_class: Any = None

    def __init__(self, dtype: Any = None, name: str | None = None, trainable: bool = True, **arguments: Any) -> None:
        core = self.core_class(dtype=dtype, **arguments)
        super().__init__(inputs=core.input, outputs=core.output, dtype=dtype, name=name, trainable=trainable)

        # === Config ===
        self._arguments = tuple(argument for argument in core.get_config() if argument not in ("dtype", "name"))
        for argument in self._arguments:
            if not hasattr(type(self), argument):
                setattr(self, argument, getattr(core, argument))
        self._fix(self._arguments)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, **{argument: getattr(self, argument) for argument in self._arguments}}

    def save_to_preset(self, preset_dir: PathLike, max_shard_size: float | None = 10) -> None:
        """Saves the backbone as a preset that `keras_ci2p` reads as well.

        Args:
            preset_dir: Directory to write to.
            max_shard_size: Largest size of a weight file in GB; None for a single file.

        Raises:
            keras_ci2p.utils.DiskFullError: There is not enough room. What was at `preset_dir` is still there.
        """
        preset_dir = user_path(preset_dir)
        # KerasHub writes into the directory itself, by HDF5, which must not begin on a disk that is too full.
        with room_for(preset_dir, preset_dir, needed=4 * self.count_params() + 2**20):
            super().save_to_preset(preset_dir, max_shard_size=max_shard_size)
            complete_metadata(preset_dir)

    def default_lora_layer_names(self) -> list[str]:
        return ["qkv"]


@register
class CI2PViTBackbone(CompressorMixin, HubBackbone):
    """`keras_ci2p.CI2PViTBackbone` as a KerasHub backbone: images to tokens.

    Args: As in `keras_ci2p.CI2PViTBackbone`, and `trainable`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255, channels last.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Examples:
        >>> backbone = keras_ci2p.hub.CI2PViTBackbone(
        ...     image_shape=(64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64
        ... )
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 32)
    """

    core_class = models.CI2PViTBackbone


@register
class CI2PViTDualScaleBackbone(CompressorMixin, HubBackbone):
    """`keras_ci2p.CI2PViTDualScaleBackbone` as a KerasHub backbone: images to tokens.

    Args: As in `keras_ci2p.CI2PViTDualScaleBackbone`, and `trainable`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255, channels last.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Examples:
        >>> backbone = keras_ci2p.hub.CI2PViTDualScaleBackbone(
        ...     image_shape=(64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64, early_dim=16, merge_at=1
        ... )
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 32)
    """

    core_class = models.CI2PViTDualScaleBackbone


class HubPreprocessor(HomePresets, keras_hub.models.ImageClassifierPreprocessor):
    """Base class: an image converter before the model."""

    @classmethod
    def for_image_shape(cls, image_shape: Shape) -> Self:
        """The preprocessor of a model for images of `image_shape`, `(height, width, 3)`; None for any size.

        The largest window of that aspect ratio is resized bilinearly, with antialiasing. Values stay RGB in 0..255.
        """
        height, width, _ = image_shape
        size = None if None in (height, width) else (height, width)
        return cls(cls.image_converter_cls(image_size=size, antialias=True))

    @classmethod
    def _add_missing_kwargs(cls, loader: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        # What `keras_ci2p` has saved holds no preprocessor.
        if "image_converter" not in kwargs:
            image_shape = loader.config["config"]["image_shape"]
            kwargs["image_converter"] = cls.for_image_shape(image_shape).image_converter
        return kwargs


@register
class CI2PViTImageConverter(keras_hub.layers.ImageConverter):
    """Resizes and crops images for `CI2PViTBackbone`, which takes RGB in 0..255: no scale, no offset.

    Args: As in `keras_hub.layers.ImageConverter`.

    Examples:
        >>> converter = keras_ci2p.hub.CI2PViTImageConverter(image_size=(64, 64))
        >>> converter(np.zeros((2, 80, 100, 3), "uint8")).shape
        (2, 64, 64, 3)
    """

    backbone_cls = CI2PViTBackbone


@register
class CI2PViTImageClassifierPreprocessor(HubPreprocessor):
    """The preprocessor of `CI2PViTImageClassifier`.

    Args:
        image_converter: `CI2PViTImageConverter`.

    Examples:
        >>> converter = keras_ci2p.hub.CI2PViTImageConverter(image_size=(64, 64))
        >>> preprocessor = keras_ci2p.hub.CI2PViTImageClassifierPreprocessor(converter)
        >>> preprocessor(np.zeros((2, 80, 100, 3), "uint8")).shape
        (2, 64, 64, 3)
    """

    backbone_cls = CI2PViTBackbone
    image_converter_cls = CI2PViTImageConverter


@register
class CI2PViTDualScaleImageConverter(keras_hub.layers.ImageConverter):
    """Resizes and crops images for `CI2PViTDualScaleBackbone`, which takes RGB in 0..255: no scale, no offset.

    Args: As in `keras_hub.layers.ImageConverter`.

    Examples:
        >>> converter = keras_ci2p.hub.CI2PViTDualScaleImageConverter(image_size=(64, 64))
        >>> converter(np.zeros((2, 80, 100, 3), "uint8")).shape
        (2, 64, 64, 3)
    """

    backbone_cls = CI2PViTDualScaleBackbone


@register
class CI2PViTDualScaleImageClassifierPreprocessor(HubPreprocessor):
    """The preprocessor of `CI2PViTDualScaleImageClassifier`.

    Args:
        image_converter: `CI2PViTDualScaleImageConverter`.

    Examples:
        >>> converter = keras_ci2p.hub.CI2PViTDualScaleImageConverter(image_size=(64, 64))
        >>> preprocessor = keras_ci2p.hub.CI2PViTDualScaleImageClassifierPreprocessor(converter)
        >>> preprocessor(np.zeros((2, 80, 100, 3), "uint8")).shape
        (2, 64, 64, 3)
    """

    backbone_cls = CI2PViTDualScaleBackbone
    image_converter_cls = CI2PViTDualScaleImageConverter


class HubImageClassifier(HomePresets, ChecksData, CompressorMixin, NamedClasses, keras_hub.models.ImageClassifier):
    """Base class: the mean of the backbone's tokens is classified.

    Args:
        backbone: Of the class `backbone_cls`.
        num_classes: Number of classes.
        preprocessor: Of the class `preprocessor_cls`, or None: then `fit` and `predict` take images of the model's
            size. `from_preset` makes one for a preset that has none.
        class_names: Names of the classes, or None.
        activation: Activation of the head, None for logits.
        **kwargs: Of `keras_hub.models.Task`: `name`, `compile`, `trainable`.

    Raises:
        TypeError: Another argument, which Keras would pass over.
    """

    def __init__(
        self,
        backbone: HubBackbone,
        num_classes: int,
        preprocessor: HubPreprocessor | None = None,
        class_names: Sequence[str] | None = None,
        activation: Any = None,
        **kwargs: Any,
    ) -> None:
        for argument in sorted(kwargs.keys() - {"name", "compile", "trainable"}):
            raise TypeError(
                f"{type(self).__name__} has no argument {argument!r}, and its sizes are the backbone's. Its arguments: "
                "backbone, num_classes, preprocessor, class_names, activation, name, compile, trainable"
            )
        num_classes, class_names = check_classes(num_classes, class_names)
        outputs, head = pooled_head(backbone, num_classes, activation)

        # === Config ===
        # Before the constructor, which compiles: the default loss asks for the activation.
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.num_classes = num_classes
        self.class_names = class_names
        self.activation = activation_name(head)
        # KerasHub asks for it by its configuration.
        check_activation(self.activation)

        # === Functional model ===
        # Past the constructor of KerasHub's classifier, which pools over a grid and not over tokens.
        keras_hub.models.Task.__init__(self, inputs=backbone.input, outputs=outputs, **kwargs)
        self._fix(("num_classes", "activation"))

    def _constructor_config(self) -> dict[str, Any]:
        # Not the base class's, which tells of arguments that this one does not have.
        return {**keras_hub.models.Task.get_config(self), **self._task_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
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

    @property
    def head(self) -> keras.layers.Dense:
        """The `Dense` layer that classifies; its input is the pooled feature."""
        return self.get_layer("head")

    # A head is stored alike by both libraries.

    def save_task_weights(self, filepath: PathLike) -> None:
        head_model(self.get_layer("head")).save_weights(filepath)

    def load_task_weights(self, filepath: PathLike) -> None:
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

    Examples:
        >>> backbone = keras_ci2p.hub.CI2PViTBackbone(
        ...     image_shape=(64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64
        ... )
        >>> classifier = keras_ci2p.hub.CI2PViTImageClassifier(backbone, num_classes=3)
        >>> classifier.predict(np.zeros((1, 64, 64, 3), "uint8"), verbose=0).shape
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

    Examples:
        >>> backbone = keras_ci2p.hub.CI2PViTDualScaleBackbone(
        ...     image_shape=(64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64, early_dim=16, merge_at=1
        ... )
        >>> classifier = keras_ci2p.hub.CI2PViTDualScaleImageClassifier(backbone, num_classes=3)
        >>> classifier.predict(np.zeros((1, 64, 64, 3), "uint8"), verbose=0).shape
        (1, 3)
    """

    backbone_cls = CI2PViTDualScaleBackbone
    preprocessor_cls = CI2PViTDualScaleImageClassifierPreprocessor
