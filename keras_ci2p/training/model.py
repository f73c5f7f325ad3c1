"""The model of a run, and what of it is trained."""

from pathlib import Path

from keras_ci2p.convert import from_compressai
from keras_ci2p.data.latent_cache import is_latent_cache, open_cache
from keras_ci2p.models import CLASSIFIERS, CI2PClassifier, Compressor
from keras_ci2p.training.augmented_model import AugmentedClassifier
from keras_ci2p.training.cached_compressor import cached_compressor
from keras_ci2p.training.distillation import DistilledClassifier, guided_layers
from keras_ci2p.training.run_directory import preset_of
from keras_ci2p.training.settings import NO_COMPRESSOR


def read_compressor(source):
    """A `Compressor` from a preset's name or directory, its training run or a CompressAI checkpoint.

    None for None and "none".
    """
    if source in (None, NO_COMPRESSOR):
        return None
    return from_compressai(source) if Path(source).is_file() else Compressor.from_preset(preset_of(source))


class ModelParts:
    """What the model of a run is made from.

    Args:
        settings: `TrainSettings`.

    Attributes:
        cache: The `LatentCache` that is trained on, or None.

    Raises:
        ValueError: Settings that do not fit the latent cache.
    """

    def __init__(self, settings):
        self._settings = settings
        self._class = CLASSIFIERS[settings.model]
        self.cache = open_cache(settings.data) if is_latent_cache(settings.data) else None
        self._compressor = read_compressor(settings.compressor)
        self._freeze = settings.freeze_compressor
        if self._freeze is None:
            begins_trained = (self._compressor, settings.init, self.cache)
            self._freeze = any(part is not None for part in begins_trained)
        size = settings.recipe.image_size
        self._image_size = (size, size)
        if self.cache is not None:
            self._check_fits_cache()
            self._image_size = self.cache.image_size
            if self._compressor is None and settings.init is None:
                self._compressor = cached_compressor(self.cache)

    def _check_fits_cache(self):
        where = f"{self._settings.data} is a latent cache"
        if not issubclass(self._class, CI2PClassifier):
            raise ValueError(
                f"{where}; train the model ci2p or ci2p_dual on it. Received: model={self._settings.model!r}"
            )
        if not self._freeze:
            raise ValueError(f"{where}: its compressor cannot be trained. Received: freeze_compressor=False")
        if self._settings.augment == "device":
            raise ValueError(f"{where}: its views are augmented already. Received: augment='device'")

    def make(self, class_names):
        """A new classifier.

        With `init`, the preset's head is kept where it has the same class names in the same order, else it is new.
        """
        settings = self._settings
        names = list(class_names)
        arguments = {
            "image_shape": (*self._image_size, 3),
            "drop_path_rate": settings.recipe.drop_path_rate,
            "dtype": settings.dtype,
        }
        if issubclass(self._class, CI2PClassifier):
            arguments.update(freeze_compressor=self._freeze, compressor=self._compressor)
        if settings.init is None:
            model = self._class(variant=settings.variant, num_classes=len(names), class_names=names, **arguments)
        else:
            model = self._class.from_preset(settings.init, **arguments)
            if model.class_names != names:
                head = {"num_classes": len(names), "class_names": names}
                model = self._class.from_preset(settings.init, **head, **arguments)
        if self.cache is not None:
            self.cache.check_compressor(model.compressor)
        return model

    def learner(self, model, teacher, recipe):
        """The Keras model to `fit`, which shares the classifier's weights.

        Args:
            model: The classifier.
            teacher: What `describe` of the teacher's targets says, or None.
            recipe: `Recipe`.

        Raises:
            ValueError: Class weights, where the recipe leaves all to the teacher; as in `distilled`.
        """
        learner = model if self.cache is None else model.latent_classifier
        if teacher is not None:
            if self._settings.class_weights is not None and recipe.distill_alpha == 1:
                raise ValueError(
                    "class_weights weigh the labels, which do not count with distill_alpha=1. Set it lower, such as "
                    "0.5, or leave class_weights out."
                )
            return distilled(learner, teacher, recipe)
        if self._settings.augment == "device":
            return AugmentedClassifier(model, self._image_size, seed=self._settings.seed)
        return learner


def distilled(model, teacher, recipe):
    """The `DistilledClassifier` of a recipe.

    Args:
        model: What is trained, images or latents to logits.
        teacher: What `TeacherTargets.describe` says.
        recipe: `Recipe`.

    Raises:
        ValueError: More feature maps than the recipe has weights for.
    """
    channels = [row["channels"] for row in teacher["features"]]
    weights = recipe.distill_features[len(recipe.distill_features) - len(channels) :]
    if len(weights) != len(channels):
        raise ValueError(
            f"The teacher {teacher['name']} has {len(channels)} feature maps; distill_features must hold a weight for "
            f"each of them. Received: {recipe.distill_features}"
        )
    return DistilledClassifier(
        model,
        guided_layers(model, len(channels)),
        channels,
        recipe.distill_alpha,
        recipe.distill_temperature,
        weights,
    )
