"""A classifier whose training step augments and mixes its own batches."""

import keras

from keras_ci2p.layers.batch_augmentation import BatchAugmentation, BatchMixing


@keras.saving.register_keras_serializable(package="keras_ci2p")
class AugmentedClassifier(keras.Model):
    """Trains a classifier on images that are augmented in the compiled step; `fit` it in place of the classifier.

    The weights are the classifier's own, so afterwards it is trained, and it is what to save. What is drawn for each
    image comes with the batch, so batches tell what happens to them:

    - a dict as `BatchAugmentation` takes it is augmented, and mixed if it has the entries of `BatchMixing`; then loss
      and metrics get mixed labels too;
    - images, as in validation and prediction, go to the classifier as they are.

    Args:
        classifier: Keras model, images `(batch, height, width, 3)` in 0..255 to `(batch, classes)`.
        image_size: `(height, width)` of the augmented images.
        seed: Seed of the noise of erasing, an integer or None.
    """

    def __init__(self, classifier, image_size, seed=None, name="augmented_classifier", **kwargs):
        # autocast=False: 16-bit floats cannot hold pixel values; the classifier casts for itself.
        super().__init__(name=name, autocast=False, **kwargs)
        self.classifier = classifier
        self.augmentation = BatchAugmentation(image_size, seed=seed, dtype="float32", name="augmentation")
        self.mixing = BatchMixing(dtype="float32", name="mixing")
        self.built = True

    def call(self, inputs, training=None):
        images = inputs
        if isinstance(inputs, dict):
            images = self.augmentation(inputs)
            if _is_mixed(inputs):
                images = self.mixing.mix_images(images, inputs)
        return self.classifier(images, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, self._targets(x, y), y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, self._targets(x, y), y_pred, sample_weight)

    def _targets(self, x, y):
        return self.mixing.mix_labels(y, x) if _is_mixed(x) else y

    def get_config(self):
        return {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "image_size": self.augmentation.image_size,
            "seed": self.augmentation.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects=custom_objects)
        return cls(**{**config, "classifier": classifier})


def _is_mixed(inputs):
    return isinstance(inputs, dict) and "partner" in inputs
