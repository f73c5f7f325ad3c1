"""The transformer encoders: blocks of one width, and blocks of two widths with a merge of patches between them."""

import keras
import numpy as np

from keras_ci2p.layers.leff_block import LeFFBlock
from keras_ci2p.layers.patch_merging import PatchMerging
from keras_ci2p.layers.transformer_block import LAYER_NORM_EPSILON, TransformerBlock


def transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, dtype):
    """`num_layers` transformer blocks and a closing norm over `tokens`, a symbolic `(batch, tokens, hidden_dim)`.

    The stochastic depth rate rises linearly from 0 in the first block to `drop_path_rate` in the last.
    Layer names: `block_0`, `block_1`, ..., `norm`.
    """
    for i, rate in enumerate(_drop_path_rates(drop_path_rate, num_layers)):
        tokens = TransformerBlock(num_heads, mlp_dim, drop_path_rate=rate, dtype=dtype, name=f"block_{i}")(tokens)
    return _norm(dtype)(tokens)


def dual_scale_encoder(tokens, grid, hidden_dim, num_layers, num_heads, mlp_dim, merge_at, drop_path_rate, dtype):
    """`num_layers` LeFF blocks over `tokens`, a symbolic `(batch, rows * columns, early_dim)`, and a closing norm.

    Before block `merge_at` the tokens of the `grid` are merged into a quarter as many, `hidden_dim` wide. The blocks
    before it have the head width and the MLP ratio of those after it. Stochastic depth as in `transformer_encoder`; the
    merge is not dropped.
    Layer names: `block_0`, `block_1`, ..., in between `merge`, at the end `norm`.
    """
    for i, rate in enumerate(_drop_path_rates(drop_path_rate, num_layers)):
        if i == merge_at:
            merge = PatchMerging(hidden_dim, grid, dtype=dtype, name="merge")
            tokens, grid = merge(tokens), merge.merged_grid
        width = tokens.shape[-1]
        heads, hidden = width * num_heads // hidden_dim, width * mlp_dim // hidden_dim
        tokens = LeFFBlock(heads, hidden, grid, drop_path_rate=rate, dtype=dtype, name=f"block_{i}")(tokens)
    return _norm(dtype)(tokens)


def _drop_path_rates(last, num_layers):
    return np.linspace(0, last, num_layers).tolist()


def _norm(dtype):
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name="norm")
