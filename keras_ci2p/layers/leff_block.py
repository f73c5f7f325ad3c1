"""Transformer block of CI2P-ViT-ds: self-attention and a locally-enhanced feed-forward network."""

import keras

from keras_ci2p.layers.leff import LeFF
from keras_ci2p.layers.transformer_block import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_ci2p")
class LeFFBlock(TransformerBlock):
    """`x + DropPath(attention(norm(x)))`, then `x + DropPath(leff(norm(x)))`.

    The attention is `TransformerBlock`'s, `LeFF` takes the place of its MLP.

    Args:
        num_heads: Attention heads; must divide the input's width.
        mlp_dim: Channels of LeFF's hidden layer.
        grid: `(rows, columns)` of the tokens, which come row by row.
        drop_path_rate: Stochastic depth rate of both branches, in [0, 1).
        seed: Seed of the stochastic depth, an integer or None.

    Input shape: `(batch, rows * columns, hidden_dim)`, float. Output shape: the same.
    """

    def __init__(self, num_heads, mlp_dim, grid, drop_path_rate=0.0, seed=None, **kwargs):
        super().__init__(num_heads, mlp_dim, drop_path_rate=drop_path_rate, seed=seed, **kwargs)
        self.grid = tuple(grid)

    def _build_mlp(self, input_shape):
        self.leff = LeFF(self.mlp_dim, self.grid, dtype=self.dtype_policy, name="leff")
        self.leff.build(input_shape)

    def _mlp(self, x, training):
        return self.leff(x, training=training)

    def get_config(self):
        config = super().get_config()
        config.update(grid=self.grid)
        return config
