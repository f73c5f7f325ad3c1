"""Synthesis transforms (decoders) of CompressAI's factorized, hyperprior and mbt2018 compressors."""

import itertools
import math

import keras
from keras import ops

from keras_ci2p.layers.gdn import GDN


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SymmetricConv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`, 5x5, stride 2, channels last, that doubles the size.

    As PyTorch's with padding 2 and output padding 1; Keras's "same" crops one pixel less at the top and left. Initial
    weights as PyTorch's.

    Args:
        filters, **kwargs: As in `keras.layers.Conv2DTranspose`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, 2 * height, 2 * width, filters)`.
    """

    def __init__(self, filters, **kwargs):
        # PyTorch counts the output channels of a transposed convolution as its fan_in.
        limit = 1 / math.sqrt(25 * filters)
        uniform = keras.initializers.RandomUniform(-limit, limit)
        kwargs = {"kernel_initializer": uniform, "bias_initializer": uniform.clone(), **kwargs}
        super().__init__(filters, 5, strides=2, padding="valid", data_format="channels_last", **kwargs)

    def call(self, inputs):
        return super().call(inputs)[:, 2:-1, 2:-1]

    def compute_output_shape(self, input_shape):
        height, width = (None if s is None else 2 * s for s in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "strides", "padding", "data_format"):
            config.pop(fixed)
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
