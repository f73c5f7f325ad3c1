"""Analysis and synthesis transforms of learned image compression."""

import hashlib
import itertools

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.compression_layers import GDN, AttentionBlock, ResidualBlock, StridedResidualBlock
from keras_ci2p.layers.core import SymmetricConv2DTranspose, check_images, torch_conv2d

DOWNSAMPLING = 16
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

    Example:
        >>> encoder = keras_ci2p.layers.AnalysisTransform()
        >>> encoder.encode(np.zeros((1, 64, 96, 3), "uint8")).shape
        (1, 4, 6, 192)
    """

    architectures = tuple(_STAGES)

    def __init__(
        self,
        architecture="bmshj2018-factorized",
        num_filters=128,
        latent_channels=192,
        frozen=False,
        source=None,
        origin=None,
        **kwargs,
    ):
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
        self.frozen = frozen
        self._random_kernel = None

    def build(self, input_shape):
        check_images(input_shape, DOWNSAMPLING, self.name)
        for layer in self.stages:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, images):
        check_images(images.shape, DOWNSAMPLING, self.name)
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        x = ops.cast(images, dtype) / 255
        x = ops.cast(x, self.compute_dtype)
        for layer in self.stages:
            x = layer(x)
        return x

    def encode(self, images):
        """Latents of a batch of images.

        Args:
            images: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 16.

        Returns:
            Backend tensor `(batch, height / 16, width / 16, latent_channels)`.

        Raises:
            ValueError: Wrong rank, channels or size.
        """
        return self(ops.convert_to_tensor(images), training=False)

    @property
    def frozen(self):
        """Whether the weights are kept from training. After a change, compile the model again."""
        return self._frozen

    @frozen.setter
    def frozen(self, value):
        self._frozen = bool(value)
        self.trainable = not self._frozen

    @property
    def trainable(self):
        return keras.layers.Layer.trainable.fget(self)

    @trainable.setter
    def trainable(self, value):
        # The base constructor sets `trainable` before `frozen` exists.
        keras.layers.Layer.trainable.fset(self, bool(value) and not getattr(self, "_frozen", False))

    @property
    def origin(self):
        """The former name of `source`."""
        return self.source

    def weights_hash(self):
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

    def copy_weights(self, other):
        """Takes over the weights of another, built transform; if they are random, this one is random too."""
        self.set_weights(other.get_weights())
        self._first_conv.kernel_initializer = other._first_conv.kernel_initializer
        self._random_kernel = other._random_kernel

    @property
    def _first_conv(self):
        return getattr(self.stages[0], "conv1", self.stages[0])

    @property
    def is_randomly_initialized(self):
        """Whether the weights are a constructor's still: not trained, and loaded only from a file of random ones."""
        if not self.built:
            return True
        conv = self._first_conv
        # A Keras initializer gives the same values again, since it holds its seed.
        initial = conv.kernel_initializer(conv.kernel.shape, dtype=conv.kernel.dtype)
        if bool(ops.all(ops.equal(conv.kernel, initial))):
            return True
        return self._random_kernel is not None and np.array_equal(
            ops.convert_to_numpy(conv.kernel), self._random_kernel
        )

    def save_own_variables(self, store):
        # A second copy of the kernel tells who loads the file that the weights are random still.
        if self.is_randomly_initialized:
            store[_RANDOM_KERNEL] = ops.convert_to_numpy(self._first_conv.kernel)

    def load_own_variables(self, store):
        self._random_kernel = np.array(store[_RANDOM_KERNEL], "float32") if _RANDOM_KERNEL in store else None

    def compute_output_shape(self, input_shape):
        check_images(input_shape, DOWNSAMPLING, self.name)
        size = [None if s is None else s // DOWNSAMPLING for s in input_shape[1:3]]
        return (input_shape[0], *size, self.latent_channels)

    def get_config(self):
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
    """

    def __init__(self, activation="gdn", num_filters=128, latent_channels=192, **kwargs):
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

    def build(self, input_shape):
        for layer in self.stages:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, latents):
        x = latents
        for layer in self.stages:
            x = layer(x)
        return ops.cast(x, keras.backend.result_type(self.compute_dtype, "float32")) * 255

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else 16 * s for s in input_shape[1:3])
        return (input_shape[0], height, width, 3)

    def get_config(self):
        config = super().get_config()
        config.update(
            activation=self.activation,
            num_filters=self.num_filters,
            latent_channels=self.latent_channels,
        )
        return config


def fingerprint(transform):
    """The former name of `AnalysisTransform.weights_hash`."""
    return transform.weights_hash()
