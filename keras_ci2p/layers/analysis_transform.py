"""Analysis transforms (encoders) of CompressAI's learned image compressors."""

import itertools
import math

import keras
from keras import ops

from keras_ci2p.layers.gdn import GDN
from keras_ci2p.layers.symmetric_conv import SymmetricConv2D

# The nonlinearity between the four convolutions, by architecture of CompressAI's zoo.
_ACTIVATIONS = {"bmshj2018-factorized": GDN, "bmshj2018-factorized-relu": keras.layers.ReLU}

DOWNSAMPLING = 16


def torch_conv2d(filters, kernel_size, in_channels, **kwargs):
    """A `SymmetricConv2D` with PyTorch's default initial weights: uniform +-1/sqrt(fan_in), the bias too."""
    limit = 1 / math.sqrt(in_channels * kernel_size**2)
    uniform = keras.initializers.RandomUniform(-limit, limit)
    return SymmetricConv2D(filters, kernel_size, kernel_initializer=uniform, bias_initializer=uniform.clone(), **kwargs)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class AnalysisTransform(keras.layers.Layer):
    """The encoder `g_a` of a learned image compressor: images to latents at a sixteenth of the size.

    Four 5x5 convolutions of stride 2 with GDN (or ReLU) between them. The latent is what the convolutions give:
    no rounding, no noise, no entropy model (paper section 3.1).

    A frozen transform has no trainable weights, and stays so when `trainable = True` is set on it or on a model
    around it, and after save and load. Set `frozen = False` to train it.

    Args:
        architecture: One of `AnalysisTransform.architectures`, named as in CompressAI's zoo.
        num_filters: Channels between the convolutions (CompressAI's N; 128 at qualities 1-5).
        latent_channels: Channels of the latent (CompressAI's M; 192 at qualities 1-5).
        frozen: Whether to keep the weights from training.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 16.
    Output shape: `(batch, height / 16, width / 16, latent_channels)`, in the compute dtype.

    Example:
        >>> encoder = keras_ci2p.layers.AnalysisTransform()
        >>> encoder.encode(np.zeros((1, 64, 96, 3), "uint8")).shape
        (1, 4, 6, 192)
    """

    architectures = tuple(_ACTIVATIONS)

    def __init__(
        self,
        architecture="bmshj2018-factorized",
        num_filters=128,
        latent_channels=192,
        frozen=False,
        **kwargs,
    ):
        if architecture not in _ACTIVATIONS:
            raise ValueError(
                f"`architecture` must be one of {', '.join(_ACTIVATIONS)}. Received: architecture={architecture!r}"
            )
        # autocast=False: 16-bit floats cannot hold interpolated pixel values.
        super().__init__(autocast=False, **kwargs)
        self.architecture = architecture
        self.num_filters = num_filters
        self.latent_channels = latent_channels
        dtype = self.dtype_policy
        widths = [3, num_filters, num_filters, num_filters, latent_channels]
        self.stages = []
        for i, (width, filters) in enumerate(itertools.pairwise(widths)):
            if i > 0:
                self.stages.append(_ACTIVATIONS[architecture](dtype=dtype, name=f"activation_{i - 1}"))
            self.stages.append(torch_conv2d(filters, 5, width, strides=2, dtype=dtype, name=f"conv_{i}"))
        self.frozen = frozen

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
    def is_randomly_initialized(self):
        """Whether the weights are still those of the constructor, neither loaded nor trained."""
        if not self.built:
            return True
        conv = self.stages[0]
        # A Keras initializer gives the same values again, since it holds its seed.
        initial = conv.kernel_initializer(conv.kernel.shape, dtype=conv.kernel.dtype)
        return bool(ops.all(ops.equal(conv.kernel, initial)))

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
        )
        return config


def check_images(shape, multiple, receiver):
    """Raises ValueError unless `shape` is `(batch, height, width, 3)` with sizes that are None or fit `multiple`."""
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"{receiver} takes RGB images of shape (batch, height, width, 3), channels last. "
            f"Received: shape={tuple(shape)}"
        )
    if any(size is not None and (size % multiple or not size) for size in shape[1:3]):
        raise ValueError(
            f"{receiver} takes heights and widths that are multiples of {multiple}; resize or crop the images. "
            f"Received: shape={tuple(shape)}"
        )
