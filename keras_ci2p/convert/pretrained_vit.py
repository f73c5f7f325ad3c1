"""The transformer of a pretrained Vision Transformer, put into one of this package's models."""

import math
import re
from typing import Any

import keras
import numpy as np

from keras_ci2p.convert.state_dict import (
    CheckpointError,
    WeightMapping,
    convolution,
    dense,
    layer_norm,
    load_state_dict,
    read_state_dict,
)
from keras_ci2p.layers.embedding import resize_position_embedding
from keras_ci2p.models.ci2p_vit import CI2PViT, ViT
from keras_ci2p.models.image_classifier import ImageClassifier

# Each layout by a key that it has.
_LAYOUTS = {
    "timm": r"blocks\.0\.attn\.qkv\.weight",
    "Hugging Face": r"encoder\.layer\.0\.layernorm_before\.weight",
    "mmpretrain": r"layers\.0\.ffn\.layers\.0\.0\.weight",
}
_TIMM = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
# What stands before the patches, each `(1, tokens, dim)`.
_TOKENS = ("cls_token", "dist_token", "reg_token")
# Other libraries' names in timm's words.
_HUGGING_FACE = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_MMPRETRAIN = {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"}


def from_vit(
    checkpoint: Any, model: ImageClassifier, grid: tuple[int, int] | None = None, key: str | None = None
) -> dict[str, Any]:
    """Puts the transformer of a pretrained ViT into `model`, which must be as wide and deep.

    All transformer blocks and the closing norm are taken over; patch embedding and position embedding where the model
    has them (the latter resized); the rest is reported. The checkpoint may expect other normalisation of images.

    Args:
        checkpoint: Path, dict of arrays, or torch `Module`, in the layout of timm, Hugging Face or mmpretrain, within
            and behind whatever keys (`docs/convert.md`); or a KerasHub `ViTBackbone` or `ViTImageClassifier`.
        model: A `CI2PViT` or `ViT`; changed in place, and only if everything fits.
        grid: `(rows, columns)` of the checkpoint's position embedding; None for the model's own or a square, whichever
            its number of positions makes. Positions of `cls_token`, `dist_token` and `reg_token` stand before it.
        key: Which state dict to take where the checkpoint has several, such as "model_ema".

    Returns:
        dict: `used`, the list of the entries taken over (in timm's names), and `ignored`, a dict of the others of the
        same state dict with the reason.

    Raises:
        CheckpointError: Unknown layout; another width, depth or kind of block; positions that make no such grid, or
            several; several state dicts.
        ValueError: A model whose blocks are not those of a ViT.

    Examples:
        >>> sizes = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 64}
        >>> pretrained = keras_ci2p.convert.to_mmpretrain(keras_ci2p.ViT((64, 64, 3), **sizes))
        >>> model = keras_ci2p.CI2PViT((64, 64, 3), **sizes)
        >>> report = keras_ci2p.convert.from_vit(pretrained, model)
        >>> report["ignored"]["pos_embed"]
        'the model has no position embedding'
    """
    if not isinstance(model, (CI2PViT, ViT)):
        raise ValueError(
            f"`model` must be a CI2PViT or ViT, whose blocks are those of a ViT. Received: model={model!r}"
        )
    ignored = {}
    if isinstance(checkpoint, keras.Model):
        found, grid = _keras_hub(checkpoint)
    else:
        found, beside = _to_timm(read_state_dict(checkpoint, _LAYOUTS, key))
        ignored = {name: _ignored(name, True) or "it stands beside the transformer" for name in beside}
    state = add_qkv_biases(found)
    wanted = transformer_entries(model, "blocks", _TIMM, "norm")
    is_vit = not isinstance(model, CI2PViT)
    if is_vit:
        wanted += _embedding_entries(model, state, ignored, grid)
    keys = {entry.key for entry in wanted}
    for key in sorted(state.keys() - keys - ignored.keys()):
        reason = _ignored(key, is_vit)
        if reason:
            ignored[key] = reason
    load_state_dict(wanted, state, constants=ignored.__contains__)
    return {"used": sorted(keys & found.keys()), "ignored": ignored}


def add_qkv_biases(state):
    """The state dict with biases of zero for queries, keys and values, if none of its blocks has such biases."""
    kernels = [name for name in state if name.endswith("attn.qkv.weight")]
    biases = {name.removesuffix("weight") + "bias": np.zeros(len(state[name]), "float32") for name in kernels}
    return state if biases.keys() & state.keys() else {**state, **biases}


def find_grid(key, positions, own_grid, grid=None, prefix=0):
    """Finds the grid of a stored position embedding, of which only the number of positions is known.

    Args:
        key: Its name, for messages.
        positions: Its number of positions.
        own_grid: `(rows, columns)` of the model; None where the grid is to be a square.
        grid: `(rows, columns)` of the embedding if known; None for the model's own or a square.
        prefix: Number of tokens before the patches; they have positions of their own or none.

    Returns:
        `(number of positions before the grid, (rows, columns))`.

    Raises:
        CheckpointError: No such grid, or several.
    """
    own_grid, grid = own_grid and tuple(own_grid), grid and tuple(grid)
    found = set()
    for before in {prefix, 0}:
        side = math.isqrt(max(positions - before, 0))
        for rows, columns in [grid] if grid else [*([own_grid] if own_grid else []), (side, side)]:
            if rows * columns == positions - before > 0:
                found.add((before, (rows, columns)))
    if len(found) == 1:
        return found.pop()
    candidates = [grid] if grid else ["square", *([own_grid] if own_grid else [])]
    wanted = " or ".join(one if one == "square" else f"{one[0]} x {one[1]}" for one in candidates)
    tokens = f" behind {prefix} positions of other tokens, or none" if prefix else ""
    if not found:
        raise CheckpointError(f"{key} has {positions} positions, which make no {wanted} grid{tokens}. Give its `grid`.")
    readings = " or ".join(f"{rows} x {columns} behind {before} others" for before, (rows, columns) in sorted(found))
    raise CheckpointError(f"{key} has {positions} positions, which may be {readings}: give its `grid`.")


def transformer_entries(model, blocks, names, norm):
    """Entries of a model's transformer blocks and closing norm.

    Args:
        model: A `CI2PViT` or `ViT`.
        blocks: Prefix of the numbered blocks.
        names: Of a block's first norm, qkv, attention output, second norm, MLP's hidden and output layer.
        norm: Name of the closing norm.
    """
    entries = []
    for i in range(model.backbone.num_layers):
        block = model.get_layer(f"block_{i}")
        norm1, qkv, attention_output, norm2, mlp_hidden, mlp_output = (f"{blocks}.{i}.{name}" for name in names)
        entries += layer_norm(norm1, block.attention_norm)
        entries += dense(qkv, block.qkv)
        entries += dense(attention_output, block.attention_output)
        entries += layer_norm(norm2, block.mlp_norm)
        entries += dense(mlp_hidden, block.mlp_hidden)
        entries += dense(mlp_output, block.mlp_output)
    return entries + layer_norm(norm, model.get_layer("norm"))


def _embedding_entries(model, state, ignored, grid):
    """Entries of a ViT's patch and position embedding; `state` gets the latter without class token and resized."""
    entries = []
    patch = state.get("patch_embed.proj.weight")
    embedding = model.get_layer("patch_embedding")
    if patch is not None and patch.shape[-1] == model.backbone.patch_size:
        entries += convolution("patch_embed.proj", embedding)
    else:
        for key in ("patch_embed.proj.weight", "patch_embed.proj.bias"):
            if key in state:
                ignored[key] = f"the model's patches are {model.backbone.patch_size} wide"
    if "pos_embed" in state:
        layer = model.get_layer("position_embedding")
        positions = state["pos_embed"]
        if positions.ndim != 3:
            raise CheckpointError(f"pos_embed has shape {positions.shape}; 3 axes were expected.")
        tokens = sum(np.atleast_2d(state[key]).shape[-2] for key in _TOKENS if key in state)
        before, grid = find_grid("pos_embed", positions.shape[1], layer.grid, grid, prefix=tokens)
        state["pos_embed"] = resize_position_embedding(positions[:, before:], grid, layer.grid)
        entries.append(WeightMapping("pos_embed", layer.embedding))
    return entries


def _ignored(key, is_vit):
    if key.startswith(("head.", "head_dist.", "pre_logits.")):
        return "the head belongs to the checkpoint's classes"
    if key.startswith(("mask_token", "decoder_")):
        return "it belongs to the pre-training by masked images"
    if key in _TOKENS:
        return "the model has no class token"
    if key.startswith("pooler."):
        return "the model averages its tokens"
    if not is_vit and key.startswith("patch_embed."):
        return "CI2P makes the tokens"
    if not is_vit and key == "pos_embed":
        return "the model has no position embedding"
    return None


def _to_timm(state):
    """The state dict in timm's names, and the names of what stood beside it."""
    if state.layout == "Hugging Face":
        beside = [_HUGGING_FACE_NAMES.get(name, name) for name in state.beside]
        return _hugging_face(state), beside
    if state.layout == "mmpretrain":
        return _mmpretrain(state), state.beside
    renamed = dict(state)
    if "norm.weight" not in state and "fc_norm.weight" in state:
        # timm's name of the closing norm where the tokens are averaged.
        for leaf in ("weight", "bias"):
            renamed[f"norm.{leaf}"] = renamed.pop(f"fc_norm.{leaf}")
    return renamed, state.beside


_HUGGING_FACE_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
}


def _hugging_face(state):
    renamed, parts = {}, {}
    for key, value in state.items():
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key):
            parts.setdefault((match[1], match[3]), {})[match[2]] = value
        elif match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", key):
            renamed[f"blocks.{match[1]}.{_HUGGING_FACE.get(match[2], match[2])}.{match[3]}"] = value
        else:
            renamed[_HUGGING_FACE_NAMES.get(key, key)] = value
    for (i, leaf), found in parts.items():
        if len(found) < 3:
            raise CheckpointError(f"Block {i} of the checkpoint lacks a {leaf} of its queries, keys or values.")
        renamed[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate([found[part] for part in ("query", "key", "value")])
    return renamed


def _mmpretrain(state):
    names = {
        "ln1.weight": "norm.weight",
        "ln1.bias": "norm.bias",
        "patch_embed.projection.weight": "patch_embed.proj.weight",
        "patch_embed.projection.bias": "patch_embed.proj.bias",
    }
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key):
            renamed[f"blocks.{match[1]}.{_MMPRETRAIN.get(match[2], match[2])}.{match[3]}"] = value
        else:
            renamed[names.get(key, key)] = value
    return renamed


def _keras_hub(model):
    """A KerasHub ViT's weights with PyTorch's axes and timm's names, and the grid of its patches."""
    backbone = getattr(model, "backbone", model)
    by_class = {type(layer).__name__: layer for layer in backbone.layers}
    if not {"ViTPatchingAndEmbedding", "ViTEncoder"} <= by_class.keys():
        raise CheckpointError(f"{type(model).__name__} is no Vision Transformer of KerasHub.")
    embedding, encoder = by_class["ViTPatchingAndEmbedding"], by_class["ViTEncoder"]
    state = {}

    def put(name, kernel, bias):
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel, bias

    to_numpy = keras.ops.convert_to_numpy
    for i, block in enumerate(encoder.encoder_layers):
        attention = block.mha
        for name, norm in (("norm1", block.layer_norm_1), ("norm2", block.layer_norm_2)):
            put(f"blocks.{i}.{name}", to_numpy(norm.gamma), to_numpy(norm.beta))
        kernels, biases = [], []
        for projection in (attention.query_dense, attention.key_dense, attention.value_dense):
            kernel = to_numpy(projection.kernel)
            kernels.append(kernel.reshape(kernel.shape[0], -1).T)
            no_bias = np.zeros(len(kernels[-1]), "float32")
            biases.append(no_bias if projection.bias is None else to_numpy(projection.bias).reshape(-1))
        put(f"blocks.{i}.attn.qkv", np.concatenate(kernels), np.concatenate(biases))
        kernel = to_numpy(attention.output_dense.kernel)
        put(f"blocks.{i}.attn.proj", kernel.reshape(-1, kernel.shape[-1]).T, to_numpy(attention.output_dense.bias))
        for name, layer in (("fc1", block.mlp.dense_1), ("fc2", block.mlp.dense_2)):
            put(f"blocks.{i}.mlp.{name}", to_numpy(layer.kernel).T, to_numpy(layer.bias))
    put("norm", to_numpy(encoder.layer_norm.gamma), to_numpy(encoder.layer_norm.beta))
    patch = embedding.patch_embedding
    put("patch_embed.proj", to_numpy(patch.kernel).transpose(3, 2, 0, 1), to_numpy(patch.bias))
    state["pos_embed"] = to_numpy(embedding.position_embedding.embeddings)[None]
    if getattr(embedding, "class_token", None) is not None:
        state["cls_token"] = to_numpy(embedding.class_token)
    sides = zip(backbone.image_shape, backbone.patch_size, strict=False)
    return state, tuple(side // patch for side, patch in sides)
