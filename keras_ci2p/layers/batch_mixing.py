"""Mixup and CutMix of a batch inside the compiled training step."""

import keras
from keras import ops

from keras_ci2p.layers.batch_augmentation import inside


@keras.saving.register_keras_serializable(package="keras_ci2p")
class BatchMixing(keras.layers.Layer):
    """Mixes each image and label with those of its partner: Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).

    Inside the box is the partner's image, outside `weight * own + (1 - weight) * partner`: an empty box makes it Mixup,
    a weight of 1 CutMix. Nothing is drawn here.

    Input: dict; `keras_ci2p.data.device_parameters.collate_mix` makes all but images and labels.
        images: `(batch, height, width, channels)`, float.
        labels: `(batch, classes)`, float, one-hot or soft.
        partner: int32 `(batch,)`, index of each image's partner in the batch.
        weight: float32 `(batch,)`, share of the own image, in 0..1.
        box: int32 `(batch, 4)`, top, left, bottom, right in pixels.
        label_weight: float32 `(batch,)`, share of the own label, in 0..1.

    Output: tuple of images and labels, shapes and dtypes as they came.
    """

    def __init__(self, **kwargs):
        # autocast=False: 16-bit floats cannot hold pixel values.
        super().__init__(autocast=False, **kwargs)
        self.built = True

    def call(self, inputs):
        return self.mix_images(inputs["images"], inputs), self.mix_labels(inputs["labels"], inputs)

    def mix_images(self, images, parameters):
        """The images alone; of the parameters `partner`, `weight` and `box` are read."""
        partners = ops.take(images, parameters["partner"], axis=0)
        weight = ops.cast(ops.reshape(parameters["weight"], (-1, 1, 1, 1)), images.dtype)
        mixed = weight * images + (1 - weight) * partners
        return ops.where(inside(parameters["box"], images.shape[1:3]), partners, mixed)

    def mix_labels(self, labels, parameters):
        """The labels alone; of the parameters `partner` and `label_weight` are read."""
        weight = ops.cast(parameters["label_weight"][:, None], labels.dtype)
        return weight * labels + (1 - weight) * ops.take(labels, parameters["partner"], axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape["images"], input_shape["labels"]

    def get_config(self):
        config = super().get_config()
        config.pop("autocast", None)
        return config
