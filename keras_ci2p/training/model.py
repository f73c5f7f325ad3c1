"""The model of a run."""

from pathlib import Path

from keras_ci2p.convert import from_compressai
from keras_ci2p.models import CLASSIFIERS, Compressor


def read_compressor(source):
    """A `Compressor` from a preset's name or directory or a CompressAI checkpoint; None for None."""
    if source is None:
        return None
    return from_compressai(source) if Path(source).is_file() else Compressor.from_preset(source)


def make_model(settings, compressor, class_names):
    """A new classifier as `TrainSettings` describe it.

    With `init`, the preset's head is kept where it has the same class names in the same order, else it is new.

    Args:
        settings: `TrainSettings`.
        compressor: `Compressor` whose weights are copied, or None.
        class_names: Names of the classes.
    """
    size = settings.recipe.image_size
    arguments = {"drop_path_rate": settings.recipe.drop_path_rate, "dtype": settings.dtype}
    if settings.model == "ci2p":
        arguments.update(freeze_compressor=settings.freeze_compressor)
        if compressor is not None:
            arguments.update(compressor=compressor)
    model_class = CLASSIFIERS[settings.model]
    names = list(class_names)
    arguments["image_shape"] = (size, size, 3)
    if settings.init is None:
        return model_class(variant=settings.variant, num_classes=len(names), class_names=names, **arguments)
    model = model_class.from_preset(settings.init, **arguments)
    if model.class_names != names:
        return model_class.from_preset(settings.init, num_classes=len(names), class_names=names, **arguments)
    return model
