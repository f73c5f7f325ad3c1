"""CompressAI's checkpoints as Keras compressors, and back."""

import re
from pathlib import Path

import keras
import numpy as np

from keras_ci2p.convert import zoo
from keras_ci2p.convert.state_dict import CheckpointError, WeightMapping, convolution, load_state_dict, read_state_dict
from keras_ci2p.convert.zoo import NO_COMPRESSOR
from keras_ci2p.layers.compression_layers import (
    GDN,
    LIKELIHOOD_BOUND,
    PEDESTAL,
    TAIL_MASS,
    AttentionBlock,
    ResidualBlock,
    ResidualUnit,
    StridedResidualBlock,
)
from keras_ci2p.models.compressor import FACTORIZED, WITHOUT_SYNTHESIS, Compressor
from keras_ci2p.models.loading import load_preset
from keras_ci2p.presets import PresetError
from keras_ci2p.utils import atomic_directory, file_sha256

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
# The bottleneck's parameters were lists in other versions: `_matrices.0` or `matrices.0` is `_matrix0`.
_LISTS = re.compile(r"entropy_bottleneck\._?(matrices|biases|factors)\.(\d+)$")
_SINGULAR = {"matrices": "matrix", "biases": "bias", "factors": "factor"}


def from_compressai(checkpoint, quality=None, origin=None):
    """The Keras compressor of a CompressAI checkpoint.

    Architecture and channels are read off the keys and shapes; every generation of key names is understood.

    Args:
        checkpoint: Path (`.pth.tar`, `.pth`, `.safetensors`) or dict of arrays.
        quality: Its quality; None where it is unknown (qualities 1 to 5 have the same shapes).
        origin: Where the weights are from, a dict of plain values (`name`, `sha256`); None for the file's own.

    Returns:
        A `Compressor`.

    Raises:
        CheckpointError: Unreadable file; a key that is missing, left over or misshapen.
        ValueError: The checkpoint's channels contradict the quality.
    """
    state = normalise_keys(read_state_dict(checkpoint))
    architecture = _architecture(state)
    channels = _channels(state, architecture)
    if origin is None and not isinstance(checkpoint, dict):
        origin = {"name": Path(checkpoint).name, "sha256": file_sha256(checkpoint)}
    compressor = Compressor(architecture, quality=quality, channels=channels, origin=origin)
    load_state_dict(compressai_entries(compressor), state, lambda key: unused_reason(key, architecture) is not None)
    return compressor


def normalise_keys(state):
    """The state dict with the key names of CompressAI 1.2.

    Raises:
        CheckpointError: Two keys become one.
    """
    renamed = {}
    for key, value in state.items():
        new = re.sub(r"^module\.", "", key)
        new = new.replace(".downsample.", ".skip.")
        new = _LISTS.sub(lambda match: f"entropy_bottleneck._{_SINGULAR[match[1]]}{match[2]}", new)
        if new in renamed:
            raise CheckpointError(f"The checkpoint holds {new} twice, under names of different versions.")
        renamed[new] = value
    return renamed


def unused_reason(key, architecture):
    """Why a key is left over in a conversion, None where it should not be."""
    if _CONSTANTS.search(key):
        return "constant, or made from the weights"
    if architecture not in FACTORIZED and key.startswith(_OTHER_PRIORS):
        return "prior that is not part of this package"
    if architecture in WITHOUT_SYNTHESIS and key.startswith("g_s."):
        return "synthesis transform that is not part of this package"
    return None


def _architecture(state):
    if not any(key.startswith("g_a.") for key in state):
        raise CheckpointError("The checkpoint is not one of CompressAI: it has no analysis transform (g_a. ...).")
    if "g_a.0.conv1.weight" in state:
        return "cheng2020-attn" if "g_a.3.conv_a.0.conv.0.weight" in state else "cheng2020-anchor"
    if not any(key.startswith("h_a.") for key in state):
        return "bmshj2018-factorized" if "g_a.1.beta" in state else "bmshj2018-factorized-relu"
    if any(key.startswith("context_prediction.") for key in state):
        return "mbt2018"
    # The mean-scale hyperprior gives two numbers for each channel of the latent.
    outputs, latent = _shape(state, "h_s.4.weight", 4)[0], _shape(state, "g_a.6.weight", 4)[0]
    return "mbt2018-mean" if outputs == 2 * latent else "bmshj2018-hyperprior"


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
    if compressor.synthesis is not None:
        entries += transform_entries("g_s", compressor.synthesis)
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


def to_compressai(compressor):
    """A state dict that CompressAI's `load_state_dict` accepts, the inverse of `from_compressai`.

    The tables of the entropy coder are empty, as in a new CompressAI model; its `update()` makes them.

    Args:
        compressor: A `Compressor` with a factorized prior.

    Returns:
        dict of str to numpy array.

    Raises:
        ValueError: The compressor's prior is not factorized, so that half of the state dict would be missing.
    """
    if compressor.architecture not in FACTORIZED:
        raise ValueError(
            f"Only {' and '.join(FACTORIZED)} can be converted back: the prior of {compressor.architecture} is not "
            "part of this package."
        )
    state = {entry.key: entry.array() for entry in compressai_entries(compressor)}
    for key in [key for key in state if key.endswith(".beta")]:
        state |= gdn_constants(key.removesuffix(".beta"))
    tail = np.log(2 / TAIL_MASS - 1)
    state["entropy_bottleneck.target"] = np.array([-tail, 0, tail], "float32")
    state["entropy_bottleneck.likelihood_lower_bound.bound"] = np.array([LIKELIHOOD_BOUND], "float32")
    for name in ("_offset", "_quantized_cdf", "_cdf_length"):
        state[f"entropy_bottleneck.{name}"] = np.array([], "int32")
    return state


def gdn_constants(at):
    """The buffers of the reparametrisation of the GDN named `at`."""
    constants = {}
    for name, minimum in (("beta", 1e-6), ("gamma", 0.0)):
        constants[f"{at}.{name}_reparam.pedestal"] = np.array([PEDESTAL], "float32")
        constants[f"{at}.{name}_reparam.lower_bound.bound"] = np.array([(minimum + PEDESTAL) ** 0.5], "float32")
    return constants


def fetch(name):
    """The preset directory of a published compressor; downloaded, checked and converted when it is not there yet.

    Args:
        name: One of `zoo_names()`.

    Raises:
        DownloadError: No network, no such file, or not the file that was published. Nothing is left behind.
    """
    directory = zoo.cache_directory() / name
    if not (directory / "metadata.json").is_file():
        _, architecture, quality, file_name, digest = next(row for row in zoo.published() if row[0] == name)
        file = zoo.cache_directory() / file_name
        if not file.is_file():
            zoo.download(f"{zoo.ADDRESS}/{file_name}", file, digest)
        sha256 = zoo.check(file, digest)
        compressor = from_compressai(file, quality=quality, origin={"name": name, "sha256": sha256})
        if compressor.architecture != architecture:
            raise CheckpointError(f"{file} is a {compressor.architecture}, not a {architecture}.")
        # Other processes may do the same at the same time, and read already what they have written.
        with atomic_directory(directory, replace=False) as temporary:
            compressor.save_to_preset(temporary)
    return directory


def read_compressor(source):
    """Reads a compressor from wherever one is: the one parser of such a name.

    Args:
        source: A preset's name or directory, of a compressor or of a classifier that holds one; a training run of
            either; a name of `zoo_names()`; or the file of a CompressAI checkpoint. None and "none" stand for none.

    Returns:
        A `Compressor`; of a classifier, which has no more, its `AnalysisTransform`; None for none.

    Raises:
        keras_ci2p.presets.PresetError: No such preset, a damaged one, or one without a compressor.
        CheckpointError: A file that is no checkpoint of CompressAI.
    """
    if source in (None, NO_COMPRESSOR):
        return None
    if Path(source).is_file():
        return from_compressai(source)
    model = load_preset(source)
    if isinstance(model, Compressor):
        return model
    if not hasattr(model, "compressor"):
        raise PresetError(f"{source} has no compressor: it is a {type(model).__name__}.")
    return model.compressor
