"""Tokens as a grid and back. They come row by row."""

from keras import ops


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
