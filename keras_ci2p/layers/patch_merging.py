"""The step from the finer to the coarser scale of CI2P-ViT-ds."""

import keras

from keras_ci2p.layers.inverted_residual import InvertedResidual
from keras_ci2p.layers.token_grid import check_tokens, to_grid, to_tokens


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PatchMerging(keras.layers.Layer):
    """One inverted residual block turns the tokens of a grid into a quarter as many, wider ones.

    It expands the tokens' C channels to 8C and has a 3x3 kernel of stride 2. No norm, no position embedding.

    Args:
        hidden_dim: Width of the merged tokens.
        grid: `(rows, columns)` of the input's tokens, which come row by row.

    Input shape: `(batch, rows * columns, channels)`, float.
    Output shape: `(batch, ceil(rows / 2) * ceil(columns / 2), hidden_dim)`.
    """

    def __init__(self, hidden_dim, grid, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.grid = tuple(grid)

    @property
    def merged_grid(self):
        """`(rows, columns)` of the output's tokens."""
        return tuple((size + 1) // 2 for size in self.grid)

    def build(self, input_shape):
        check_tokens(input_shape, self.grid, self.name)
        batch, _, channels = input_shape
        self.reduce = InvertedResidual(
            self.hidden_dim, 8 * channels, 3, strides=2, dtype=self.dtype_policy, name="reduce"
        )
        self.reduce.build((batch, *self.grid, channels))

    def call(self, tokens, training=None):
        return to_tokens(self.reduce(to_grid(tokens, self.grid), training=training))

    def compute_output_shape(self, input_shape):
        rows, columns = self.merged_grid
        return (input_shape[0], rows * columns, self.hidden_dim)

    def get_config(self):
        config = super().get_config()
        config.update(hidden_dim=self.hidden_dim, grid=self.grid)
        return config
