"""Checkpoints of the paper's code (fanchy/ci2pvit on mmpretrain) as Keras models."""

import re

import numpy as np

from keras_ci2p.convert.assignment import Entry, assign, batch_norm, convolution, dense, transformer_entries
from keras_ci2p.convert.checkpoints import CheckpointError, read_state_dict
from keras_ci2p.convert.compressai import gdn_constants, transform_entries
from keras_ci2p.layers.position_embedding import resize_position_embedding
from keras_ci2p.models import CI2PViT, ViT

_EMBEDDING = "backbone.to_patch_embedding."
# Buffers that hold no weights: BatchNorm's counters, the constants of GDN's reparametrisation.
_CONSTANTS = re.compile(r"\.(num_batches_tracked|(beta|gamma)_reparam\.(pedestal|lower_bound\.bound))$")


def from_mmpretrain(checkpoint, image_shape=None, num_heads=None, drop_path_rate=0.1):
    """The Keras model of a checkpoint written by the paper's code.

    Sizes and class count are read off the weights; the CI2P-ViT comes with its compressor frozen.

    Args:
        checkpoint: Path (`.pth`, `.safetensors`) or dict of arrays, with the key names of mmpretrain's
            `ImageClassifier` (`backbone. ...`, `head.fc. ...`).
        image_shape: `(height, width, 3)`; None for (256, 256, 3), or for a square ViT what its position embedding
            says. A position embedding is resized to it.
        num_heads: Attention heads, which the weights do not tell; None for a head width of 64 (96 where
            the FFN is 2304 wide, mmpretrain's "small").
        drop_path_rate: Stochastic depth of the last block, which the weights do not tell.

    Returns:
        A `CI2PViT` or `ViT`.

    Raises:
        CheckpointError: Unreadable file; a key that is missing, left over or misshapen.
    """
    state = read_state_dict(checkpoint)
    is_ci2p = any(key.startswith(_EMBEDDING) for key in state)
    transformer = "backbone.transformer." if is_ci2p else "backbone."
    sizes = _transformer_sizes(state, transformer, num_heads)
    common = {**sizes, "num_classes": _shape(state, "head.fc.weight", 2)[0], "drop_path_rate": drop_path_rate}
    if is_ci2p:
        model = CI2PViT(image_shape or (256, 256, 3), compressor=_compressor_sizes(state), **common)
    else:
        model, state = _vit(state, image_shape, common)
    assign(mmpretrain_entries(model), state, constants=_CONSTANTS.search)
    return model


def to_mmpretrain(model):
    """A state dict with the key names of the paper's code, the inverse of `from_mmpretrain`.

    Args:
        model: A `CI2PViT` or `ViT`.

    Returns:
        dict of str to numpy array: the weights, and the constants that the paper's code asks for.
    """
    state = {entry.key: entry.array() for entry in mmpretrain_entries(model)}
    for key in [key for key in state if key.endswith((".running_mean", ".beta"))]:
        at, leaf = key.rsplit(".", 1)
        state |= {f"{at}.num_batches_tracked": np.array(0)} if leaf == "running_mean" else gdn_constants(at)
    return state


def mmpretrain_entries(model):
    """The `Entry` list of a `CI2PViT` or `ViT`: which checkpoint entry is which variable."""
    if isinstance(model, CI2PViT):
        return [*_ci2p_entries(model), *_transformer_entries(model, "backbone.transformer.")]
    return [
        *convolution("backbone.patch_embed.projection", model.get_layer("patch_embedding")),
        Entry("backbone.pos_embed", model.get_layer("position_embedding").embedding),
        *_transformer_entries(model, "backbone."),
    ]


def _vit(state, image_shape, common):
    patch_size = _shape(state, "backbone.patch_embed.projection.weight", 4)[-1]
    _, tokens, _ = _shape(state, "backbone.pos_embed", 3)
    side = round(tokens**0.5)
    if side * side != tokens:
        raise CheckpointError(f"backbone.pos_embed has {tokens} positions, which make no square grid.")
    image_shape = tuple(image_shape or (side * patch_size, side * patch_size, 3))
    model = ViT(image_shape, patch_size=patch_size, **common)
    grid = model.get_layer("position_embedding").grid
    resized = resize_position_embedding(state["backbone.pos_embed"], (side, side), grid)
    return model, {**state, "backbone.pos_embed": resized}


def _compressor_sizes(state):
    prefix = _EMBEDDING + "compressai."
    has_gdn = f"{prefix}1.beta" in state
    return {
        "architecture": "bmshj2018-factorized" if has_gdn else "bmshj2018-factorized-relu",
        "num_filters": _shape(state, f"{prefix}0.weight", 4)[0],
        "latent_channels": _shape(state, f"{prefix}6.weight", 4)[0],
    }


def _transformer_sizes(state, prefix, num_heads):
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    numbers = {int(match[1]) for match in map(pattern.match, state) if match}
    mlp_dim, hidden_dim = _shape(state, f"{prefix}layers.0.ffn.layers.0.0.weight", 2)
    head_dim = 96 if mlp_dim == 2304 and hidden_dim == 768 else 64
    return {
        "hidden_dim": hidden_dim,
        "num_layers": max(numbers, default=0) + 1,
        "num_heads": num_heads or max(1, hidden_dim // head_dim),
        "mlp_dim": mlp_dim,
    }


def _shape(state, key, rank):
    if key not in state:
        raise CheckpointError(f"The checkpoint is not one of the paper's code: it lacks {key}.")
    if state[key].ndim != rank:
        raise CheckpointError(f"{key} has shape {state[key].shape}; {rank} axes were expected.")
    return state[key].shape


def _ci2p_entries(model):
    entries = transform_entries(_EMBEDDING + "compressai", model.compressor)
    generator = model.patch_generator
    for i, block in enumerate((generator.refine, generator.reduce)):
        entries += _inverted_residual_entries(f"{_EMBEDDING}patchReshape.{i}", block)
    return entries


def _inverted_residual_entries(prefix, block):
    return [
        *convolution(f"{prefix}.expand_conv.conv", block.expand),
        *batch_norm(f"{prefix}.expand_conv.bn", block.expand_norm),
        *convolution(f"{prefix}.depthwise_conv.conv", block.depthwise, "depthwise"),
        *batch_norm(f"{prefix}.depthwise_conv.bn", block.depthwise_norm),
        *convolution(f"{prefix}.se.conv1.conv", block.squeeze, "pointwise"),
        *convolution(f"{prefix}.se.conv2.conv", block.excite, "pointwise"),
        *convolution(f"{prefix}.linear_conv.conv", block.project),
        *batch_norm(f"{prefix}.linear_conv.bn", block.project_norm),
    ]


def _transformer_entries(model, prefix):
    names = ("ln1", "attn.qkv", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1")
    return [*transformer_entries(model, f"{prefix}layers", names, f"{prefix}ln1"), *dense("head.fc", model.head)]
