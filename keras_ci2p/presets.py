"""Preset directories: where they are, what they hold, and whether they are whole. Knows no models, imports no Keras."""

import contextlib
import importlib
import json
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from keras_ci2p.utils import atomic_directory, file_sha256, renamed_names, write_json
from keras_ci2p.version import __version__
from keras_ci2p.weight_storage import STORAGES, check_storage, compact_weights

__all__ = ["STORAGES", "Preset", "PresetError", "compact_weights", "list_presets", "open_preset"]
__getattr__ = renamed_names(
    __name__,
    {
        "add_source": "_add_source",
        "check_writable": "check_destination",
        "name_of": "preset_name",
        "serialize": "serialize_model",
        "write_preset": "save_preset",
    },
)

# In the directory of a training run, the preset of its best epoch.
BEST = "best"
FORMAT_VERSION = 1
CONFIG = "config.json"
TASK = "task.json"
WEIGHTS = "model.weights.h5"
TASK_WEIGHTS = "task.weights.h5"
# KerasHub shares out the weights of a large backbone among several files; this one lists them.
SHARDED_WEIGHTS = "model.weights.json"
SHARDS = "model_*.weights.h5"
# Entries of `metadata.json` that are made anew each time.
_OWN_METADATA = (
    "format_version",
    "keras_ci2p_version",
    "keras_version",
    "date_saved",
    "parameter_count",
    "storage",
    "files",
)


class PresetError(ValueError):
    """A preset that is unknown, incomplete, damaged or of another kind."""


@dataclass(frozen=True)
class Preset:
    """A preset directory whose files are all there and unchanged.

    Attributes:
        directory: Its path.
        metadata: The contents of its `metadata.json`.
        run: Path of the training run whose best weights it holds; None where it was not opened as a run.
    """

    directory: Path
    metadata: dict
    run: Path | None = None

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

    def further_files(self):
        """The files that its writer has added, a dict of name to bytes, to be written again."""
        own = {CONFIG, TASK, WEIGHTS, TASK_WEIGHTS, SHARDED_WEIGHTS}
        names = [name for name in self.metadata["files"] if name not in own and not Path(name).match(SHARDS)]
        return {name: (self.directory / name).read_bytes() for name in names}

    def carried(self):
        """What `save_to_preset` takes to write a preset of the same weights that knows all that this one knows."""
        return {"metadata": self.further_metadata(), "files": self.further_files(), "storage": self.storage}

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
    """Opens a preset and checks every file against its SHA-256.

    Args:
        name_or_directory: A name of `list_presets()` or of `keras_ci2p.convert.zoo_names()`, which is downloaded once;
            a preset directory; or the directory of a training run, which stands for its best weights. An open `Preset`
            is given back as it is.

    Returns:
        `Preset`.

    Raises:
        PresetError: Unknown name; a file that is missing or was changed; no preset at all.
    """
    if isinstance(name_or_directory, Preset):
        return name_or_directory
    directory = _resolve(str(name_or_directory))
    is_run = directory.name == BEST and directory != Path(name_or_directory)
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
        if file_sha256(path) != digest:
            raise PresetError(
                f"{path} is damaged or from another preset: its SHA-256 is not that of {METADATA}; copy it again."
            )
    return Preset(directory, metadata, directory.parent if is_run else None)


def save_preset(directory, config, task, weights, metadata, files=None, storage="float32", exact=()):
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
    check_destination(directory)
    with atomic_directory(directory) as temporary:
        write_json(temporary / CONFIG, config)
        if task is not None:
            write_json(temporary / TASK, task)
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
    import keras

    write_json(
        directory / METADATA,
        {
            "format_version": FORMAT_VERSION,
            "keras_ci2p_version": __version__,
            "keras_version": keras.__version__,
            "date_saved": datetime.now(UTC).strftime("%Y-%m-%d@%H:%M:%S"),
            **metadata,
            "storage": storage,
            "files": {path.name: file_sha256(path) for path in sorted(paths)},
        },
    )


def check_destination(directory):
    """Raises FileExistsError where `directory` exists and is no preset, which `save_preset` would replace."""
    directory = Path(directory)
    if directory.exists() and not (directory / METADATA).is_file() and not _is_empty(directory):
        raise FileExistsError(f"{directory} exists and is no preset; choose another directory.")


def serialize_model(model):
    """What `config.json` and `task.json` say of a model: its class and its configuration."""
    import keras

    return to_kerashub(
        {
            "module": type(model).__module__,
            "class_name": type(model).__name__,
            "config": model.get_config(),
            "registered_name": keras.saving.get_registered_name(type(model)),
        }
    )


def _resolve(name_or_directory):
    given = Path(preset_of(name_or_directory))
    if (given / METADATA).is_file():
        return given
    named = named_preset(name_or_directory)
    if named is not None:
        return named
    if given.is_dir():
        raise PresetError(f"The directory {given} is no preset: it has no {METADATA}.")
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


METADATA = "metadata.json"
# Second names: `{"animals10": "the preset that it stands for"}`.
ALIASES = "aliases.json"


def weights_directory():
    """The directory of the named presets, or None where there is none."""
    package = Path(__file__).resolve().parent
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


# Modules that stand above this one: the names of published compressors, without Keras, and what converts them.
_ZOO, _FETCHER = "keras_ci2p.convert.zoo", "keras_ci2p.convert.compressai"
# Names to functions that fetch them, as `add_source` of version 0.1.0 took them.
_SOURCES = {}


def _add_source(names, fetch):
    """Makes further names known: `fetch(name)` gives the preset's directory, fetching it if need be."""
    _SOURCES.update(dict.fromkeys(names, fetch))


def named_preset(name):
    """The directory of a named preset, None for an unknown name."""
    name = _aliases().get(name, name)
    if name in _directories():
        return weights_directory() / name
    if name in importlib.import_module(_ZOO).zoo_names():
        return importlib.import_module(_FETCHER).fetch(name)
    return _SOURCES[name](name) if name in _SOURCES else None


def preset_name(directory):
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


HUB = "keras_ci2p.hub"

# Registered name of our class to the name of the class of `keras_ci2p.hub`.
_HUB_CLASSES = {
    "keras_ci2p>CI2PViT": "CI2PViTImageClassifier",
    "keras_ci2p>CI2PViTBackbone": "CI2PViTBackbone",
    "keras_ci2p>CI2PViTDualScale": "CI2PViTDualScaleImageClassifier",
    "keras_ci2p>CI2PViTDualScaleBackbone": "CI2PViTDualScaleBackbone",
}
_OUR_NAMES = {f"{HUB}>{hub_class}": name for name, hub_class in _HUB_CLASSES.items()}


def to_kerashub(serialized):
    """A serialised model of ours as `keras_ci2p.hub` serialises it; one without a class there as it is.

    Args:
        serialized: Dict of `module`, `class_name`, `config` and `registered_name`.
    """
    hub_class = _HUB_CLASSES.get(serialized["registered_name"])
    if hub_class is None:
        return serialized
    config = dict(serialized["config"])
    if isinstance(config.get("dtype"), str):
        import keras

        # KerasHub's loader takes the serialised policy apart.
        config["dtype"] = keras.dtype_policies.serialize(keras.dtype_policies.get(config["dtype"]))
    return {"module": HUB, "class_name": hub_class, "config": config, "registered_name": f"{HUB}>{hub_class}"}


def from_kerashub(stored):
    """What a preset says of a model, as our own classes serialise it; of another model unchanged."""
    name, config = _OUR_NAMES.get(stored.get("registered_name")), stored.get("config")
    if name is None or not isinstance(config, dict):
        return stored
    # Our constructors have no `trainable`: freezing the compressor is an argument of its own.
    config = {key: value for key, value in config.items() if key != "trainable"}
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") == "DTypePolicy":
        config["dtype"] = dtype["config"]["name"]
    return {**stored, "config": config, "registered_name": name}


def preset_of(name):
    """The preset of a training run's best weights; `name` itself where it is no run."""
    best = Path(name) / BEST
    return best if best.is_dir() else name
