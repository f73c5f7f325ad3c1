"""Locally-enhanced feed-forward network of CeiT (arXiv 2103.11816), as the paper's code has it."""

import keras

from keras_ci2p.layers.batch_norm import BatchNormalization
from keras_ci2p.layers.inverted_residual import BATCH_NORM
from keras_ci2p.layers.pointwise import Dense
from keras_ci2p.layers.symmetric_conv import SymmetricDepthwiseConv2D
from keras_ci2p.layers.token_grid import check_tokens, to_grid, to_tokens


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
    """

    def __init__(self, mlp_dim, grid, **kwargs):
        super().__init__(**kwargs)
        self.mlp_dim = mlp_dim
        self.grid = tuple(grid)

    def build(self, input_shape):
        check_tokens(input_shape, self.grid, self.name)
        dtype = self.dtype_policy
        batch, tokens, hidden_dim = input_shape

        def dense(units, name):
            normal = keras.initializers.RandomNormal(stddev=0.02)
            return Dense(units, kernel_initializer=normal, dtype=dtype, name=name)

        def norm(name):
            return BatchNormalization(**BATCH_NORM, dtype=dtype, name=name)

        self.expand = dense(self.mlp_dim, "expand")
        self.expand_norm = norm("expand_norm")
        self.depthwise = SymmetricDepthwiseConv2D(
            3,
            use_bias=False,
            # PyTorch: uniform up to 1 / sqrt(fan_in), of 3 * 3 inputs.
            depthwise_initializer=keras.initializers.RandomUniform(-1 / 3, 1 / 3),
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

    def call(self, tokens, training=None):
        x = keras.activations.gelu(self.expand_norm(self.expand(tokens), training=training), approximate=False)
        x = self.depthwise(to_grid(x, self.grid))
        x = keras.activations.gelu(self.depthwise_norm(x, training=training), approximate=False)
        x = self.project(to_tokens(x))
        return keras.activations.gelu(self.project_norm(x, training=training), approximate=False)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(mlp_dim=self.mlp_dim, grid=self.grid)
        return config
