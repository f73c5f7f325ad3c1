"""Loads a model by the name of its preset, its directory or its training run, of whatever class it is."""

from typing import Any

from keras_ci2p.annotations import PathLike
from keras_ci2p.models import ci2p_vit, vit
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.models.variants import MODELS
from keras_ci2p.presets import Preset, PresetError, open_preset

# Classes by the names of the command line's `--model`.
CLASSIFIERS = {
    name: getattr(module, MODELS[name])
    for name, module in {"ci2p": ci2p_vit, "ci2p_dual": ci2p_vit, "vit": vit}.items()
}

# By what a preset says of its class.
_CLASSES: dict[str | None, Any] = {
    f"keras_ci2p>{model_class.backbone_cls.__name__}": model_class for model_class in CLASSIFIERS.values()
}
_CLASSES["keras_ci2p>Compressor"] = Compressor


def load_preset(name: PathLike | Preset, **arguments: Any) -> ImageClassifier | Compressor:
    """Loads a model: a `CI2PViT`, `CI2PViTDualScale`, `ViT` or `Compressor`, as the preset says.

    Args:
        name: A name of `keras_ci2p.list_presets()`, a name of CompressAI's zoo, a preset directory, or the directory of
            a training run, whose best model is loaded.
        **arguments: Of the class's `from_preset`.

    Returns:
        The model.

    Raises:
        keras_ci2p.presets.PresetError: No such preset, a damaged one, or one of an unknown class.
        TypeError: An argument that the class's `from_preset` does not take.
        OSError: A published compressor could not be downloaded.

    Examples:
        >>> keras_ci2p.load_preset("animals10").class_names[:2]
        ['butterfly', 'cat']
    """
    return open_preset_model(name, **arguments)[0]


def open_preset_model(name: PathLike | Preset, **arguments: Any) -> tuple[Any, Preset]:
    """Loads a model as `load_preset` does, also of a `Preset`; returns it with its `Preset`, `(model, preset)`."""
    preset = open_preset(name)
    return preset_class(preset).from_preset(preset, **arguments), preset


def open_classifier(name: PathLike | Preset, **arguments: Any) -> tuple[ImageClassifier, Preset]:
    """Loads a model as `open_preset_model` does; PresetError for a compressor."""
    preset = open_preset(name)
    if is_compressor(preset):
        raise PresetError(f"{preset.directory} is a compressor; this takes a classifier.")
    return open_preset_model(preset, **arguments)


def preset_class(preset: Preset) -> Any:
    """Returns the class of a `Preset`'s model; PresetError if this package has none for it."""
    model_class = _CLASSES.get(preset.registered_name())
    if model_class is None:
        raise PresetError(
            f"{preset.directory} is of a class that keras_ci2p does not know: {preset.registered_name()!r}."
        )
    return model_class


def is_compressor(preset: Preset) -> bool:
    """Whether a `Preset` is of a `Compressor`, not of a classifier."""
    return preset_class(preset) is Compressor
