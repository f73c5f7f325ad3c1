"""The transformer encoder that both models share."""

import keras
import numpy as np

from keras_ci2p.layers.transformer_block import LAYER_NORM_EPSILON, TransformerBlock


def transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, dtype):
    """`num_layers` transformer blocks and a closing norm over `tokens`, a symbolic `(batch, tokens, hidden_dim)`.

    The stochastic depth rate rises linearly from 0 in the first block to `drop_path_rate` in the last.
    Layer names: `block_0`, `block_1`, ..., `norm`.
    """
    for i, rate in enumerate(np.linspace(0, drop_path_rate, num_layers)):
        tokens = TransformerBlock(num_heads, mlp_dim, drop_path_rate=float(rate), dtype=dtype, name=f"block_{i}")(
            tokens
        )
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name="norm")(tokens)
