"""Opens a trained model by the name of its preset, its directory or its run."""

from keras_ci2p.models import ci2p_vit, vit
from keras_ci2p.models.variants import MODELS
from keras_ci2p.presets import PresetError, open_preset

# Classes by the names of the command line's `--model`.
CLASSIFIERS = {
    name: getattr(module, MODELS[name])
    for name, module in {"ci2p": ci2p_vit, "ci2p_dual": ci2p_vit, "vit": vit}.items()
}


def open_classifier(name, **arguments):
    """`(model, preset)` of a training run's directory, a preset directory, a preset's name or a `Preset`.

    Args:
        name: Any of these.
        **arguments: Of the model's `from_preset`.

    Raises:
        keras_ci2p.presets.PresetError: No such preset, a damaged one, or one of another class.
    """
    preset = open_preset(name)
    for model_class in CLASSIFIERS.values():
        if preset.registered_name() == f"keras_ci2p>{model_class.backbone_class.__name__}":
            return model_class.from_preset(preset, **arguments), preset
    raise PresetError(f"{preset.directory} is of a class that keras_ci2p does not know: {preset.registered_name()!r}.")
