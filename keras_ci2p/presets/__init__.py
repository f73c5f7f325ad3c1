"""Preset directories on disk: where they are, what they hold, and whether they are whole. Knows no models."""

from keras_ci2p.presets.directory import (
    TASK_WEIGHTS,
    WEIGHTS,
    Preset,
    PresetError,
    check_writable,
    open_preset,
    serialize,
    write_preset,
)
from keras_ci2p.presets.locations import add_source, list_presets, name_of
from keras_ci2p.presets.storage import STORAGES, compact_weights

__all__ = [
    "STORAGES",
    "TASK_WEIGHTS",
    "WEIGHTS",
    "Preset",
    "PresetError",
    "add_source",
    "check_writable",
    "compact_weights",
    "list_presets",
    "name_of",
    "open_preset",
    "serialize",
    "write_preset",
]
