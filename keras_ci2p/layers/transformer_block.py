"""Pre-norm transformer block of the Vision Transformer (arXiv 2010.11929), as in mmpretrain."""

import keras
from keras import ops

from keras_ci2p.layers.attention import attention_scores, scaled_dot_product_attention
from keras_ci2p.layers.drop_path import DropPath
from keras_ci2p.layers.pointwise import Dense

LAYER_NORM_EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="keras_ci2p")
class TransformerBlock(keras.layers.Layer):
    """`x + DropPath(attention(norm(x)))`, then `x + DropPath(mlp(norm(x)))`.

    One `Dense` computes queries, keys and values (in that order, each split into heads); the GELU is exact.
    Initial weights as mmpretrain leaves them: attention normal(0.02) with zero biases, MLP Xavier uniform with biases
    normal(1e-6).

    Args:
        num_heads: Attention heads; must divide the input's width.
        mlp_dim: Width of the MLP's hidden layer.
        drop_path_rate: Stochastic depth rate of both branches, in [0, 1).
        seed: Seed of the stochastic depth, an integer or None.

    Input shape: `(batch, tokens, hidden_dim)`, float. Output shape: the same.
    """

    def __init__(self, num_heads, mlp_dim, drop_path_rate=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.drop_path_rate = drop_path_rate
        self.seed = seed

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        if hidden_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of the tokens. Received: num_heads={self.num_heads}, "
                f"input_shape={input_shape}"
            )
        dtype = self.dtype_policy
        normal = keras.initializers.RandomNormal(stddev=0.02)

        def norm(name):
            return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name=name)

        self.attention_norm = norm("attention_norm")
        self.qkv = Dense(3 * hidden_dim, kernel_initializer=normal, dtype=dtype, name="qkv")
        self.attention_output = Dense(
            hidden_dim, kernel_initializer=normal.clone(), dtype=dtype, name="attention_output"
        )
        self.mlp_norm = norm("mlp_norm")
        self.drop_path = DropPath(self.drop_path_rate, seed=self.seed, dtype=dtype, name="drop_path")

        for layer in (self.attention_norm, self.qkv, self.attention_output, self.mlp_norm):
            layer.build(input_shape)
        self._build_mlp(input_shape)

    def _build_mlp(self, input_shape):
        def dense(units, name, activation=None):
            return Dense(
                units,
                activation=activation,
                kernel_initializer="glorot_uniform",
                bias_initializer=keras.initializers.RandomNormal(stddev=1e-6),
                dtype=self.dtype_policy,
                name=name,
            )

        self.mlp_hidden = dense(self.mlp_dim, "mlp_hidden", activation="gelu")
        self.mlp_output = dense(input_shape[-1], "mlp_output")
        self.mlp_hidden.build(input_shape)
        self.mlp_output.build((*input_shape[:-1], self.mlp_dim))

    def call(self, inputs, training=None):
        x = inputs + self.drop_path(self._attention(self.attention_norm(inputs)), training=training)
        return x + self.drop_path(self._mlp(self.mlp_norm(x), training), training=training)

    def _mlp(self, x, training):
        return self.mlp_output(self.mlp_hidden(x))

    def attention_scores(self, inputs):
        """The softmax weights by which this block's tokens are mixed, as `MultiHeadAttention` calls them.

        Args:
            inputs: As in the call.

        Returns:
            float32 backend tensor `(batch, num_heads, tokens, tokens)`: what each token, along the third axis, takes
            from each. Rows sum to 1.
        """
        query, key, _ = self._query_key_value(self.attention_norm(inputs))
        return attention_scores(query, key)

    def _attention(self, x):
        attended = scaled_dot_product_attention(*self._query_key_value(x))
        batch, tokens, _, _ = ops.shape(attended)
        return self.attention_output(ops.reshape(attended, (batch, tokens, x.shape[-1])))

    def _query_key_value(self, x):
        """Each `(batch, tokens, heads, head_dim)`."""
        _, tokens, hidden_dim = x.shape
        tokens = -1 if tokens is None else tokens
        qkv = ops.reshape(self.qkv(x), (ops.shape(x)[0], tokens, 3, self.num_heads, hidden_dim // self.num_heads))
        # Slices would have their gradients padded with zeros and added.
        return ops.unstack(qkv, 3, axis=2)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            drop_path_rate=self.drop_path_rate,
            seed=self.seed,
        )
        return config
