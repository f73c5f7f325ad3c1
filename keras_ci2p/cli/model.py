"""Finding the model that a command line names."""

HELP = "a training run, a preset directory or the name of a preset"


def open_model(name, **arguments):
    """`(model, preset)` of a training run's directory, a preset directory, a preset's name or a `Preset`.

    Args:
        name: Any of these.
        **arguments: Of the model's `from_preset`.
    """
    from keras_ci2p.models import CLASSIFIERS
    from keras_ci2p.presets import Preset, PresetError, open_preset
    from keras_ci2p.training.run_directory import preset_of

    preset = name if isinstance(name, Preset) else open_preset(preset_of(name))
    for model_class in CLASSIFIERS.values():
        backbone = model_class.backbone_class.__name__
        if preset.registered_name() == f"keras_ci2p>{backbone}":
            return model_class.from_preset(preset, **arguments), preset
    raise PresetError(f"{preset.directory} is of a class that keras_ci2p does not know: {preset.registered_name()!r}.")
