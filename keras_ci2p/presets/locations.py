"""Where named presets lie: in the wheel beside the code, in a checkout under `weights/`."""

import json
import tomllib
from pathlib import Path

METADATA = "metadata.json"
# Second names: `{"animals10": "the preset that it stands for"}`.
ALIASES = "aliases.json"


def weights_directory():
    """The directory of the named presets, or None where there is none."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "weights"
    if installed.is_dir():
        return installed
    checkout = package.parent
    return checkout / "weights" if _is_our_checkout(checkout) and (checkout / "weights").is_dir() else None


def _is_our_checkout(directory):
    try:
        project = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False
    return project.get("project", {}).get("name") == "keras_ci2p"


# Presets that can be had elsewhere: name to a function that gives their directory.
_SOURCES = {}


def add_source(names, fetch):
    """Makes further names known: `fetch(name)` gives the preset's directory, fetching it if need be."""
    _SOURCES.update(dict.fromkeys(names, fetch))


def named_preset(name):
    """The directory of a named preset, None for an unknown name."""
    name = _aliases().get(name, name)
    if name in _directories():
        return weights_directory() / name
    return _SOURCES[name](name) if name in _SOURCES else None


def name_of(directory):
    """The name of a named preset's directory, None for any other directory."""
    directory = Path(directory).resolve()
    return directory.name if directory.parent == weights_directory() and directory.name in _directories() else None


def list_presets():
    """Names that `from_preset` knows, sorted."""
    directories = _directories()
    return sorted(directories | {name for name, target in _aliases().items() if target in directories})


def _directories():
    directory = weights_directory()
    return {path.parent.name for path in directory.glob(f"*/{METADATA}")} if directory else set()


def _aliases():
    directory = weights_directory()
    path = directory / ALIASES if directory else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
