"""CompressAI's checkpoints as Keras compressors, and back; the download of published ones."""

import hashlib
import re
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ci2p.codec.rans import CodecError
from keras_ci2p.codec.tables import SCALES, EntropyTables
from keras_ci2p.convert.state_dict import CheckpointError, WeightMapping, convolution, load_state_dict, read_state_dict
from keras_ci2p.layers.compression_layers import (
    GDN,
    LEAST_SCALE,
    LIKELIHOOD_BOUND,
    PEDESTAL,
    TAIL_MASS,
    AttentionBlock,
    ResidualBlock,
    ResidualUnit,
    StridedResidualBlock,
)
from keras_ci2p.layers.compression_transforms import AnalysisTransform
from keras_ci2p.models.ci2p_vit import load_preset
from keras_ci2p.models.compressor import CHANNELS, WITHOUT_SYNTHESIS, Compressor
from keras_ci2p.names import NO_COMPRESSOR, TABLE_CHOICES, WHOLE, published_compressors
from keras_ci2p.presets import PresetError
from keras_ci2p.utils import (
    DiskFullError,
    PathLike,
    atomic_directory,
    atomic_file,
    cache_directory,
    file_sha256,
    user_path,
    wrong_choice,
)

# Buffers that hold no weights: GDN's and the bottleneck's constants, and tables made from the quantiles.
_CONSTANTS = re.compile(
    r"(^|\.)(pedestal|bound|target|_offset|_quantized_cdf|_cdf_length|scale_table|mask)$|^gaussian_conditional\."
)
# Parts of the priors that are not part of this package.
_OTHER_PRIORS = (
    "h_a.",
    "h_s.",
    "entropy_bottleneck.",
    "gaussian_conditional.",
    "context_prediction.",
    "entropy_parameters.",
)
# Keys of models of CompressAI whose transforms or priors are others, and what these are.
_UNKNOWN = {
    r"latent_codec\.y\.channel_context\.": "ELIC (elic2022-official, elic2022-chandelier)",
    r"latent_codec\.y\.context_prediction\.": "cheng2020-anchor-checkerboard",
    r"latent_codec\.": "a model made of CompressAI's latent codecs",
    r"(Gain$|QuantABCD\.)": "a model of variable bit rate (vbr)",
    r"(cc_mean_transforms|cc_scale_transforms|lrp_transforms)\.": "a model with a channel-wise prior",
}
LAYOUT = {"CompressAI": r"g_a\.0\.(?:conv1\.)?weight"}
# The bottleneck's parameters were lists in other versions: `_matrices.0` or `matrices.0` is `_matrix0`.
_LISTS = re.compile(r"entropy_bottleneck\._?(matrices|biases|factors)\.(\d+)$")
_SINGULAR = {"matrices": "matrix", "biases": "bias", "factors": "factor"}


# The entropy coder's, as `EntropyTables` names them.
_TABLES = ("_quantized_cdf", "_cdf_length", "_offset")


def from_compressai(
    checkpoint: Any,
    quality: int | None = None,
    source: dict[str, Any] | None = None,
    key: str | None = None,
    origin: dict[str, Any] | None = None,
    tables: str = "weights",
) -> Compressor:
    """The Keras compressor of a CompressAI checkpoint.

    Architecture and channels are read off the keys and shapes; every generation of key names is understood. The state
    dict is found in whatever holds it (`docs/convert.md`).

    A checkpoint may hold tables of the entropy coder, as CompressAI codes by. If they are those of its weights, but for
    the rounding of CompressAI's float32, the compressor codes by them too, and bitstreams are the same. A warning tells
    of tables that were made before its last training.

    Args:
        checkpoint: Path (`.pth.tar`, `.pth`, `.safetensors`), dict of arrays, or torch `Module`.
        quality: Its quality; None where it is unknown (qualities 1 to 5 have the same shapes).
        source: Where the weights are from, a dict of plain values (`name`, `sha256`); None for the file's own.
        key: Which state dict to take where the checkpoint has several, such as "model_ema".
        origin: The former name of `source`.
        tables: "checkpoint" to code by its tables whatever they are: to read what was written by them.

    Returns:
        A `Compressor`.

    Raises:
        CheckpointError: Unreadable file; a model that is none of this package's architectures; a key that is missing,
            left over or misshapen; several state dicts; no tables, or faulty ones, if they are wanted.
        ValueError: The checkpoint's channels contradict the quality; unknown `tables`.

    Examples:
        >>> state = keras_ci2p.convert.to_compressai(keras_ci2p.Compressor(quality=None, channels=(8, 12)))
        >>> compressor = keras_ci2p.convert.from_compressai(state)
        >>> compressor.architecture, compressor.num_filters, compressor.latent_channels
        ('bmshj2018-factorized', 8, 12)
    """
    if tables not in TABLE_CHOICES:
        raise ValueError(wrong_choice("tables", tables, TABLE_CHOICES))
    state = normalise_keys(read_state_dict(checkpoint, LAYOUT, key))
    architecture = _architecture(state)
    channels = _channels(state, architecture)
    source = origin if source is None else source
    if source is None and isinstance(checkpoint, (str, Path)):
        source = {"name": Path(checkpoint).name, "sha256": file_sha256(checkpoint)}
    compressor = Compressor(architecture, quality=quality, channels=channels, source=source)
    entries = compressai_entries(compressor)
    _check_analysis(entries, state, architecture)
    load_state_dict(entries, state, lambda key: unused_reason(key, architecture) is not None)
    if architecture in WHOLE or tables == "checkpoint":
        _use_tables(compressor, state, tables)
    return compressor


def _use_tables(compressor, state, choice):
    """Gives a compressor the tables of its checkpoint, where they are wanted, or are those of its weights."""
    for part, attribute in _table_parts(compressor).items():
        arrays = [state.get(f"{part}.{name}", np.array([], "int32")) for name in _TABLES]
        is_there = any(array.size for array in arrays)
        if choice == "checkpoint":
            if not is_there:
                raise CheckpointError(
                    "The checkpoint holds no tables of an entropy coder: CompressAI's `update()` makes them."
                )
            scales = state.get("gaussian_conditional.scale_table", SCALES)
            if attribute == "gaussian_tables" and not (scales.shape == SCALES.shape and np.allclose(scales, SCALES)):
                raise CheckpointError(
                    "The checkpoint's Gaussian tables are of other scales than CompressAI's `get_scale_table()`."
                )
            try:
                setattr(compressor, attribute, EntropyTables(*arrays))
            except (CodecError, TypeError) as error:
                raise CheckpointError(f"The checkpoint's tables of the entropy coder are faulty: {error}") from error
        elif is_there:
            try:
                tables = EntropyTables(*arrays)
                is_current = tables.is_close(getattr(compressor, attribute))
            except (CodecError, TypeError):
                is_current = False
            if is_current:
                setattr(compressor, attribute, tables)
            else:
                warnings.warn(
                    f"The checkpoint's tables of the entropy coder ({part}) are not those of its weights: they were "
                    "made before its last training. New ones are used; what was written by the old ones is read with "
                    '`from_compressai(..., tables="checkpoint")`, or --tables checkpoint.',
                    stacklevel=3,
                )


def _table_parts(compressor):
    """Attributes of a compressor that hold tables, by the part of CompressAI's model that holds the same."""
    hyper = {"gaussian_conditional": "gaussian_tables"} if compressor.hyper_synthesis is not None else {}
    return {"entropy_bottleneck": "entropy_tables", **hyper}


def normalise_keys(state):
    """The state dict with the key names of CompressAI 1.2.

    Raises:
        CheckpointError: Two keys become one.
    """
    renamed = {}
    for key, value in state.items():
        new = key.replace(".downsample.", ".skip.")
        new = _LISTS.sub(lambda match: f"entropy_bottleneck._{_SINGULAR[match[1]]}{match[2]}", new)
        if new in renamed:
            raise CheckpointError(f"The checkpoint holds {new} twice, under names of different versions.")
        renamed[new] = value
    return renamed


def unused_reason(key, architecture):
    """Why a key is left over in a conversion, None where it should not be."""
    if _CONSTANTS.search(key):
        return "constant, or made from the weights"
    if architecture not in WHOLE and key.startswith(_OTHER_PRIORS):
        return "prior that is not part of this package"
    if architecture in WITHOUT_SYNTHESIS and key.startswith("g_s."):
        return "synthesis transform that is not part of this package"
    return None


def _architecture(state):
    for pattern, name in _UNKNOWN.items():
        if any(re.match(pattern, key) for key in state):
            raise CheckpointError(
                f"The checkpoint is {name}, which is not part of this package. It has: {', '.join(CHANNELS)}."
            )
    if "g_a.0.conv1.weight" in state:
        return "cheng2020-attn" if "g_a.3.conv_a.0.conv.0.weight" in state else "cheng2020-anchor"
    if not any(key.startswith("h_a.") for key in state):
        return "bmshj2018-factorized" if "g_a.1.beta" in state else "bmshj2018-factorized-relu"
    if any(key.startswith("context_prediction.") for key in state):
        return "mbt2018"
    # The mean-scale hyperprior gives two numbers for each channel of the latent.
    outputs, latent = _shape(state, "h_s.4.weight", 4)[0], _shape(state, "g_a.6.weight", 4)[0]
    return "mbt2018-mean" if outputs == 2 * latent else "bmshj2018-hyperprior"


def _check_analysis(entries, state, architecture):
    """Raises CheckpointError where the analysis transform has layers of other kinds or in other places."""
    known = {entry.key for entry in entries}
    unknown = [key for key in state if key.startswith("g_a.") and key not in known and not _CONSTANTS.search(key)]
    if unknown:
        raise CheckpointError(
            f"The checkpoint's analysis transform is none of this package's ({', '.join(CHANNELS)}). The nearest is "
            f"{architecture}, which lacks what the checkpoint has: {', '.join(sorted(unknown)[:5])}."
        )


def _channels(state, architecture):
    if architecture in WITHOUT_SYNTHESIS:
        filters = _shape(state, "g_a.0.conv1.weight", 4)[0]
        last = "7" if architecture == "cheng2020-attn" else "6"
        return filters, _shape(state, f"g_a.{last}.weight", 4)[0]
    return _shape(state, "g_a.0.weight", 4)[0], _shape(state, "g_a.6.weight", 4)[0]


def _shape(state, key, rank):
    if key not in state:
        raise CheckpointError(f"The checkpoint lacks {key}.")
    if state[key].ndim != rank or 0 in state[key].shape:
        raise CheckpointError(f"{key} has shape {state[key].shape}; {rank} axes that are not empty were expected.")
    return state[key].shape


def compressai_entries(compressor):
    """The `WeightMapping` list of a compressor: which checkpoint entry is which variable."""
    entries = transform_entries("g_a", compressor.analysis)
    for prefix, transform in (
        ("g_s", compressor.synthesis),
        ("h_a", compressor.hyper_analysis),
        ("h_s", compressor.hyper_synthesis),
    ):
        if transform is not None:
            entries += transform_entries(prefix, transform)
    bottleneck = compressor.entropy_bottleneck
    if bottleneck is not None:
        for name, variables in (
            ("matrix", bottleneck.matrices),
            ("bias", bottleneck.biases),
            ("factor", bottleneck.factors),
        ):
            named = enumerate(variables)
            entries += [WeightMapping(f"entropy_bottleneck._{name}{i}", variable) for i, variable in named]
        entries.append(WeightMapping("entropy_bottleneck.quantiles", bottleneck.quantiles))
    return entries


def transform_entries(prefix, transform):
    """Entries of an analysis or synthesis transform, numbered as CompressAI's Sequential."""
    return [entry for i, layer in enumerate(transform.stages) for entry in _layer_entries(f"{prefix}.{i}", layer)]


def _layer_entries(at, layer):
    match layer:
        case GDN():
            return [WeightMapping(f"{at}.beta", layer.beta), WeightMapping(f"{at}.gamma", layer.gamma, "linear")]
        case StridedResidualBlock():
            parts = {"conv1": layer.conv1, "conv2": layer.conv2, "gdn": layer.gdn, "skip": layer.skip}
        case ResidualBlock():
            parts = {"conv1": layer.conv1, "conv2": layer.conv2}
        case ResidualUnit():
            parts = {"conv.0": layer.reduce, "conv.2": layer.middle, "conv.4": layer.expand}
        case AttentionBlock():
            parts = {f"conv_a.{i}": unit for i, unit in enumerate(layer.values)}
            parts |= {f"conv_b.{i}": unit for i, unit in enumerate(layer.mask)}
        case keras.layers.ReLU():
            return []
        case _:
            return convolution(at, layer)
    return [entry for name, part in parts.items() for entry in _layer_entries(f"{at}.{name}", part)]


def to_compressai(compressor: Compressor) -> dict[str, np.ndarray]:
    """A state dict that CompressAI's `load_state_dict` accepts, the inverse of `from_compressai`.

    With the tables of the entropy coder, so that both write the same bitstreams. CompressAI keeps them until
    `update(force=True)`, which it needs after more training.

    Args:
        compressor: A `Compressor` with its prior: a factorized one, or a hyperprior.

    Returns:
        dict of str to numpy array.

    Raises:
        ValueError: The compressor's prior is not part of this package, so that half of the state dict would be missing.

    Examples:
        >>> state = keras_ci2p.convert.to_compressai(keras_ci2p.Compressor(quality=None, channels=(8, 12)))
        >>> state["g_a.0.weight"].shape
        (8, 3, 5, 5)
    """
    if compressor.architecture not in WHOLE:
        raise ValueError(
            f"Only {', '.join(WHOLE)} can be converted back: the prior of {compressor.architecture} is not "
            f"part of this package. Received: compressor={compressor!r}"
        )
    state = {entry.key: entry.array() for entry in compressai_entries(compressor)}
    for key in [key for key in state if key.endswith(".beta")]:
        state |= gdn_constants(key.removesuffix(".beta"))
    tail = np.log(2 / TAIL_MASS - 1)
    state["entropy_bottleneck.target"] = np.array([-tail, 0, tail], "float32")
    state["entropy_bottleneck.likelihood_lower_bound.bound"] = np.array([LIKELIHOOD_BOUND], "float32")
    if compressor.hyper_synthesis is not None:
        state["gaussian_conditional.scale_table"] = SCALES
        state["gaussian_conditional.scale_bound"] = np.array([LEAST_SCALE], "float32")
        state["gaussian_conditional.likelihood_lower_bound.bound"] = np.array([LIKELIHOOD_BOUND], "float32")
        state["gaussian_conditional.lower_bound_scale.bound"] = np.array([LEAST_SCALE], "float32")
    for part, attribute in _table_parts(compressor).items():
        try:
            tables = getattr(compressor, attribute)
        except CodecError:
            # Of weights that make none: empty, as in a new CompressAI model.
            tables = None
        for name in _TABLES:
            state[f"{part}.{name}"] = np.array(getattr(tables, name.removeprefix("_"), []), "int32")
    return state


def gdn_constants(at):
    """The buffers of the reparametrisation of the GDN named `at`."""
    constants = {}
    for name, minimum in (("beta", 1e-6), ("gamma", 0.0)):
        constants[f"{at}.{name}_reparam.pedestal"] = np.array([PEDESTAL], "float32")
        constants[f"{at}.{name}_reparam.lower_bound.bound"] = np.array([(minimum + PEDESTAL) ** 0.5], "float32")
    return constants


ADDRESS = "https://compressai.s3.amazonaws.com/models/v1"
_PIECE = 1 << 20
_TIMEOUT_SECONDS = 60


class DownloadError(OSError):
    """A published file that could not be had, or is not the published one.

    Examples:
        >>> issubclass(keras_ci2p.convert.DownloadError, OSError)
        True
    """


def fetch(name):
    """The preset directory of a published compressor; downloaded, checked and converted when it is not there yet.

    Args:
        name: One of `zoo_names()`.

    Raises:
        DownloadError: No network, no such file, or not the file that was published. Nothing is left behind.
    """
    directory = cache_directory() / name
    if not (directory / "metadata.json").is_file():
        _, architecture, quality, file_name, digest = next(row for row in published_compressors() if row[0] == name)
        file = cache_directory() / file_name
        if not file.is_file():
            _download(f"{ADDRESS}/{file_name}", file, digest)
        sha256 = _check_sha256(file, digest)
        compressor = from_compressai(file, quality=quality, source={"name": name, "sha256": sha256})
        if compressor.architecture != architecture:
            raise CheckpointError(f"{file} is a {compressor.architecture}, not a {architecture}.")
        # Other processes may do the same at the same time, and read already what they have written.
        with atomic_directory(directory, replace=False) as temporary:
            compressor.save_to_preset(temporary)
    return directory


def _check_sha256(file: PathLike, digest: str) -> str:
    """The SHA-256 of a file; DownloadError unless it begins with the digits `digest`."""
    sha256 = file_sha256(file)
    if not sha256.startswith(digest):
        raise DownloadError(
            f"{file} is not the published file: its SHA-256 begins with {sha256[: len(digest)]}, not {digest}. "
            "Delete it."
        )
    return sha256


def _download(address: str, file: PathLike, digest: str) -> None:
    """Writes what `address` serves to `file`, under a temporary name until its SHA-256 is checked.

    Raises:
        DownloadError: It could not be had whole, or its SHA-256 does not begin with `digest`.
        keras_ci2p.utils.DiskFullError: There is no room for it.
    """
    by_hand = f"Put it there by hand as {file}; its SHA-256 must begin with {digest}."
    try:
        with atomic_file(file) as temporary:
            sha256 = hashlib.sha256()
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response, open(temporary, "wb") as target:
                received = 0
                while piece := response.read(_PIECE):
                    target.write(piece)
                    sha256.update(piece)
                    received += len(piece)
                expected = response.headers.get("Content-Length")
            if expected is not None and received != int(expected):
                raise DownloadError(f"{address} broke off after {received} of {expected} bytes. Try again. {by_hand}")
            if not sha256.hexdigest().startswith(digest):
                raise DownloadError(
                    f"What {address} serves is not the published file: its SHA-256 begins with "
                    f"{sha256.hexdigest()[: len(digest)]}, not {digest}."
                )
    except (DownloadError, DiskFullError):
        raise
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise DownloadError(f"{address} cannot be downloaded: {error}. {by_hand}") from error


def read_compressor(source: PathLike | None, tables: str = "weights") -> Compressor | AnalysisTransform | None:
    """Reads a compressor from wherever one is: the one parser of such a name.

    Args:
        source: A preset's name or directory, of a compressor or of a classifier that holds one; a training run of
            either; a name of `zoo_names()`; or the file of a CompressAI checkpoint. None and "none" stand for none.
        tables: Of a checkpoint, as in `from_compressai`.

    Returns:
        A `Compressor`; of a classifier, which has no more, its `AnalysisTransform`; None for none.

    Raises:
        keras_ci2p.presets.PresetError: No such preset, a damaged one, or one without a compressor.
        CheckpointError: A file that is no checkpoint of CompressAI.
        ValueError: The `tables` of a checkpoint, where `source` is none.

    Examples:
        >>> keras_ci2p.convert.read_compressor("bmshj2018-factorized-mse-5-photos").quality
        5
        >>> keras_ci2p.convert.read_compressor("none") is None
        True
    """
    if source in (None, NO_COMPRESSOR):
        return None
    if user_path(source).is_file():
        return from_compressai(source, tables=tables)
    if tables != "weights":
        raise ValueError(
            f"{source} is no file of a CompressAI checkpoint, whose tables could be chosen. Received: tables={tables!r}"
        )
    model = load_preset(source)
    if isinstance(model, Compressor):
        return model
    if not hasattr(model, "compressor"):
        raise PresetError(f"{source} has no compressor: it is a {type(model).__name__}.")
    return model.compressor
