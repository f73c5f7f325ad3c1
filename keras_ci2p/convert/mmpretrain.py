"""Checkpoints of the paper's code (fanchy/ci2pvit on mmpretrain) as Keras models."""

import re
from typing import Any

import numpy as np

from keras_ci2p.convert.compressai import gdn_constants, transform_entries
from keras_ci2p.convert.pretrained_vit import add_qkv_biases, find_grid, transformer_entries
from keras_ci2p.convert.state_dict import (
    CheckpointError,
    WeightMapping,
    batch_norm,
    convolution,
    dense,
    layer_norm,
    load_state_dict,
    read_state_dict,
)
from keras_ci2p.layers.compression_transforms import DOWNSAMPLING
from keras_ci2p.layers.embedding import resize_position_embedding
from keras_ci2p.models.ci2p_vit import CI2PViT, CI2PViTDualScale, ViT
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.names import IMAGENET_MEAN, IMAGENET_STD
from keras_ci2p.utils import Shape

_EMBEDDING = "backbone.to_patch_embedding."
_TRANSFORMER = "backbone.transformer."
# Of the dual-scale model alone.
_BLOCKS = f"{_TRANSFORMER}blocks."
_MERGE = re.compile(re.escape(_BLOCKS) + r"(\d+)\.0\.convReshape\.")
_HEAD = ("head.fc.weight", "head.fc.bias")
LAYOUT = {"the paper's code": r"backbone\.(?:to_patch_embedding\.compressai\.0|patch_embed\.projection)\.weight"}
_PREPROCESSOR = "data_preprocessor."
# What is no weight of the model, and why it is left out.
_LEFT_OUT = {
    # BatchNorm's counters, the constants of GDN's reparametrisation.
    r".*\.(num_batches_tracked|(beta|gamma)_reparam\.(pedestal|lower_bound\.bound))$": "constant",
    rf"{re.escape(_PREPROCESSOR)}(mean|std)$": "constant",
    # mmcv's: what is not averaged, since the keys without this prefix hold the averages when it saves.
    r"ema_": "other weights of an averaged model",
}


def from_mmpretrain(
    checkpoint: Any,
    image_shape: Shape | None = None,
    num_heads: int | None = None,
    drop_path_rate: float = 0.1,
    grid: tuple[int, int] | None = None,
    num_classes: int | None = None,
    key: str | None = None,
) -> ImageClassifier:
    """The Keras model of a checkpoint written by the paper's code.

    Sizes and class count are read off the weights, the names of the classes off what mmengine stores beside them; the
    CI2P-ViT comes with its compressor frozen. The state dict is found in whatever holds it (`docs/convert.md`).

    Args:
        checkpoint: Path (`.pth`, `.safetensors`), dict of arrays, or torch `Module`, with the key names of mmpretrain's
            `ImageClassifier` (`backbone. ...`, `head.fc. ...`).
        image_shape: `(height, width, 3)`; None for what a position embedding's `grid` says, else (256, 256, 3). A
            position embedding is resized to it.
        num_heads: Attention heads (of the dual-scale model: after the merge), which the weights do not tell; None for
            a head width of 64 (96 where the FFN is 2304 wide, mmpretrain's "small"), or that of all tokens if less.
        drop_path_rate: Stochastic depth of the last block, which the weights do not tell.
        grid: `(rows, columns)` of the checkpoint's position embedding; None for that of `image_shape` or a square,
            whichever its number of positions makes.
        num_classes: Number of classes of a fresh head without class names; None for the checkpoint's head.
        key: Which state dict to take where the checkpoint has several, such as "ema_state_dict".

    Returns:
        A `CI2PViT`, `CI2PViTDualScale` or `ViT`.

    Raises:
        CheckpointError: Unreadable file; a key that is missing, left over or misshapen; positions that make no such
            grid, or several; several state dicts; no head and no `num_classes`; a model of images that were
            normalised otherwise.
        ValueError: Sizes that make no model.

    Examples:
        >>> model = keras_ci2p.ViT(
        ...     (64, 64, 3), num_classes=3, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
        ... )
        >>> state = keras_ci2p.convert.to_mmpretrain(model)
        >>> keras_ci2p.convert.from_mmpretrain(state, num_heads=2).image_shape
        (64, 64, 3)
    """
    state = read_state_dict(checkpoint, LAYOUT, key)
    _check_normalisation(state)
    class_names = None
    if num_classes is None:
        if _HEAD[0] not in state:
            raise CheckpointError(f"The checkpoint has no head ({_HEAD[0]}): give `num_classes` for a new one.")
        num_classes = _shape(state, _HEAD[0], 2)[0]
        # A head that was replaced may have left the names of other classes.
        class_names = state.class_names if len(state.class_names or ()) == num_classes else None
    else:
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    common = {"num_classes": num_classes, "class_names": class_names, "drop_path_rate": drop_path_rate}
    if any(key.startswith(_BLOCKS) for key in state):
        make = _dual_scale
    elif any(key.startswith(_EMBEDDING) for key in state):
        make = _ci2p
    else:
        make = _vit
    model, state = make(add_qkv_biases(state), image_shape, grid, num_heads, common)
    has_head = any(name.startswith("head.") for name in state)
    entries = [entry for entry in mmpretrain_entries(model) if has_head or entry.key not in _HEAD]
    load_state_dict(entries, state, constants=unused_reason)
    return model


def unused_reason(key):
    """Why a key is left over in a conversion, None where it should not be."""
    return next((reason for pattern, reason in _LEFT_OUT.items() if re.match(pattern, key)), None)


def _check_normalisation(state):
    for name, own in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        found = state.get(f"{_PREPROCESSOR}{name}")
        if found is not None and not (found.size == 3 and np.allclose(found.reshape(-1), own, atol=0.01)):
            raise CheckpointError(
                f"The checkpoint's model takes images normalised with {name} {found.reshape(-1).tolist()}, those of "
                f"this package with {list(own)}: it would not see what it was trained on."
            )


def to_mmpretrain(model: ImageClassifier) -> dict[str, np.ndarray]:
    """A state dict with the key names of the paper's code, the inverse of `from_mmpretrain`.

    Args:
        model: A `CI2PViT`, `CI2PViTDualScale` or `ViT`.

    Returns:
        dict of str to numpy array: the weights, and the constants that the paper's code asks for.

    Examples:
        >>> model = keras_ci2p.ViT(
        ...     (64, 64, 3), num_classes=3, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
        ... )
        >>> state = keras_ci2p.convert.to_mmpretrain(model)
        >>> state["head.fc.weight"].shape
        (3, 32)
    """
    state = {entry.key: entry.array() for entry in mmpretrain_entries(model)}
    for key in [key for key in state if key.endswith((".running_mean", ".beta"))]:
        at, leaf = key.rsplit(".", 1)
        state |= {f"{at}.num_batches_tracked": np.array(0)} if leaf == "running_mean" else gdn_constants(at)
    return state


def mmpretrain_entries(model):
    """The `WeightMapping` list of one of the paper's models: which checkpoint entry is which variable."""
    if isinstance(model, CI2PViTDualScale):
        return [*_ci2p_entries(model), *_dual_scale_entries(model)]
    if isinstance(model, CI2PViT):
        return [*_ci2p_entries(model), *_transformer_entries(model, _TRANSFORMER)]
    return [
        *convolution("backbone.patch_embed.projection", model.get_layer("patch_embedding")),
        WeightMapping("backbone.pos_embed", model.get_layer("position_embedding").embedding),
        *_transformer_entries(model, "backbone."),
    ]


def _ci2p(state, image_shape, grid, num_heads, common):
    sizes = _transformer_sizes(state, _TRANSFORMER, num_heads)
    return CI2PViT(image_shape or (256, 256, 3), compressor=_compressor_sizes(state), **sizes, **common), state


def _vit(state, image_shape, grid, num_heads, common):
    sizes = _transformer_sizes(state, "backbone.", num_heads)
    patch_size = _shape(state, "backbone.patch_embed.projection.weight", 4)[-1]
    positions = "backbone.pos_embed"
    image_shape = image_shape or _image_shape(state, positions, patch_size, grid)
    model = ViT(image_shape, patch_size=patch_size, **sizes, **common)
    return model, _resize_positions(state, positions, model, grid)


def _dual_scale(state, image_shape, grid, num_heads, common):
    merges = {int(match[1]) for match in map(_MERGE.match, state) if match}
    if len(merges) != 1:
        raise CheckpointError(f"{_BLOCKS}N.0.convReshape, the merge, must be in one block. Found in: {sorted(merges)}")
    [merge_at] = merges
    positions = f"{_TRANSFORMER}pos_embed"
    early_dim = _shape(state, positions, 3)[-1]
    mlp_dim, hidden_dim = _shape(state, f"{_BLOCKS}{merge_at}.1.leff.up_proj.0.weight", 2)
    model = CI2PViTDualScale(
        image_shape or _image_shape(state, positions, DOWNSAMPLING, grid),
        hidden_dim=hidden_dim,
        num_layers=_num_blocks(state, _BLOCKS),
        num_heads=num_heads or hidden_dim // _head_dim(min(early_dim, hidden_dim), hidden_dim, mlp_dim),
        mlp_dim=mlp_dim,
        early_dim=early_dim,
        merge_at=merge_at,
        compressor=_compressor_sizes(state),
        **common,
    )
    return model, _resize_positions(state, positions, model, grid)


def _image_shape(state, positions, patch_size, grid):
    _, (rows, columns) = find_grid(positions, _shape(state, positions, 3)[1], None, grid)
    return rows * patch_size, columns * patch_size, 3


def _resize_positions(state, positions, model, grid):
    """The state dict with the position embedding resized for the model."""
    own_grid = model.get_layer("position_embedding").grid
    _, grid = find_grid(positions, _shape(state, positions, 3)[1], own_grid, grid)
    return {**state, positions: resize_position_embedding(state[positions], grid, own_grid)}


def _compressor_sizes(state):
    prefix = _EMBEDDING + "compressai."
    has_gdn = f"{prefix}1.beta" in state
    return {
        "architecture": "bmshj2018-factorized" if has_gdn else "bmshj2018-factorized-relu",
        "num_filters": _shape(state, f"{prefix}0.weight", 4)[0],
        "latent_channels": _shape(state, f"{prefix}6.weight", 4)[0],
    }


def _transformer_sizes(state, prefix, num_heads):
    mlp_dim, hidden_dim = _shape(state, f"{prefix}layers.0.ffn.layers.0.0.weight", 2)
    return {
        "hidden_dim": hidden_dim,
        "num_layers": _num_blocks(state, f"{prefix}layers."),
        "num_heads": num_heads or hidden_dim // _head_dim(hidden_dim, hidden_dim, mlp_dim),
        "mlp_dim": mlp_dim,
    }


def _num_blocks(state, prefix):
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, state) if match), default=0)


def _head_dim(narrowest, hidden_dim, mlp_dim):
    """The paper's head width, or the width of the narrowest blocks if that is less."""
    return max(1, min(narrowest, 96 if (hidden_dim, mlp_dim) == (768, 2304) else 64))


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


def _dual_scale_entries(model):
    backbone = model.backbone
    entries = [WeightMapping(f"{_TRANSFORMER}pos_embed", model.get_layer("position_embedding").embedding)]
    for i in range(backbone.num_layers):
        at = f"{_BLOCKS}{i}"
        if i == backbone.merge_at:
            entries += _inverted_residual_entries(f"{at}.0.convReshape.1", model.get_layer("merge").reduce)
            at = f"{at}.1"
        entries += _leff_block_entries(at, model.get_layer(f"block_{i}"))
    return [*entries, *layer_norm(f"{_TRANSFORMER}norm", model.get_layer("norm")), *dense("head.fc", model.head)]


def _leff_block_entries(prefix, block):
    leff = block.leff
    return [
        *layer_norm(f"{prefix}.norm1", block.attention_norm),
        *dense(f"{prefix}.attn.qkv", block.qkv),
        *dense(f"{prefix}.attn.proj", block.attention_output),
        *layer_norm(f"{prefix}.norm2", block.mlp_norm),
        *dense(f"{prefix}.leff.up_proj.0", leff.expand),
        *batch_norm(f"{prefix}.leff.up_proj.2", leff.expand_norm),
        *convolution(f"{prefix}.leff.depth_conv.0", leff.depthwise, "depthwise"),
        *batch_norm(f"{prefix}.leff.depth_conv.1", leff.depthwise_norm),
        *dense(f"{prefix}.leff.down_proj.0", leff.project),
        *batch_norm(f"{prefix}.leff.down_proj.2", leff.project_norm),
    ]
