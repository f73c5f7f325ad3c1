"""Learned position embedding on a grid of tokens, and its resizing to another grid."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector to each token; initially normal(0.02).

    Args:
        grid: `(rows, columns)` of the tokens, which come row by row. Resize the weights for another grid with
            `resize_position_embedding`.

    Input shape: `(batch, rows * columns, hidden_dim)`, float. Output shape: the same.
    """

    def __init__(self, grid, **kwargs):
        super().__init__(**kwargs)
        self.grid = tuple(grid)

    def build(self, input_shape):
        tokens = self.grid[0] * self.grid[1]
        if input_shape[1] not in (None, tokens):
            raise ValueError(
                f"{self.name} was made for a grid of {self.grid} tokens. Received: input_shape={tuple(input_shape)}"
            )
        self.embedding = self.add_weight(
            shape=(1, tokens, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="embedding",
        )

    def call(self, tokens):
        return tokens + ops.cast(self.embedding, tokens.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.update(grid=self.grid)
        return config


def resize_position_embedding(embedding, grid, new_grid):
    """A position embedding for another grid, bicubically as PyTorch's `interpolate` does it.

    Two small matrices (a = -0.75, align_corners false, no antialias, edges repeated), since the bicubic resizing of
    Keras's backends differs by up to 0.24.

    Args:
        embedding: Array `(1, rows * columns, hidden_dim)`.
        grid: Its `(rows, columns)`.
        new_grid: The `(rows, columns)` wanted.

    Returns:
        float32 array `(1, new rows * new columns, hidden_dim)`; the values of `embedding` where the grids are equal.
    """
    if tuple(grid) == tuple(new_grid):
        return np.asarray(embedding, "float32")
    rows, columns = (cubic_resize_matrix(old, new) for old, new in zip(grid, new_grid, strict=True))
    table = np.asarray(embedding, "float64").reshape(*grid, -1)
    resized = np.einsum("ri,sj,ijd->rsd", rows, columns, table)
    return resized.reshape(1, -1, table.shape[-1]).astype("float32")


def cubic_resize_matrix(size, new_size, a=-0.75):
    """float64 `(new_size, size)`: cubic convolution with PyTorch's `a`, pixel centres aligned, edges repeated."""
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((new_size, size))
    for tap in range(-1, 3):
        t = np.abs(centres - (first + tap))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        source = np.clip(first + tap, 0, size - 1)
        np.add.at(matrix, (np.arange(new_size), source), np.where(t <= 1, near, far))
    return matrix
