"""Per-channel normalisation of images."""

import keras
from keras import ops

# ImageNet statistics of the paper's preprocessing, RGB in 0..255 (mmpretrain).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ImageNormalization(keras.layers.Layer):
    """`(images - mean) / std` for each channel, computed in float32 under every dtype policy.

    `keras.layers.Rescaling` takes its channels from `image_data_format()`; ours are last always.

    Args:
        mean, std: One number for each channel, in the units of the images.

    Input shape: `(..., channels)`, uint8 or float. Output shape: the same, in the compute dtype.
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs):
        # autocast=False: 16-bit floats cannot hold interpolated pixel values.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.built = True

    def call(self, images):
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        mean, std = (ops.convert_to_tensor(value, dtype) for value in (self.mean, self.std))
        return ops.cast((ops.cast(images, dtype) - mean) / std, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        config.update(mean=self.mean, std=self.std)
        return config
