"""From an image to tokens: patch generators, the CI2P patch embedding, position embeddings."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.compression_transforms import AnalysisTransform, check_images
from keras_ci2p.layers.core import (
    BatchNormalization,
    PointwiseConv2D,
    RandomNormal,
    SymmetricDepthwiseConv2D,
    VarianceScaling,
    freeze_parts,
)
from keras_ci2p.utils import Shape, Tensor

# mmpretrain: BatchNorm2d(eps=1e-5, momentum=0.1); Keras counts the momentum from the other side.
BATCH_NORM = {"momentum": 0.9, "epsilon": 1e-5}


def squeeze_width(channels):
    """Width of the squeeze-excite bottleneck: a quarter, to the nearest multiple of 8, at most 10 % below a quarter.

    Source: mmpretrain `make_divisible(channels / 4, 8)`.
    """
    quarter = channels / 4
    width = max(8, int(quarter + 4) // 8 * 8)
    return width + 8 if width < 0.9 * quarter else width


def _kaiming(mode):
    return VarianceScaling(2.0, mode=mode, distribution="untruncated_normal")


@keras.saving.register_keras_serializable(package="keras_ci2p")
class InvertedResidual(keras.layers.Layer):
    """Expand, depthwise convolution, squeeze-excite, project (MobileNetV3 style).

    Pointwise expansion and depthwise convolution are followed by batch normalisation and hard-swish; the projection by
    batch normalisation alone. The input is added when the stride is 1 and the widths agree. The depthwise convolution
    pads `kernel_size // 2` on all sides.

    The batch normalisation keeps the biased batch variance in its running statistics, PyTorch the unbiased one: the
    increments differ by `n / (n - 1)` over the `n` pixels of a batch.

    Args:
        filters: Output channels.
        expanded_filters: Channels between expansion and projection.
        kernel_size: Odd size of the depthwise kernel.
        strides: Stride of the depthwise convolution.

    Input shape: `(batch, height, width, channels)`, float.
    Output shape: `(batch, ceil(height / strides), ceil(width / strides), filters)`.

    Examples:
        >>> block = keras_ci2p.layers.InvertedResidual(filters=16, expanded_filters=32, strides=2)
        >>> block(np.ones((1, 8, 8, 12), "float32")).shape
        (1, 4, 4, 16)
    """

    def __init__(
        self, filters: int, expanded_filters: int, kernel_size: int = 3, strides: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.expanded_filters = expanded_filters
        self.kernel_size = kernel_size
        self.strides = strides
        dtype = self.dtype_policy

        def pointwise(filters, name):
            return PointwiseConv2D(filters, kernel_initializer=_kaiming("fan_out"), dtype=dtype, name=name)

        def norm(name):
            return BatchNormalization(**BATCH_NORM, dtype=dtype, name=name)

        self.expand = pointwise(expanded_filters, "expand")
        self.expand_norm = norm("expand_norm")
        # PyTorch counts channels * k * k as fan_out of a depthwise kernel; Keras calls that fan_in.
        self.depthwise = SymmetricDepthwiseConv2D(
            kernel_size,
            strides=strides,
            use_bias=False,
            depthwise_initializer=_kaiming("fan_in"),
            dtype=dtype,
            name="depthwise",
        )
        self.depthwise_norm = norm("depthwise_norm")
        self.squeeze = keras.layers.Dense(
            squeeze_width(expanded_filters),
            activation="relu",
            kernel_initializer=_kaiming("fan_out"),
            dtype=dtype,
            name="squeeze",
        )
        self.excite = keras.layers.Dense(
            expanded_filters,
            activation="hard_sigmoid",
            kernel_initializer=_kaiming("fan_out"),
            dtype=dtype,
            name="excite",
        )
        self.project = pointwise(filters, "project")
        self.project_norm = norm("project_norm")

    def build(self, input_shape: Shape) -> None:
        expanded = (*input_shape[:-1], self.expanded_filters)
        self.expand.build(input_shape)
        self.expand_norm.build(expanded)
        self.depthwise.build(expanded)
        strided = self.depthwise.compute_output_shape(expanded)
        self.depthwise_norm.build(strided)
        self.squeeze.build((strided[0], self.expanded_filters))
        self.excite.build((strided[0], self.squeeze.units))
        self.project.build(strided)
        self.project_norm.build((*strided[:-1], self.filters))
        self.has_residual = self.strides == 1 and input_shape[-1] == self.filters
        freeze_parts(self)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        x = ops.hard_silu(self.expand_norm(self.expand(inputs), training=training))
        x = ops.hard_silu(self.depthwise_norm(self.depthwise(x), training=training))
        scale = self.excite(self.squeeze(ops.mean(x, axis=(1, 2))))
        x = x * scale[:, None, None, :]
        x = self.project_norm(self.project(x), training=training)
        return inputs + x if self.has_residual else x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*self.depthwise.compute_output_shape(input_shape)[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            filters=self.filters,
            expanded_filters=self.expanded_filters,
            kernel_size=self.kernel_size,
            strides=self.strides,
        )
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PatchGenerator(keras.layers.Layer):
    """Two inverted residual blocks turn latents into tokens, a quarter as many where `strides` is 2.

    The first keeps the M channels of the latent (expanded to 4M, 3x3, with residual), the second goes to `hidden_dim`:
    with strides 2 at half the size (expanded to 6M, 5x5), with strides 1 at the same (expanded to 4M, 3x3, with
    residual if `hidden_dim` is M). Positions become tokens row by row.

    Args:
        hidden_dim: Width of the tokens.
        strides: 2 or 1, of the second block.

    Input shape: `(batch, height, width, latent_channels)`, float.
    Output shape: `(batch, ceil(height / strides) * ceil(width / strides), hidden_dim)`.

    Raises:
        ValueError: Other strides.

    Examples:
        >>> generator = keras_ci2p.layers.PatchGenerator(hidden_dim=32)
        >>> generator(np.ones((1, 4, 6, 12), "float32")).shape
        (1, 6, 32)
    """

    def __init__(self, hidden_dim: int, strides: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if strides not in (1, 2):
            raise ValueError(f"`strides` must be 1 or 2. Received: strides={strides!r}")
        self.hidden_dim = hidden_dim
        self.strides = strides

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        expansion, kernel_size = (6, 5) if self.strides == 2 else (4, 3)
        dtype = self.dtype_policy
        self.refine = InvertedResidual(channels, 4 * channels, 3, dtype=dtype, name="refine")
        self.reduce = InvertedResidual(
            self.hidden_dim, expansion * channels, kernel_size, strides=self.strides, dtype=dtype, name="reduce"
        )
        self.refine.build(input_shape)
        self.reduce.build(input_shape)
        freeze_parts(self)

    def call(self, latents: Tensor, training: bool | None = None) -> Tensor:
        x = self.reduce(self.refine(latents, training=training), training=training)
        _, height, width, _ = x.shape
        tokens = -1 if height is None or width is None else height * width
        return ops.reshape(x, (ops.shape(x)[0], tokens, self.hidden_dim))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        height, width = (None if s is None else -(-s // self.strides) for s in input_shape[1:3])
        tokens = None if height is None or width is None else height * width
        return (input_shape[0], tokens, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(hidden_dim=self.hidden_dim, strides=self.strides)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class FinePatchGenerator(PatchGenerator):
    """`PatchGenerator(strides=1)` by its name in 0.1.0, which weight files of `CI2PViTDualScale` use for its group."""

    def __init__(self, hidden_dim, strides=1, **kwargs):
        super().__init__(hidden_dim, strides=strides, **kwargs)


# The compressor divides height and width by 16, the patch generator by 2.
PATCH_SIZE = 32


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PPatchEmbedding(keras.layers.Layer):
    """Compressor and patch generator: images to tokens, a quarter as many as 16x16 patches would give.

    Args:
        hidden_dim: Width of the tokens.
        compressor: An `AnalysisTransform`, its configuration as a dict, or None for the paper's (GDN, 128 and 192
            channels, randomly initialised). A built layer's weights are copied.
        freeze_compressor: Whether to keep the compressor from training; survives save and load.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 32.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Examples:
        >>> keras_ci2p.layers.CI2PPatchEmbedding(192)(np.zeros((1, 64, 96, 3), "float32")).shape
        (1, 6, 192)
    """

    def __init__(
        self,
        hidden_dim: int,
        compressor: AnalysisTransform | dict[str, Any] | None = None,
        freeze_compressor: bool = True,
        **kwargs: Any,
    ) -> None:
        # autocast=False: the compressor takes pixel values in full precision.
        super().__init__(autocast=False, **kwargs)
        self.hidden_dim = hidden_dim
        dtype = self.dtype_policy
        self.compressor = make_compressor(compressor, freeze_compressor, dtype)
        self.patch_generator = PatchGenerator(hidden_dim, dtype=dtype, name="patch_generator")

    def build(self, input_shape: Shape) -> None:
        check_images(input_shape, PATCH_SIZE, self.name)
        if not self.compressor.built:
            self.compressor.build(input_shape)
        self.patch_generator.build(self.compressor.compute_output_shape(input_shape))
        freeze_parts(self)

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        check_images(images.shape, PATCH_SIZE, self.name)
        return self.patch_generator(self.compressor(images), training=training)

    @property
    def freeze_compressor(self) -> bool:
        return self.compressor.frozen

    @freeze_compressor.setter
    def freeze_compressor(self, value: bool) -> None:
        self.compressor.frozen = value

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.patch_generator.compute_output_shape(self.compressor.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        config.update(
            hidden_dim=self.hidden_dim,
            compressor=compressor_config(self.compressor),
            freeze_compressor=self.freeze_compressor,
        )
        return config


def compressor_config(compressor):
    """What a model's configuration says of its compressor: a dict of plain values."""
    config = {key: getattr(compressor, key) for key in ("architecture", "num_filters", "latent_channels")}
    return {**config, "origin": compressor.source}


def make_compressor(compressor, frozen, dtype):
    """A new `AnalysisTransform` named "compressor", like `compressor` (layer, configuration or None).

    A built layer's weights are copied, so that one compressor can serve several models.
    """
    is_layer = isinstance(compressor, AnalysisTransform)
    if not is_layer and not isinstance(compressor, (dict, type(None))):
        raise ValueError(
            f"`compressor` must be an AnalysisTransform, its configuration or None. Received: compressor={compressor!r}"
        )
    config = compressor_config(compressor) if is_layer else compressor or {}
    copy = AnalysisTransform(**config, frozen=frozen, dtype=dtype, name="compressor")
    if is_layer and compressor.built:
        copy.build((None, None, None, 3))
        copy.copy_weights(compressor)
    return copy


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector to each token; initially normal(0.02).

    Args:
        grid: `(rows, columns)` of the tokens, which come row by row. Resize the weights for another grid with
            `resize_position_embedding`.

    Input shape: `(batch, rows * columns, hidden_dim)`, float. Output shape: the same.

    Examples:
        >>> embedding = keras_ci2p.layers.PositionEmbedding(grid=(2, 3))
        >>> embedding(np.zeros((1, 6, 32), "float32")).shape
        (1, 6, 32)
    """

    def __init__(self, grid: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid = tuple(grid)

    def build(self, input_shape: Shape) -> None:
        tokens = self.grid[0] * self.grid[1]
        if input_shape[1] not in (None, tokens):
            raise ValueError(
                f"{self.name} was made for a grid of {self.grid} tokens. Received: input_shape={tuple(input_shape)}"
            )
        self.embedding = self.add_weight(
            shape=(1, tokens, input_shape[-1]),
            initializer=RandomNormal(stddev=0.02),
            name="embedding",
        )

    def call(self, tokens: Tensor) -> Tensor:
        return tokens + ops.cast(self.embedding, tokens.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
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
