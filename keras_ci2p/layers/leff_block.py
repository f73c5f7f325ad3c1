"""Transformer block of CI2P-ViT-ds: self-attention and a locally-enhanced feed-forward network."""

import keras

from keras_ci2p.layers.drop_path import DropPath
from keras_ci2p.layers.leff import LeFF
from keras_ci2p.layers.pointwise import Dense
from keras_ci2p.layers.transformer_block import LAYER_NORM_EPSILON, TransformerBlock


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

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        if hidden_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of the tokens. Received: num_heads={self.num_heads}, "
                f"input_shape={input_shape}"
            )
        dtype = self.dtype_policy

        def norm(name):
            return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name=name)

        def dense(units, name):
            normal = keras.initializers.RandomNormal(stddev=0.02)
            return Dense(units, kernel_initializer=normal, dtype=dtype, name=name)

        self.attention_norm = norm("attention_norm")
        self.qkv = dense(3 * hidden_dim, "qkv")
        self.attention_output = dense(hidden_dim, "attention_output")
        self.mlp_norm = norm("mlp_norm")
        self.leff = LeFF(self.mlp_dim, self.grid, dtype=dtype, name="leff")
        self.drop_path = DropPath(self.drop_path_rate, seed=self.seed, dtype=dtype, name="drop_path")
        for layer in (self.attention_norm, self.qkv, self.attention_output, self.mlp_norm, self.leff):
            layer.build(input_shape)

    def call(self, inputs, training=None):
        x = inputs + self.drop_path(self._attention(self.attention_norm(inputs)), training=training)
        leff = self.leff(self.mlp_norm(x), training=training)
        return x + self.drop_path(leff, training=training)

    def get_config(self):
        config = super().get_config()
        config.update(grid=self.grid)
        return config
