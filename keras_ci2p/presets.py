"""Preset directories: where they are, what they hold, and whether they are whole. Knows no models, imports no Keras."""

import contextlib
import hashlib
import importlib
import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_ci2p.names import renamed_names, zoo_families, zoo_names
from keras_ci2p.utils import (
    PathLike,
    atomic_directory,
    did_you_mean,
    file_sha256,
    has_sha256,
    is_empty,
    json_bytes,
    misplaced_file,
    user_path,
    write_json,
)
from keras_ci2p.version import __version__
from keras_ci2p.weight_storage import STORAGES, check_storage, compact_weights, weight_file

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
# Of a compressor's entropy coder.
TABLES = "entropy_tables.npz"
# KerasHub shares out the weights of a large backbone among several files; this one lists them.
SHARDED_WEIGHTS = "model.weights.json"
SHARDS = "model_*.weights.h5"
# What `frozen_config` adds to configurations. A preset is to be trained by others: of what was frozen it keeps the
# compressor, which has an argument of its own.
FREEZING = ("trainable", "frozen_layers")
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
    """A preset that is unknown, incomplete, damaged or of another kind.

    Examples:
        >>> keras_ci2p.load_preset("animals11")
        Traceback (most recent call last):
            ...
        keras_ci2p.presets.PresetError: Unknown preset 'animals11'. Did you mean 'animals10'? ...
    """


@dataclass(frozen=True)
class Preset:
    """A preset directory whose files are all there and unchanged.

    Attributes:
        directory: Its path.
        metadata: The contents of its `metadata.json`.
        run: Path of the training run whose best weights it holds; None where it was not opened as a run.

    Examples:
        >>> preset = keras_ci2p.presets.open_preset("animals10")
        >>> preset.metadata["storage"], preset.run
        ('float16', None)
    """

    directory: Path
    metadata: dict
    run: Path | None = None

    @property
    def has_weights(self) -> bool:
        return not {WEIGHTS, SHARDED_WEIGHTS}.isdisjoint(self.metadata["files"])

    @property
    def storage(self) -> str:
        """How the weights are stored: "float32", "float16" or "int8"."""
        return self.metadata.get("storage", "float32")

    @property
    def sha256(self) -> str:
        """Hash of what its files hold, whatever the directory is called and wherever it lies."""
        return hashlib.sha256(json.dumps(self.metadata["files"], sort_keys=True).encode()).hexdigest()

    @property
    def is_quantized(self) -> bool:
        """Whether `quantize` has made it: its products are of 8-bit integers."""
        dtype = self._json(CONFIG).get("config", {}).get("dtype")
        policies = dtype.get("config", {}).get("policy_map", {}) if isinstance(dtype, dict) else {}
        return any("Quantized" in policy["class_name"] for policy in policies.values())

    def further_metadata(self) -> dict[str, Any]:
        """The entries of `metadata.json` that its writer has added, to be written again."""
        return {key: value for key, value in self.metadata.items() if key not in _OWN_METADATA}

    def further_files(self) -> dict[str, bytes]:
        """The files that its writer has added, a dict of name to bytes, to be written again."""
        own = {CONFIG, TASK, WEIGHTS, TASK_WEIGHTS, TABLES, SHARDED_WEIGHTS}
        names = [name for name in self.metadata["files"] if name not in own and not Path(name).match(SHARDS)]
        return {name: (self.directory / name).read_bytes() for name in names}

    def carried(self) -> dict[str, Any]:
        """What `save_to_preset` takes to write a preset of the same weights that knows all that this one knows."""
        return {"metadata": self.further_metadata(), "files": self.further_files(), "storage": self.storage}

    def registered_name(self) -> str | None:
        """Registered name of the backbone's class, for example "keras_ci2p>CI2PViTBackbone"."""
        return from_kerashub(self._json(CONFIG)).get("registered_name")

    def config(self, registered_name: str, kind: str) -> dict[str, Any]:
        """Constructor arguments of the backbone; PresetError unless its class is `registered_name`, `kind` in words."""
        stored = from_kerashub(self._json(CONFIG))
        if stored.get("registered_name") != registered_name or not isinstance(stored.get("config"), dict):
            raise PresetError(
                f"{self.directory / CONFIG} does not describe {kind}: its class is "
                f"{stored.get('registered_name')!r}, expected {registered_name!r}."
            )
        return stored["config"]

    def task(self) -> dict[str, Any]:
        """`num_classes`, `class_names` and `activation` of the head; empty without one."""
        if TASK not in self.metadata["files"]:
            return {}
        stored = self._json(TASK).get("config")
        if not isinstance(stored, dict):
            raise PresetError(f"{self.directory / TASK} does not describe a classifier.")
        return {key: stored.get(key) for key in ("num_classes", "class_names", "activation")}

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[str]:
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


def open_preset(name_or_directory: PathLike | Preset) -> Preset:
    """Opens a preset and checks every file against its SHA-256, of JSON files apart from line ends.

    Args:
        name_or_directory: A name of `list_presets()` or of `keras_ci2p.convert.zoo_names()`, which is downloaded once;
            a preset directory; or the directory of a training run, which stands for its best weights. An open `Preset`
            is given back as it is.

    Returns:
        `Preset`.

    Raises:
        PresetError: Unknown name; a file that is missing or was changed; no preset at all.

    Examples:
        >>> preset = keras_ci2p.presets.open_preset("animals10")
        >>> keras_ci2p.load_preset(preset).num_classes
        10
    """
    if isinstance(name_or_directory, Preset):
        return name_or_directory
    directory = _resolve(str(name_or_directory))
    is_run = directory.name == BEST and directory != user_path(name_or_directory)
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
        if not has_sha256(path, digest):
            damaged = f"damaged or from another preset: its SHA-256 is not that of {METADATA}; copy it again"
            raise PresetError(f"{path} is {misplaced_file(path) or damaged}.")
    return Preset(directory, metadata, directory.parent if is_run else None)


def save_preset(directory, config, task, weights, metadata, files=None, storage="float32", exact=()):
    """Writes a preset directory aside and renames it into place.

    Args:
        directory: Where to; an existing preset there is replaced.
        config: Contents of `config.json`.
        task: Contents of `task.json`, or None.
        weights: File name to the `save_weights` that writes it.
        metadata: Further entries of `metadata.json`.
        files: Further files, name to bytes.
        storage, exact: How the weights are stored, as in `compact_weights`.

    Raises:
        FileExistsError: `directory` exists and is no preset.
        ValueError: Unknown storage.
    """
    check_storage(storage)
    check_destination(directory)
    files = {CONFIG: json_bytes(config), **({} if task is None else {TASK: json_bytes(task)}), **(files or {})}
    files |= {name: weight_file(name, write, storage, exact) for name, write in weights.items()}
    needed = sum(map(len, files.values()))
    with atomic_directory(directory, needed=needed, stale=known_files(directory)) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        _write_metadata(temporary, metadata, storage, temporary.iterdir())


def known_files(directory):
    """Names of the files that a preset in `directory` consists of, or could."""
    try:
        listed = _read_json(Path(directory) / METADATA).get("files") or ()
    except (PresetError, OSError):
        listed = ()
    return {CONFIG, TASK, WEIGHTS, TASK_WEIGHTS, SHARDED_WEIGHTS, *(name for name in listed if Path(name).name == name)}


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
    directory = user_path(directory)
    if directory.exists() and not (directory / METADATA).is_file() and not (directory.is_dir() and is_empty(directory)):
        raise FileExistsError(f"{directory} exists and is no preset; choose another directory.")


def serialize_model(model):
    """What `config.json` and `task.json` say of a model: its class and its configuration."""
    import keras

    return to_kerashub(
        {
            "module": type(model).__module__,
            "class_name": type(model).__name__,
            "config": {key: value for key, value in model.get_config().items() if key not in FREEZING},
            "registered_name": keras.saving.get_registered_name(type(model)),
        }
    )


def frozen_config(model):
    """What a configuration tells of `trainable`: nothing where all is, but for a compressor that is frozen by argument.

    Returns:
        A dict with some of the keys `trainable`, False, and `frozen_layers`, the paths of layers.
    """
    frozen = [path for path, layer in _freezable(model).items() if not layer.trainable]
    return {**({} if model.trainable else {"trainable": False}), **({"frozen_layers": frozen} if frozen else {})}


def freeze_as(config, make):
    """Returns `make` of the other entries of `config`, frozen as `frozen_config` has told there."""
    model = make({key: value for key, value in config.items() if key not in FREEZING})
    trainable, frozen = config.get("trainable", True), config.get("frozen_layers", ())
    if not trainable or frozen:
        model.trainable = trainable
        # A layer comes before its own layers.
        for path, layer in _freezable(model).items():
            layer.trainable = path not in frozen
    return model


def _freezable(model):
    """The layers with weights by path, without those of a compressor that is frozen by argument."""
    import keras

    layers = list(model._flatten_layers(include_self=False))
    fixed = {id(part) for layer in layers if getattr(layer, "frozen", False) for part in layer._flatten_layers()}
    # KerasHub's classifiers hold their backbone, whose layers are theirs too.
    fixed |= {id(layer) for layer in layers if isinstance(layer, keras.Model)}
    return {layer.path: layer for layer in layers if layer.weights and id(layer) not in fixed}


def _resolve(name_or_directory):
    given = user_path(preset_of(name_or_directory))
    if (given / METADATA).is_file():
        return given
    named = named_preset(name_or_directory)
    if named is not None:
        return named
    if given.is_dir():
        raise PresetError(f"The directory {given} is no preset: it has no {METADATA}.{_preset_near(given)}")
    if given.is_file() or given.suffix == ".keras":
        raise PresetError(f"{given} is no preset, which is a directory.{_what_opens(given)}")
    known = list_presets()
    hint = did_you_mean(given, [*known, *zoo_names(), *_presets_in(given.parent)])
    if "://" in name_or_directory:
        hint = " Presets at such an address are opened by KerasHub, after `import keras_ci2p.hub`."
    raise PresetError(
        f"Unknown preset {name_or_directory!r}.{hint} Known: {', '.join(known) or 'none'}; or give a preset directory. "
        f"CompressAI's compressors: {zoo_families()}."
    )


def _presets_in(directory):
    """The presets and runs in a directory, as paths; none of what cannot be read."""
    paths = sorted(directory.iterdir()) if os.path.isdir(directory) and os.access(directory, os.R_OK) else ()
    # Other than pathlib's, it does not raise where there is no permission.
    return [str(path) for path in paths if any(os.path.isfile(path / part / METADATA) for part in ("", BEST))]


def _preset_near(directory):
    """What a directory is that is no preset, where that can be told."""
    for path in (*sorted(directory.glob(f"*/{METADATA}")), directory.parent / BEST / METADATA):
        if path.is_file():
            return f" Did you mean {path.parent}?"
    is_run = any((directory / name).is_file() for name in ("run.json", "recipe.toml"))
    return " It is a training run that has not ended its first epoch." if is_run else ""


def _what_opens(file):
    if file.suffix == ".keras":
        return " keras.models.load_model opens such a file; what it gives has `save_to_preset`."
    return " `keras-ci2p convert` makes a preset of a checkpoint."


def _read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PresetError(f"{path} is missing.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PresetError(f"{path} is {misplaced_file(path) or f'not valid JSON: {error}'}.") from None
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


# Fetches published compressors; it stands above this module.
_FETCHER = "keras_ci2p.convert.compressai"
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
    if name in zoo_names():
        return importlib.import_module(_FETCHER).fetch(name)
    return _SOURCES[name](name) if name in _SOURCES else None


def check_preset_name(name_or_directory):
    """Raises PresetError where `open_preset` would find nothing; fetches and reads nothing, and needs no Keras."""
    name = _aliases().get(name_or_directory, name_or_directory)
    if name not in {*zoo_names(), *_SOURCES}:
        _resolve(name_or_directory)


def preset_name(directory):
    """The name of a named preset's directory, None for any other directory."""
    directory = Path(directory).resolve()
    return directory.name if directory.parent == weights_directory() and directory.name in _directories() else None


def list_presets() -> list[str]:
    """Names that `from_preset` knows, sorted.

    Examples:
        >>> "animals10" in keras_ci2p.list_presets()
        True
    """
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
    config = {key: value for key, value in config.items() if key not in FREEZING}
    dtype = config.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") == "DTypePolicy":
        config["dtype"] = dtype["config"]["name"]
    return {**stored, "config": config, "registered_name": name}


def preset_of(name):
    """The preset of a training run's best weights; `name` itself where it is no run."""
    best = user_path(name) / BEST
    return best if best.is_dir() else name
