"""Finding the model that a command line names."""

from pathlib import Path

# A training run holds its best weights as a preset of this name.
BEST = "best"

HELP = "a training run, a preset directory or the name of a preset"


def open_model(name):
    """`(model, preset)` of a training run's directory, a preset directory or a preset's name."""
    from keras_ci2p.models import CLASSIFIERS
    from keras_ci2p.presets import PresetError, open_preset

    best = Path(name) / BEST
    preset = open_preset(best if best.is_dir() else name)
    for model_class in CLASSIFIERS.values():
        backbone = model_class.backbone_class.__name__
        if preset.registered_name() == f"keras_ci2p>{backbone}":
            return model_class.from_preset(preset.directory), preset
    raise PresetError(f"{preset.directory} is of a class that keras_ci2p does not know: {preset.registered_name()!r}.")
