"""Preset directories on disk: where they are, what they hold, and whether they are whole. Knows no models."""

from keras_ci2p.presets.directory import (
    TASK_WEIGHTS,
    WEIGHTS,
    Preset,
    PresetError,
    open_preset,
    write_preset,
)
from keras_ci2p.presets.locations import list_presets

__all__ = ["TASK_WEIGHTS", "WEIGHTS", "Preset", "PresetError", "list_presets", "open_preset", "write_preset"]
