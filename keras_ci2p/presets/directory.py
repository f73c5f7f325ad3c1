"""Reading and writing preset directories, in KerasHub's layout with checksums.

`config.json` and `model.weights.h5`: the backbone. `task.json` and `task.weights.h5`: the head and class names.
`metadata.json`: versions and the SHA-256 of each file that a model is loaded from. Other files, such as a README.md,
may lie beside them and be edited. A preset without weight files is an architecture. The JSON files name the classes of
`keras_ci2p.hub` (`keras_ci2p.presets.kerashub`).
"""

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import keras

from keras_ci2p import files as disk
from keras_ci2p.presets.kerashub import from_kerashub, to_kerashub
from keras_ci2p.presets.locations import METADATA, list_presets, named_preset
from keras_ci2p.presets.storage import check_storage, compact_weights
from keras_ci2p.version import __version__

FORMAT_VERSION = 1
CONFIG = "config.json"
TASK = "task.json"
WEIGHTS = "model.weights.h5"
TASK_WEIGHTS = "task.weights.h5"
# KerasHub shares out the weights of a large backbone among several files; this one lists them.
SHARDED_WEIGHTS = "model.weights.json"
SHARDS = "model_*.weights.h5"
_OWN_METADATA = ("format_version", "keras_ci2p_version", "keras_version", "date_saved", "storage", "files")


class PresetError(ValueError):
    """A preset that is unknown, incomplete, damaged or of another kind."""


@dataclass(frozen=True)
class Preset:
    """A preset directory whose files are all there and unchanged."""

    directory: Path
    metadata: dict

    @property
    def has_weights(self):
        return not {WEIGHTS, SHARDED_WEIGHTS}.isdisjoint(self.metadata["files"])

    @property
    def storage(self):
        """How the weights are stored: "float32", "float16" or "int8"."""
        return self.metadata.get("storage", "float32")

    def further_metadata(self):
        """The entries of `metadata.json` that its writer has added, to be written again."""
        return {key: value for key, value in self.metadata.items() if key not in _OWN_METADATA}

    def registered_name(self):
        """Registered name of the backbone's class, for example "keras_ci2p>CI2PViTBackbone"."""
        return from_kerashub(self._json(CONFIG)).get("registered_name")

    def config(self, registered_name, kind):
        """Constructor arguments of the backbone; PresetError unless its class is `registered_name`, `kind` in words."""
        stored = from_kerashub(self._json(CONFIG))
        if stored.get("registered_name") != registered_name or not isinstance(stored.get("config"), dict):
            raise PresetError(
                f"{self.directory / CONFIG} does not describe {kind}: its class is "
                f"{stored.get('registered_name')!r}, expected {registered_name!r}."
            )
        return stored["config"]

    def task(self):
        """`num_classes`, `class_names` and `activation` of the head; empty without one."""
        if TASK not in self.metadata["files"]:
            return {}
        stored = self._json(TASK).get("config")
        if not isinstance(stored, dict):
            raise PresetError(f"{self.directory / TASK} does not describe a classifier.")
        return {key: stored.get(key) for key in ("num_classes", "class_names", "activation")}

    @contextlib.contextmanager
    def reading(self, name):
        """Yields the path of the file `name`; what goes wrong with it becomes a PresetError."""
        if name == WEIGHTS and SHARDED_WEIGHTS in self.metadata["files"]:
            name = SHARDED_WEIGHTS
        path = self.directory / name
        if name not in self.metadata["files"]:
            raise PresetError(f"The preset {self.directory} has no {name}.")
        try:
            yield str(path)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]
            raise PresetError(f"{path} does not fit the model: {reason}.") from error

    def _json(self, name):
        return _read_json(self.directory / name)


def open_preset(name_or_directory):
    """The `Preset` of a known name or a directory, with every file checked against its SHA-256; an open one as it is.

    Raises:
        PresetError: Unknown name; a file that is missing or was changed; no preset at all.
    """
    if isinstance(name_or_directory, Preset):
        return name_or_directory
    directory = _resolve(str(name_or_directory))
    metadata = _read_json(directory / METADATA)
    listed = metadata.get("files")
    if not isinstance(listed, dict) or CONFIG not in listed:
        raise PresetError(f"{directory / METADATA} is not of a keras_ci2p preset: it lists no files.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise PresetError(
            f"{directory} has preset format {metadata.get('format_version')!r}; this version of keras_ci2p reads "
            f"{FORMAT_VERSION}."
        )
    for name, digest in listed.items():
        path = directory / name
        if Path(name).name != name:
            raise PresetError(f"{directory / METADATA} lists a file outside the preset: {name!r}.")
        if not path.is_file():
            raise PresetError(f"The preset {directory} lacks its file {name}; copy it again.")
        if disk.sha256(path) != digest:
            raise PresetError(
                f"{path} is damaged or from another preset: its SHA-256 is not that of {METADATA}; copy it again."
            )
    return Preset(directory, metadata)


def write_preset(directory, config, task, weights, metadata, files=None, storage="float32", exact=()):
    """Writes a preset directory aside and renames it into place.

    Args:
        directory: Where to; an existing preset there is replaced.
        config: Contents of `config.json`.
        task: Contents of `task.json`, or None.
        weights: File name to a function that writes that weight file to a path.
        metadata: Further entries of `metadata.json`.
        files: Further files, name to bytes.
        storage, exact: How the weights are stored, as in `compact_weights`.

    Raises:
        FileExistsError: `directory` exists and is no preset.
        ValueError: Unknown storage.
    """
    check_storage(storage)
    check_writable(directory)
    with disk.atomic_directory(directory) as temporary:
        disk.write_json(temporary / CONFIG, config)
        if task is not None:
            disk.write_json(temporary / TASK, task)
        for name, write in weights.items():
            write(str(temporary / name))
            compact_weights(temporary / name, storage, exact)
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        _write_metadata(temporary, metadata, storage, temporary.iterdir())


def complete_metadata(directory):
    """Adds to the `metadata.json` of a preset that KerasHub has written what ours say: format and checksums."""
    directory = Path(directory)
    weights = [directory / WEIGHTS]
    if not weights[0].is_file():
        weights = [directory / SHARDED_WEIGHTS, *directory.glob(SHARDS)]
    paths = [directory / CONFIG, directory / TASK, directory / TASK_WEIGHTS, *weights]
    metadata = _read_json(directory / METADATA)
    _write_metadata(directory, metadata, "float32", [path for path in paths if path.is_file()])


def _write_metadata(directory, metadata, storage, paths):
    disk.write_json(
        directory / METADATA,
        {
            "format_version": FORMAT_VERSION,
            "keras_ci2p_version": __version__,
            "keras_version": keras.__version__,
            "date_saved": datetime.now(UTC).strftime("%Y-%m-%d@%H:%M:%S"),
            **metadata,
            "storage": storage,
            "files": {path.name: disk.sha256(path) for path in sorted(paths)},
        },
    )


def check_writable(directory):
    """Raises FileExistsError where `directory` exists and is no preset, which `write_preset` would replace."""
    directory = Path(directory)
    if directory.exists() and not (directory / METADATA).is_file() and not _is_empty(directory):
        raise FileExistsError(f"{directory} exists and is no preset; choose another directory.")


def serialize(model):
    """What `config.json` and `task.json` say of a model: its class and its configuration."""
    return to_kerashub(
        {
            "module": type(model).__module__,
            "class_name": type(model).__name__,
            "config": model.get_config(),
            "registered_name": keras.saving.get_registered_name(type(model)),
        }
    )


def _resolve(name_or_directory):
    if (Path(name_or_directory) / METADATA).is_file():
        return Path(name_or_directory)
    named = named_preset(name_or_directory)
    if named is not None:
        return named
    if Path(name_or_directory).is_dir():
        raise PresetError(f"The directory {name_or_directory} is no preset: it has no {METADATA}.")
    known = ", ".join(list_presets()) or "none"
    raise PresetError(f"Unknown preset {name_or_directory!r}. Known: {known}; or give a preset directory.")


def _is_empty(path):
    return path.is_dir() and not any(path.iterdir())


def _read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PresetError(f"{path} is missing.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PresetError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise PresetError(f"{path} does not hold a JSON object.")
    return value
