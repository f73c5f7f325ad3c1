"""Which checkpoint entry becomes which Keras variable, and how the axes go."""

from typing import NamedTuple

import keras
import numpy as np

from keras_ci2p.convert.checkpoints import CheckpointError

# PyTorch axes to Keras axes; each is undone by `_FROM_KERAS`.
_TO_KERAS = {
    "same": lambda w: w,
    "linear": lambda w: w.transpose(1, 0),
    "conv": lambda w: w.transpose(2, 3, 1, 0),
    "depthwise": lambda w: w.transpose(2, 3, 0, 1),
    "pointwise": lambda w: w.reshape(w.shape[:2]).transpose(1, 0),
}
_FROM_KERAS = {
    "same": lambda w: w,
    "linear": lambda w: w.transpose(1, 0),
    "conv": lambda w: w.transpose(3, 2, 0, 1),
    "depthwise": lambda w: w.transpose(2, 3, 0, 1),
    "pointwise": lambda w: w.transpose(1, 0)[:, :, None, None],
}


class Entry(NamedTuple):
    """The checkpoint entry `key` holds `variable`; `layout` says how the axes go."""

    key: str
    variable: object
    layout: str = "same"

    def array(self):
        """The variable's value with PyTorch's axes, a numpy array."""
        return np.ascontiguousarray(_FROM_KERAS[self.layout](keras.ops.convert_to_numpy(self.variable)))

    @property
    def torch_shape(self):
        return _FROM_KERAS[self.layout](np.empty(self.variable.shape, "bool")).shape


def assign(entries, state, constants=lambda key: False):
    """Gives each entry's variable its array of `state`.

    Nothing is assigned unless everything fits.

    Args:
        entries: The `Entry` list of the model.
        state: dict of str to array.
        constants: Function that tells of a key whether it may be left over: it carries no weights.

    Raises:
        CheckpointError: A key that is missing, left over, or of another shape.
    """
    wanted = {entry.key: entry for entry in entries}
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise CheckpointError(f"The checkpoint lacks {_listed(missing)}.")
    extra = sorted(key for key in state.keys() - wanted.keys() if not constants(key))
    if extra:
        raise CheckpointError(f"The checkpoint has entries that this model does not use: {_listed(extra)}.")
    for key, entry in wanted.items():
        if tuple(state[key].shape) != tuple(entry.torch_shape):
            raise CheckpointError(
                f"{key} has shape {tuple(state[key].shape)}; this model needs {tuple(entry.torch_shape)}."
            )
        if state[key].dtype.kind != "f":
            raise CheckpointError(f"{key} is of type {state[key].dtype}; weights are floating point numbers.")
    for key, entry in wanted.items():
        entry.variable.assign(_TO_KERAS[entry.layout](np.asarray(state[key], "float32")))


def _listed(keys, most=5):
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def dense(prefix, layer):
    return [Entry(f"{prefix}.weight", layer.kernel, "linear"), Entry(f"{prefix}.bias", layer.bias)]


def convolution(prefix, layer, layout="conv"):
    bias = [Entry(f"{prefix}.bias", layer.bias)] if layer.use_bias else []
    return [Entry(f"{prefix}.weight", layer.kernel, layout), *bias]


def layer_norm(prefix, layer):
    return [Entry(f"{prefix}.weight", layer.gamma), Entry(f"{prefix}.bias", layer.beta)]


def batch_norm(prefix, layer):
    return [
        *layer_norm(prefix, layer),
        Entry(f"{prefix}.running_mean", layer.moving_mean),
        Entry(f"{prefix}.running_var", layer.moving_variance),
    ]


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
