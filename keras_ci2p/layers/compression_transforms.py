"""Analysis and synthesis transforms of learned image compression, and those of hyperpriors."""

import hashlib
import itertools
import warnings
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_ci2p import backend
from keras_ci2p.layers.compression_layers import GDN, AttentionBlock, ResidualBlock, StridedResidualBlock
from keras_ci2p.layers.core import SymmetricConv2DTranspose, check_images, torch_conv2d
from keras_ci2p.utils import Shape, Tensor

DOWNSAMPLING = 16
# Of the activations in hyperpriors with means: PyTorch's default.
LEAKY_SLOPE = 0.01
# In weight files, the first kernel of an analysis transform that is neither loaded nor trained.
_RANDOM_KERNEL = "random_kernel"


def _balle(activation):
    """Four 5x5 convolutions of stride 2 with an activation between them."""

    def stages(num_filters, latent_channels, dtype):
        widths = [3, num_filters, num_filters, num_filters, latent_channels]
        for i, (width, filters) in enumerate(itertools.pairwise(widths)):
            if i > 0:
                yield activation(dtype=dtype, name=f"activation_{i - 1}")
            yield torch_conv2d(filters, 5, width, strides=2, dtype=dtype, name=f"conv_{i}")

    return stages


def _cheng(attention):
    """Residual blocks of stride 2 and 1 in turn, a 3x3 convolution of stride 2; attention after the second and last."""

    def stages(num_filters, latent_channels, dtype):
        for i in range(3):
            yield StridedResidualBlock(num_filters, dtype=dtype, name=f"strided_{i}")
            if attention and i == 1:
                yield AttentionBlock(num_filters, dtype=dtype, name="attention_0")
            yield ResidualBlock(num_filters, dtype=dtype, name=f"residual_{i}")
        yield torch_conv2d(latent_channels, 3, num_filters, strides=2, dtype=dtype, name="conv")
        if attention:
            yield AttentionBlock(latent_channels, dtype=dtype, name="attention_1")

    return stages


# By the names of CompressAI's zoo; each gives the layers of `g_a` in the order of its Sequential.
_STAGES = {
    "bmshj2018-factorized": _balle(GDN),
    "bmshj2018-factorized-relu": _balle(keras.layers.ReLU),
    "bmshj2018-hyperprior": _balle(GDN),
    "mbt2018-mean": _balle(GDN),
    "mbt2018": _balle(GDN),
    "cheng2020-anchor": _cheng(attention=False),
    "cheng2020-attn": _cheng(attention=True),
}


@keras.saving.register_keras_serializable(package="keras_ci2p")
class AnalysisTransform(keras.layers.Layer):
    """The encoder `g_a` of a learned image compressor: images to latents at a sixteenth of the size.

    Four 5x5 convolutions of stride 2 with GDN (or ReLU) between them, or cheng2020's residual blocks. The latent is
    what the convolutions give: no rounding, no noise, no entropy model (paper section 3.1).

    A frozen transform has no trainable weights, and stays so when `trainable = True` is set on it or on a model
    around it, and after save and load. Set `frozen = False` to train it.

    Args:
        architecture: One of `AnalysisTransform.architectures`, named as in CompressAI's zoo.
        num_filters: Channels between the convolutions (CompressAI's N; 128 at qualities 1-5).
        latent_channels: Channels of the latent (CompressAI's M; 192 at qualities 1-5).
        frozen: Whether to keep the weights from training.
        source: Where the weights are from, a dict of plain values (`name`, `sha256`), or None.
        origin: `source` as configurations call it.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 16.
    Output shape: `(batch, height / 16, width / 16, latent_channels)`, in the compute dtype.

    Examples:
        >>> encoder = keras_ci2p.layers.AnalysisTransform()
        >>> encoder.encode(np.zeros((1, 64, 96, 3), "uint8")).shape
        (1, 4, 6, 192)
    """

    architectures = tuple(_STAGES)
    _was_checked: bool

    def __init__(
        self,
        architecture: str = "bmshj2018-factorized",
        num_filters: int = 128,
        latent_channels: int = 192,
        frozen: bool = False,
        source: dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if architecture not in _STAGES:
            raise ValueError(
                f"`architecture` must be one of {', '.join(_STAGES)}. Received: architecture={architecture!r}"
            )
        # autocast=False: 16-bit floats cannot hold interpolated pixel values.
        super().__init__(autocast=False, **kwargs)
        self.architecture = architecture
        self.num_filters = num_filters
        self.latent_channels = latent_channels
        self.source = origin if source is None else source
        self.stages = list(_STAGES[architecture](num_filters, latent_channels, self.dtype_policy))
        self._random_kernel: np.ndarray | None = None
        trainable = self.trainable
        self.frozen = frozen
        self.trainable = trainable

    def build(self, input_shape: Shape) -> None:
        check_images(input_shape, DOWNSAMPLING, self.name)
        for layer in self.stages:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, images: Tensor, training: bool | None = None) -> Tensor:
        check_images(images.shape, DOWNSAMPLING, self.name)
        self.check_training(images, training)
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        x = ops.cast(images, dtype) / 255
        x = ops.cast(x, self.compute_dtype)
        for layer in self.stages:
            x = layer(x)
        return x

    def encode(self, images: Tensor) -> Tensor:
        """Latents of a batch of images.

        Args:
            images: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 16.

        Returns:
            Backend tensor `(batch, height / 16, width / 16, latent_channels)`.

        Raises:
            ValueError: Wrong rank, channels or size.
        """
        return self(ops.convert_to_tensor(images), training=False)

    def check_training(self, inputs: Tensor, training: bool | None) -> None:
        """Warns, once, where a model is trained on the latents of this transform, frozen at random weights.

        Args:
            inputs: What the model is called with.
            training: As in its call.
        """
        if not self.frozen or self._was_checked or not (training or backend.is_traced(inputs)):
            return
        with backend.untraced():
            kernel = backend.stored_value(self._first_conv.kernel)
            if kernel is not None:
                # Kept for the trace of a training step, when JAX's trainer has put the weights away.
                self._has_random_weights = self._is_random(kernel)
        if training:
            self._was_checked = True
            if self._has_random_weights:
                warnings.warn(
                    "Training with a compressor that is frozen at random weights. Load a trained compressor, or let it "
                    "learn: `freeze_compressor=False`.",
                    stacklevel=3,
                )

    @property
    def frozen(self) -> bool:
        """Whether the weights are kept from training. After a change, compile the model again."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self._frozen = bool(value)
        # Past the assignment, as in `freeze_parts`.
        keras.layers.Layer.trainable.fset(self, not self._frozen)
        self._was_checked = self._has_random_weights = False

    @property
    def trainable(self) -> bool:
        return keras.layers.Layer.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        # The base constructor sets `trainable` before `frozen` exists.
        keras.layers.Layer.trainable.fset(self, bool(value) and not getattr(self, "_frozen", False))

    @property
    def origin(self) -> dict[str, Any] | None:
        """The former name of `source`."""
        return self.source

    def weights_hash(self) -> str:
        """SHA-256 of architecture, channels and weights, the same on every backend.

        Raises:
            ValueError: There are no weights yet.
        """
        if not self.built:
            raise ValueError(f"{self.name} has no weights yet; build it first.")
        config = f"{self.architecture} {self.num_filters} {self.latent_channels}"
        digest = hashlib.sha256(config.encode("ascii"))
        for weight in self.get_weights():
            digest.update(str(weight.shape).encode("ascii"))
            digest.update(weight.astype("<f4").tobytes())
        return digest.hexdigest()

    def copy_weights(self, other: Self) -> None:
        """Takes over the weights of another, built transform; if they are random, this one is random too."""
        self.set_weights(other.get_weights())
        self._first_conv.kernel_initializer = other._first_conv.kernel_initializer
        self._random_kernel = other._random_kernel

    @property
    def _first_conv(self):
        return getattr(self.stages[0], "conv1", self.stages[0])

    @property
    def is_randomly_initialized(self) -> bool:
        """Whether the weights are a constructor's still: not trained, and loaded only from a file of random ones."""
        if not self.built:
            return True
        return self._is_random(ops.convert_to_numpy(self._first_conv.kernel))

    def _is_random(self, kernel):
        conv = self._first_conv
        # A Keras initializer gives the same values again, since it holds its seed.
        initial = ops.convert_to_numpy(conv.kernel_initializer(kernel.shape, dtype=conv.kernel.dtype))
        return any(np.array_equal(kernel, random) for random in (initial, self._random_kernel) if random is not None)

    def save_own_variables(self, store: Any) -> None:
        # A second copy of the kernel tells who loads the file that the weights are random still.
        if self.is_randomly_initialized:
            store[_RANDOM_KERNEL] = ops.convert_to_numpy(self._first_conv.kernel)

    def load_own_variables(self, store: Any) -> None:
        self._random_kernel = np.array(store[_RANDOM_KERNEL], "float32") if _RANDOM_KERNEL in store else None

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        check_images(input_shape, DOWNSAMPLING, self.name)
        size = [None if s is None else s // DOWNSAMPLING for s in input_shape[1:3]]
        return (input_shape[0], *size, self.latent_channels)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        config.update(
            architecture=self.architecture,
            num_filters=self.num_filters,
            latent_channels=self.latent_channels,
            frozen=self.frozen,
            origin=self.source,
        )
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SynthesisTransform(keras.layers.Layer):
    """The decoder `g_s` of a learned image compressor: latents to images of 16 times the size.

    Four 5x5 transposed convolutions of stride 2 with inverse GDN (or ReLU) between them.

    Args:
        activation: "gdn" or "relu".
        num_filters: Channels between the convolutions (CompressAI's N).
        latent_channels: Channels of the latent (CompressAI's M).

    Input shape: `(batch, height, width, latent_channels)`, float.
    Output shape: `(batch, 16 * height, 16 * width, 3)`, RGB in 0..255 but not clipped, float32 under 16-bit policies.

    Examples:
        >>> decoder = keras_ci2p.layers.SynthesisTransform(num_filters=8, latent_channels=12)
        >>> decoder(np.zeros((1, 4, 6, 12), "float32")).shape
        (1, 64, 96, 3)
    """

    def __init__(
        self, activation: str = "gdn", num_filters: int = 128, latent_channels: int = 192, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if activation not in ("gdn", "relu"):
            raise ValueError(f"`activation` must be gdn or relu. Received: activation={activation!r}")
        self.activation = activation
        self.num_filters = num_filters
        self.latent_channels = latent_channels
        dtype = self.dtype_policy
        self.stages = []
        for i, (_, filters) in enumerate(itertools.pairwise([latent_channels, *[num_filters] * 3, 3])):
            if i > 0:
                name = f"activation_{i - 1}"
                is_gdn = activation == "gdn"
                self.stages.append(
                    GDN(inverse=True, dtype=dtype, name=name) if is_gdn else keras.layers.ReLU(dtype=dtype, name=name)
                )
            self.stages.append(SymmetricConv2DTranspose(filters, dtype=dtype, name=f"conv_{i}"))

    def build(self, input_shape: Shape) -> None:
        for layer in self.stages:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, latents: Tensor) -> Tensor:
        x = latents
        for layer in self.stages:
            x = layer(x)
        return ops.cast(x, keras.backend.result_type(self.compute_dtype, "float32")) * 255

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        height, width = (None if s is None else 16 * s for s in input_shape[1:3])
        return (input_shape[0], height, width, 3)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            activation=self.activation,
            num_filters=self.num_filters,
            latent_channels=self.latent_channels,
        )
        return config


class _HyperTransform(keras.layers.Layer):
    """Base of the transforms of a hyperprior: `stages` in the order of CompressAI's Sequential."""

    def __init__(self, num_filters: int = 128, latent_channels: int = 192, means: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_filters = num_filters
        self.latent_channels = latent_channels
        self.means = means
        self.stages = list(self._make_stages(num_filters, latent_channels))

    def _activation(self, i):
        slope = LEAKY_SLOPE if self.means else 0.0
        return keras.layers.ReLU(negative_slope=slope, dtype=self.dtype_policy, name=f"activation_{i}")

    def build(self, input_shape: Shape) -> None:
        for layer in self.stages:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        for layer in self.stages:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(num_filters=self.num_filters, latent_channels=self.latent_channels, means=self.means)
        return config


@keras.saving.register_keras_serializable(package="keras_ci2p")
class HyperAnalysis(_HyperTransform):
    """The encoder `h_a` of a hyperprior: latents to hyper-latents of a quarter of their height and width.

    A 3x3 convolution and two 5x5 ones of stride 2, with ReLU between them; with LeakyReLU(0.01) where there are means
    (mbt2018-mean). Without means (bmshj2018-hyperprior) it takes absolute values.

    Args:
        num_filters: Channels of the convolutions and of the hyper-latent (CompressAI's N).
        latent_channels: Channels of the latent (CompressAI's M).
        means: Whether the prior has means beside its scales.

    Input shape: `(batch, height, width, latent_channels)`, float.
    Output shape: `(batch, ceil(height / 4), ceil(width / 4), num_filters)`.

    Examples:
        >>> transform = keras_ci2p.layers.HyperAnalysis(num_filters=8, latent_channels=12)
        >>> transform(np.zeros((1, 8, 8, 12), "float32")).shape
        (1, 2, 2, 8)
    """

    def _make_stages(self, num_filters, latent_channels):
        dtype = self.dtype_policy
        yield torch_conv2d(num_filters, 3, latent_channels, dtype=dtype, name="conv_0")
        for i in (0, 1):
            yield self._activation(i)
            yield torch_conv2d(num_filters, 5, num_filters, strides=2, dtype=dtype, name=f"conv_{i + 1}")

    def call(self, latents: Tensor) -> Tensor:
        x = latents if self.means else ops.abs(latents)
        for layer in self.stages:
            x = layer(x)
        return x


@keras.saving.register_keras_serializable(package="keras_ci2p")
class HyperSynthesis(_HyperTransform):
    """The decoder `h_s` of a hyperprior: hyper-latents to the scales, and perhaps the means, of the latents.

    Two 5x5 transposed convolutions of stride 2 and a 3x3 convolution, with ReLU after each; with means LeakyReLU(0.01)
    between them.

    Args:
        num_filters, latent_channels, means: As in `HyperAnalysis`.

    Input shape: `(batch, height, width, num_filters)`, float.
    Output shape: `(batch, 4 * height, 4 * width, latent_channels)`, scales; with means twice as many channels, the
    scales first. In the compute dtype.

    Examples:
        >>> transform = keras_ci2p.layers.HyperSynthesis(num_filters=8, latent_channels=12, means=True)
        >>> transform(np.zeros((1, 2, 2, 8), "float32")).shape
        (1, 8, 8, 24)
    """

    def _make_stages(self, num_filters, latent_channels):
        dtype = self.dtype_policy
        widths = (latent_channels, latent_channels * 3 // 2) if self.means else (num_filters, num_filters)
        for i, width in enumerate(widths):
            yield SymmetricConv2DTranspose(width, dtype=dtype, name=f"conv_{i}")
            yield self._activation(i)
        outputs = (2 if self.means else 1) * latent_channels
        yield torch_conv2d(outputs, 3, widths[-1], dtype=dtype, name="conv_2")
        if not self.means:
            yield self._activation(2)

    def call(self, hyper_latents: Tensor) -> Tensor:
        x = hyper_latents
        for layer in self.stages:
            x = layer(x)
        return x


def fingerprint(transform):
    """The former name of `AnalysisTransform.weights_hash`."""
    warnings.warn("`fingerprint` is now called `AnalysisTransform.weights_hash`.", DeprecationWarning, stacklevel=2)
    return transform.weights_hash()
