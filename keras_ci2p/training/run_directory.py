"""What a run directory says of the run that was begun in it."""

import json
from pathlib import Path

from keras_ci2p.models import CLASSIFIERS
from keras_ci2p.presets import Preset, PresetError, open_preset
from keras_ci2p.training.recorder import BEST, RunError

CONFIG = "config.json"


def previous_run(run_dir, resume):
    """The stored configuration of the run to take up, None for a new one.

    Raises:
        RunError: An existing directory without `resume`; with it, one that is no run, or a damaged one.
    """
    config = run_dir / CONFIG
    if resume:
        if not config.is_file():
            # Killed before its first epoch: nothing to go on from, and nothing lost.
            if not run_dir.exists() or not any(run_dir.iterdir()):
                return None
            raise RunError(f"{run_dir} is no training run (it has no {CONFIG}); it cannot be resumed.")
        try:
            return json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{config} is damaged: {error}. Begin a new run in another directory.") from error
    if run_dir.exists() and any(run_dir.iterdir()):
        raise RunError(f"{run_dir} exists already: go on with it by --resume, or choose another directory.")
    return None


def preset_of(name):
    """The preset of a training run's best weights; `name` itself where it is no run."""
    best = Path(name) / BEST
    return best if best.is_dir() else name


def open_classifier(name, **arguments):
    """`(model, preset)` of a training run's directory, a preset directory, a preset's name or a `Preset`.

    Args:
        name: Any of these.
        **arguments: Of the model's `from_preset`.

    Raises:
        keras_ci2p.presets.PresetError: No such preset, a damaged one, or one of another class.
    """
    preset = name if isinstance(name, Preset) else open_preset(preset_of(name))
    for model_class in CLASSIFIERS.values():
        if preset.registered_name() == f"keras_ci2p>{model_class.backbone_class.__name__}":
            return model_class.from_preset(preset, **arguments), preset
    raise PresetError(f"{preset.directory} is of a class that keras_ci2p does not know: {preset.registered_name()!r}.")


def check_same(what, now, previous, defaults=None):
    """Raises RunError, saying what differs, unless the previous run (or None) was begun with the same dict `what`.

    What the previous run does not tell, being older, counts as what `defaults` says, a dict like `now`.
    """
    if previous is None:
        return
    # As JSON stores them.
    now, defaults = (_flat(json.loads(json.dumps(values or {}))) for values in (now, defaults))
    then = {**defaults, **_flat(previous.get(what, {}))}
    different = [f"{key}: {then.get(key)!r}, now {now.get(key)!r}" for key in now if then.get(key) != now[key]]
    if different:
        raise RunError(f"The run was begun with other {what}, so it cannot be resumed: {'; '.join(different)}.")


def _flat(values, prefix=""):
    flat = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
