"""Transformer blocks: attention, MLP, LeFF, stochastic depth, patch merging."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p import backend
from keras_ci2p.layers.core import (
    BatchNormalization,
    Dense,
    LayerNormalization,
    RandomNormal,
    RandomUniform,
    SeedGenerator,
    SymmetricDepthwiseConv2D,
    VarianceScaling,
    freeze_parts,
)
from keras_ci2p.layers.embedding import BATCH_NORM, InvertedResidual
from keras_ci2p.utils import Shape, Tensor


def check_tokens(input_shape, grid, receiver):
    """Raises ValueError unless `input_shape`, `(batch, tokens, channels)`, has as many tokens as `grid`."""
    if len(input_shape) != 3 or input_shape[1] not in (None, grid[0] * grid[1]):
        raise ValueError(
            f"{receiver} takes tokens of shape (batch, tokens, channels), made for a grid of {tuple(grid)}. "
            f"Received: input_shape={tuple(input_shape)}"
        )


def to_grid(tokens, grid):
    """`(batch, rows * columns, channels)` to `(batch, rows, columns, channels)`."""
    return ops.reshape(tokens, (ops.shape(tokens)[0], *grid, tokens.shape[-1]))


def to_tokens(x):
    """`(batch, rows, columns, channels)` to `(batch, rows * columns, channels)`."""
    _, rows, columns, channels = x.shape
    return ops.reshape(x, (ops.shape(x)[0], rows * columns, channels))


@keras.saving.register_keras_serializable(package="keras_ci2p")
class DropPath(keras.layers.Layer):
    """Drops the whole branch of a sample with probability `rate`, while training.

    What is kept is scaled by `1 / (1 - rate)`, so the expected value stays the same (timm's `DropPath`).

    Args:
        rate: Probability of dropping, in [0, 1).
        seed: Seed of the random draws, an integer or None.

    Input shape: `(batch, ...)`, float. Output shape: the same.

    Examples:
        >>> layer = keras_ci2p.layers.DropPath(0.5, seed=0)
        >>> kept = layer(np.ones((8, 4), "float32"), training=True)
        >>> set(keras.ops.convert_to_numpy(kept).ravel().tolist()) <= {0.0, 2.0}
        True
    """

    def __init__(self, rate: float = 0.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1). Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = SeedGenerator(seed) if rate > 0 else None
        self.built = True

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        keep = 1 - self.rate
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        # float32: 16-bit uniform numbers are too coarse for small rates.
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) < keep
        # One pass over the inputs, where selecting takes three.
        return inputs * ops.cast(ops.cast(kept, "float32") / keep, inputs.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(rate=self.rate, seed=self.seed)
        return config


def attention_scores(query, key):
    """Computes the weights of attention, which the backend's kernel keeps to itself.

    Args:
        query, key: `(batch, tokens, heads, head_dim)`.

    Returns:
        float32 `(batch, heads, tokens, tokens)`, queries along the third axis; each row sums to 1.
    """
    products = ops.einsum("bqhd,bkhd->bhqk", ops.cast(query, "float32"), ops.cast(key, "float32"))
    return ops.softmax(products / query.shape[-1] ** 0.5, axis=-1)


def attention_rollout(maps: np.ndarray) -> np.ndarray:
    """Attention of a whole model to its input tokens (Abnar and Zuidema 2020, arXiv 2005.00928).

    Heads are averaged; half of each layer is its input, by the skip connection; the layers are multiplied.

    Args:
        maps: Array `(batch, layers, heads, tokens, tokens)`, as `attention_maps` of a classifier gives it.

    Returns:
        Array `(batch, tokens, tokens)`: what each output token, along the second axis, has of each input token. Rows
        sum to 1.

    Examples:
        >>> maps = np.full((1, 2, 3, 4, 4), 0.25)
        >>> keras_ci2p.layers.attention_rollout(maps)[0].sum(axis=-1).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    layers = (np.mean(maps, axis=2) + np.eye(maps.shape[-1], dtype=maps.dtype)) / 2
    rollout = layers[:, 0]
    for i in range(1, layers.shape[1]):
        rollout = layers[:, i] @ rollout
    return rollout


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

    Examples:
        >>> block = keras_ci2p.layers.TransformerBlock(num_heads=2, mlp_dim=64)
        >>> block(np.ones((1, 6, 32), "float32")).shape
        (1, 6, 32)
    """

    def __init__(
        self, num_heads: int, mlp_dim: int, drop_path_rate: float = 0.0, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.drop_path_rate = drop_path_rate
        self.seed = seed

    def build(self, input_shape: Shape) -> None:
        hidden_dim = input_shape[-1]
        if hidden_dim % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of the tokens. Received: num_heads={self.num_heads}, "
                f"input_shape={input_shape}"
            )
        dtype = self.dtype_policy
        normal = RandomNormal(stddev=0.02)

        def norm(name):
            return LayerNormalization(epsilon=LAYER_NORM_EPSILON, dtype=dtype, name=name)

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
        freeze_parts(self)

    def _build_mlp(self, input_shape):
        def dense(units, name, activation=None):
            return Dense(
                units,
                activation=activation,
                kernel_initializer=VarianceScaling(1.0, "fan_avg", "uniform"),
                bias_initializer=RandomNormal(stddev=1e-6),
                dtype=self.dtype_policy,
                name=name,
            )

        self.mlp_hidden = dense(self.mlp_dim, "mlp_hidden", activation="gelu")
        self.mlp_output = dense(input_shape[-1], "mlp_output")
        self.mlp_hidden.build(input_shape)
        self.mlp_output.build((*input_shape[:-1], self.mlp_dim))

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        x = inputs + self.drop_path(self._attention(self.attention_norm(inputs)), training=training)
        return x + self.drop_path(self._mlp(self.mlp_norm(x), training), training=training)

    def _mlp(self, x, training):
        return self.mlp_output(self.mlp_hidden(x))

    def attention_scores(self, inputs: Tensor) -> Tensor:
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
        attended = backend.attention(*self._query_key_value(x))
        batch, tokens, _, _ = ops.shape(attended)
        return self.attention_output(ops.reshape(attended, (batch, tokens, x.shape[-1])))

    def _query_key_value(self, x):
        """Each `(batch, tokens, heads, head_dim)`."""
        _, tokens, hidden_dim = x.shape
        tokens = -1 if tokens is None else tokens
        qkv = ops.reshape(self.qkv(x), (ops.shape(x)[0], tokens, 3, self.num_heads, hidden_dim // self.num_heads))
        # Slices would have their gradients padded with zeros and added.
        return ops.unstack(qkv, 3, axis=2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        names = ("num_heads", "mlp_dim", "drop_path_rate", "seed")
        config.update({name: getattr(self, name) for name in names})
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class LeFF(keras.layers.Layer):
    """An MLP whose hidden layer sees its neighbours: dense, 3x3 depthwise convolution over the grid, dense.

    Each of the three is followed by batch normalisation and an exact GELU. The last GELU makes this unlike CeiT: the
    output is nowhere below -0.17. All tokens take part, there is no class token.

    As in `InvertedResidual`, the running statistics keep the biased batch variance. Initial weights as the paper's code
    leaves them: dense normal(0.02) with zero biases, depthwise as PyTorch's default.

    Args:
        mlp_dim: Channels of the hidden layer.
        grid: `(rows, columns)` of the tokens, which come row by row.

    Input shape: `(batch, rows * columns, hidden_dim)`, float. Output shape: the same.

    Examples:
        >>> keras_ci2p.layers.LeFF(mlp_dim=64, grid=(2, 3))(np.ones((1, 6, 32), "float32")).shape
        (1, 6, 32)
    """

    def __init__(self, mlp_dim: int, grid: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim
        self.grid: Shape = tuple(grid)

    def build(self, input_shape: Shape) -> None:
        check_tokens(input_shape, self.grid, self.name)
        dtype = self.dtype_policy
        batch, tokens, hidden_dim = input_shape

        def dense(units, name):
            normal = RandomNormal(stddev=0.02)
            return Dense(units, kernel_initializer=normal, dtype=dtype, name=name)

        def norm(name):
            return BatchNormalization(**BATCH_NORM, dtype=dtype, name=name)

        self.expand = dense(self.mlp_dim, "expand")
        self.expand_norm = norm("expand_norm")
        self.depthwise = SymmetricDepthwiseConv2D(
            3,
            use_bias=False,
            # PyTorch: uniform up to 1 / sqrt(fan_in), of 3 * 3 inputs.
            depthwise_initializer=RandomUniform(-1 / 3, 1 / 3),
            dtype=dtype,
            name="depthwise",
        )
        self.depthwise_norm = norm("depthwise_norm")
        self.project = dense(hidden_dim, "project")
        self.project_norm = norm("project_norm")

        hidden, hidden_grid = (batch, tokens, self.mlp_dim), (batch, *self.grid, self.mlp_dim)
        self.expand.build(input_shape)
        self.expand_norm.build(hidden)
        self.depthwise.build(hidden_grid)
        self.depthwise_norm.build(hidden_grid)
        self.project.build(hidden)
        self.project_norm.build(input_shape)
        freeze_parts(self)

    def call(self, tokens: Tensor, training: bool | None = None) -> Tensor:
        x = keras.activations.gelu(self.expand_norm(self.expand(tokens), training=training), approximate=False)
        x = self.depthwise(to_grid(x, self.grid))
        x = keras.activations.gelu(self.depthwise_norm(x, training=training), approximate=False)
        x = self.project(to_tokens(x))
        return keras.activations.gelu(self.project_norm(x, training=training), approximate=False)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(mlp_dim=self.mlp_dim, grid=self.grid)
        return config


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

    Examples:
        >>> block = keras_ci2p.layers.LeFFBlock(num_heads=2, mlp_dim=64, grid=(2, 3))
        >>> block(np.ones((1, 6, 32), "float32")).shape
        (1, 6, 32)
    """

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        grid: tuple[int, int],
        drop_path_rate: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, mlp_dim, drop_path_rate=drop_path_rate, seed=seed, **kwargs)
        self.grid: Shape = tuple(grid)

    def _build_mlp(self, input_shape):
        self.leff = LeFF(self.mlp_dim, self.grid, dtype=self.dtype_policy, name="leff")
        self.leff.build(input_shape)

    def _mlp(self, x, training):
        return self.leff(x, training=training)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(grid=self.grid)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PatchMerging(keras.layers.Layer):
    """One inverted residual block turns the tokens of a grid into a quarter as many, wider ones.

    It expands the tokens' C channels to 8C and has a 3x3 kernel of stride 2. No norm, no position embedding.

    Args:
        hidden_dim: Width of the merged tokens.
        grid: `(rows, columns)` of the input's tokens, which come row by row.

    Input shape: `(batch, rows * columns, channels)`, float.
    Output shape: `(batch, ceil(rows / 2) * ceil(columns / 2), hidden_dim)`.

    Examples:
        >>> merge = keras_ci2p.layers.PatchMerging(hidden_dim=64, grid=(4, 6))
        >>> merge(np.ones((1, 24, 16), "float32")).shape, merge.merged_grid
        ((1, 6, 64), (2, 3))
    """

    def __init__(self, hidden_dim: int, grid: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.grid: Shape = tuple(grid)

    @property
    def merged_grid(self) -> tuple[int, int]:
        """`(rows, columns)` of the output's tokens."""
        rows, columns = self.grid
        return (rows + 1) // 2, (columns + 1) // 2

    def build(self, input_shape: Shape) -> None:
        check_tokens(input_shape, self.grid, self.name)
        batch, _, channels = input_shape
        self.reduce = InvertedResidual(
            self.hidden_dim, 8 * channels, 3, strides=2, dtype=self.dtype_policy, name="reduce"
        )
        self.reduce.build((batch, *self.grid, channels))
        freeze_parts(self)

    def call(self, tokens: Tensor, training: bool | None = None) -> Tensor:
        return to_tokens(self.reduce(to_grid(tokens, self.grid), training=training))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        rows, columns = self.merged_grid
        return (input_shape[0], rows * columns, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(hidden_dim=self.hidden_dim, grid=self.grid)
        return config
