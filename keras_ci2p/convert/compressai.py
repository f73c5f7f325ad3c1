"""CompressAI's checkpoints as Keras compressors, and back."""

import hashlib
import os
import re
import urllib.request
from pathlib import Path

import keras
import numpy as np

from keras_ci2p import presets
from keras_ci2p.config import NONE
from keras_ci2p.convert.state_dict import CheckpointError, Entry, assign, convolution, read_state_dict
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
from keras_ci2p.presets import preset_of
from keras_ci2p.utils import atomic_file, file_sha256

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
    assign(compressai_entries(compressor), state, constants=lambda key: unused_reason(key, architecture) is not None)
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
    """The `Entry` list of a compressor: which checkpoint entry is which variable."""
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
            entries += [Entry(f"entropy_bottleneck._{name}{i}", variable) for i, variable in enumerate(variables)]
        entries.append(Entry("entropy_bottleneck.quantiles", bottleneck.quantiles))
    return entries


def transform_entries(prefix, transform):
    """Entries of an analysis or synthesis transform, numbered as CompressAI's Sequential."""
    return [entry for i, layer in enumerate(transform.stages) for entry in _layer_entries(f"{prefix}.{i}", layer)]


def _layer_entries(at, layer):
    match layer:
        case GDN():
            return [Entry(f"{at}.beta", layer.beta), Entry(f"{at}.gamma", layer.gamma, "linear")]
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


ADDRESS = "https://compressai.s3.amazonaws.com/models/v1"

# File stem, and the first eight digits of the SHA-256 of qualities 1, 2, ...; source: CompressAI 1.2.8, `zoo/image.py`.
_FILES = {
    ("bmshj2018-factorized", "mse"): (
        "bmshj2018-factorized-prior",
        "446d5c7f 87279a02 5c6f152b 1ed4405a 866ba797 9b02ea3a 6dfd6734 5232faa3",
    ),
    ("bmshj2018-factorized", "ms-ssim"): (
        "bmshj2018-factorized-ms-ssim",
        "9781d705 4a584386 5352f123 4f91b847 b3a88897 ee028763 8c265a29 8811bd14",
    ),
    ("bmshj2018-hyperprior", "mse"): (
        "bmshj2018-hyperprior",
        "7eb97409 93677231 6d87be32 de1b779c f8b614e1 1ab9c41e 3804dcbd a583f0cf",
    ),
    ("bmshj2018-hyperprior", "ms-ssim"): (
        "bmshj2018-hyperprior-ms-ssim",
        "5cf249be 1ff60d1f 92dd7878 4377354e c34afc8d 3a6d8229 8747d3bc cc15b5f3",
    ),
    ("mbt2018-mean", "mse"): (
        "mbt2018-mean",
        "e522738d e54a039d 723404a8 6dba02a3 d504e8eb a19628ab d5d441d1 8089ae3e",
    ),
    ("mbt2018-mean", "ms-ssim"): (
        "mbt2018-mean-ms-ssim",
        "5bf9c0b6 e2a1bf3f 640ce819 12626c13 1be7f059 b83bf379 ddf9644c 0cc7b94f",
    ),
    ("mbt2018", "mse"): (
        "mbt2018",
        "3f36cd77 43b70cdd 22901978 456e2af9 b4a046dd 7052e5ea 8ba2bf82 dd0097aa",
    ),
    ("mbt2018", "ms-ssim"): (
        "mbt2018-ms-ssim",
        "2878436b c41cb208 d0dd64e8 a120e037 9b30e3b7 f8b3626f 16e6ff50 0cb49d43",
    ),
    ("cheng2020-anchor", "mse"): (
        "cheng2020-anchor",
        "dad2ebff a29008eb e49be189 98b0b468 23852949 4c052b1a",
    ),
    ("cheng2020-anchor", "ms-ssim"): (
        "cheng2020_anchor-ms-ssim",
        "20f521db c7ff5812 c23e22d5 0e658304 c0a95e77 f2dc1913",
    ),
    ("cheng2020-attn", "mse"): (
        "cheng2020_attn-mse",
        "465f2b64 e0805385 2d07bbdf f7b0ccf2 26c8920e 730501f2",
    ),
    ("cheng2020-attn", "ms-ssim"): (
        "cheng2020_attn-ms-ssim",
        "c5381d91 5dad201d 5c9be841 8b2f647e 5ca1f34c 216423ec",
    ),
}
_PIECE = 1 << 20
_TIMEOUT_SECONDS = 60


class DownloadError(OSError):
    """A published file that could not be had, or is not the published one."""


def _published():
    """Each published compressor: `(name, architecture, quality, file name, first digits of its SHA-256)`."""
    for (architecture, metric), (stem, digits) in _FILES.items():
        for quality, digest in enumerate(digits.split(), start=1):
            yield (
                f"{architecture}-{metric}-{quality}",
                architecture,
                quality,
                f"{stem}-{quality}-{digest}.pth.tar",
                digest,
            )


def zoo_names():
    """Names that `Compressor.from_preset` can download, such as "bmshj2018-factorized-mse-5"."""
    return [name for name, *_ in _published()]


def cache_directory():
    """Where downloads are kept: $KERAS_CI2P_CACHE, else ~/.cache/keras_ci2p."""
    return Path(os.environ.get("KERAS_CI2P_CACHE") or Path.home() / ".cache" / "keras_ci2p")


def fetch(name):
    """The preset directory of a published compressor; downloaded, checked and converted when it is not there yet.

    Args:
        name: One of `zoo_names()`.

    Raises:
        DownloadError: No network, no such file, or not the file that was published. Nothing is left behind.
    """
    directory = cache_directory() / name
    if not (directory / "metadata.json").is_file():
        _, architecture, quality, file_name, digest = next(row for row in _published() if row[0] == name)
        file = cache_directory() / file_name
        if not file.is_file():
            download(f"{ADDRESS}/{file_name}", file, digest)
        sha256 = check(file, digest)
        compressor = from_compressai(file, quality=quality, origin={"name": name, "sha256": sha256})
        if compressor.architecture != architecture:
            raise CheckpointError(f"{file} is a {compressor.architecture}, not a {architecture}.")
        compressor.save_to_preset(directory)
    return directory


def check(file, digest):
    """The SHA-256 of a file; DownloadError unless it begins with the digits `digest`."""
    sha256 = file_sha256(file)
    if not sha256.startswith(digest):
        raise DownloadError(
            f"{file} is not the published file: its SHA-256 begins with {sha256[: len(digest)]}, not {digest}. "
            "Delete it."
        )
    return sha256


def download(address, file, digest):
    """Writes what `address` serves to `file`, under a temporary name until its SHA-256 is checked.

    Raises:
        DownloadError: It could not be had whole, or its SHA-256 does not begin with `digest`.
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
    except DownloadError:
        raise
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise DownloadError(f"{address} cannot be downloaded: {error}. {by_hand}") from error


presets.add_source(zoo_names(), fetch)


def read_compressor(source):
    """A `Compressor` from a preset's name or directory, its training run or a CompressAI checkpoint.

    None for None and "none".
    """
    if source in (None, NONE):
        return None
    return from_compressai(source) if Path(source).is_file() else Compressor.from_preset(preset_of(source))
