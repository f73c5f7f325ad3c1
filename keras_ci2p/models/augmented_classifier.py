"""A classifier whose training step augments and mixes its own batches."""

from typing import Any, Self

import keras

from keras_ci2p.layers.batch_augmentation import BatchAugmentation, BatchMixing
from keras_ci2p.utils import Tensor


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

    Examples:
        >>> classifier = keras_ci2p.CI2PViT((32, 32, 3), variant="tiny", num_layers=2, num_classes=3)
        >>> model = keras_ci2p.training.AugmentedClassifier(classifier, image_size=(32, 32))
        >>> model(np.zeros((1, 32, 32, 3), "float32")).shape
        (1, 3)
    """

    def __init__(
        self,
        classifier: keras.Model,
        image_size: tuple[int, int],
        seed: int | None = None,
        name: str = "augmented_classifier",
        **kwargs: Any,
    ) -> None:
        # autocast=False: 16-bit floats cannot hold pixel values; the classifier casts for itself.
        super().__init__(name=name, autocast=False, **kwargs)
        self.classifier = classifier
        self.augmentation = BatchAugmentation(image_size, seed=seed, dtype="float32", name="augmentation")
        self.mixing = BatchMixing(dtype="float32", name="mixing")
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        images = inputs
        if isinstance(inputs, dict):
            images = self.augmentation(inputs)
            if _is_mixed(inputs):
                images = self.mixing.mix_images(images, inputs)
        return self.classifier(images, training=training)

    def compute_loss(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        return super().compute_loss(x, self._targets(x, y), y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Any]:
        return super().compute_metrics(x, self._targets(x, y), y_pred, sample_weight)

    def _targets(self, x: Any, y: Tensor) -> Tensor:
        return self.mixing.mix_labels(y, x) if _is_mixed(x) else y

    def get_config(self) -> dict[str, Any]:
        return {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "image_size": self.augmentation.image_size,
            "seed": self.augmentation.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects=custom_objects)
        return cls(**{**config, "classifier": classifier})


def _is_mixed(inputs: Any) -> bool:
    return isinstance(inputs, dict) and "partner" in inputs
