"""What a model is given is looked at first: images of another range, labels that count other classes."""

import contextlib
import functools
import inspect
import warnings
from typing import Any

import keras
import numpy as np

from keras_ci2p import backend


def _checking(name):
    """Returns a method of Keras's models that looks first at the labels and images that it is given."""
    method = getattr(keras.Model, name)
    signature = inspect.signature(method)

    @functools.wraps(method)
    def checking(self, *args, **kwargs):
        given = signature.bind(self, *args, **kwargs)
        if "_use_cached_eval_dataset" in kwargs:
            # `fit` evaluates what it was given, once more in each epoch.
            return getattr(super(ChecksData, self), name)(*args, **kwargs)
        for argument in given.arguments.keys() & {"x", "validation_data"}:
            data = given.arguments[argument]
            # Who predicts has no use for labels.
            if name != "predict":
                check_class_order(self, data)
            warn_of_range(data)
            # What `image_folder` makes is in 0..255, and shuffled.
            if getattr(data, "class_names", None) is None:
                given.arguments[argument] = backend.watched(data, warn_of_range)
            elif (name, argument) == ("fit", "x"):
                given.arguments.setdefault("shuffle", False)
        with contextlib.ExitStack() as stack:
            if _end_as_expected(given.arguments):
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "Your input ran out of data")
            try:
                return getattr(super(ChecksData, self), name)(*given.args[1:], **given.kwargs)
            except Exception as error:
                # Of a step that was interrupted after JAX had taken the weights, Keras's trainer has none to put back.
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                raise

    return checking


_STEPS = {"steps": "x", "steps_per_epoch": "x", "validation_steps": "validation_data"}


def _end_as_expected(arguments):
    """Whether there is data that knows its length, as an `image_folder` does, and is asked for no other."""
    lengths = {name: getattr(arguments.get(name), "steps_per_epoch", None) for name in _STEPS.values()}
    return any(lengths.values()) and not any(arguments.get(steps) and lengths[name] for steps, name in _STEPS.items())


def check_class_order(model, data):
    """Raises ValueError for data that know their class names, such as an `image_folder`, and count others."""
    names, own = getattr(data, "class_names", None), getattr(model, "class_names", None)
    if names is not None and own is not None and list(names) != list(own):
        raise ValueError(
            f"The labels of the data count the classes {', '.join(names)}, the outputs of {model.name} count "
            f"{', '.join(own)}. Load them in the model's order, image_folder(..., class_names=model.class_names); or "
            "measure by keras_ci2p.training.evaluate, which matches names."
        )


# Images that are standardised by ImageNet's mean and deviation are within -2.2..2.7.
_STANDARDISED = 10


def warn_of_range(data):
    """Warns of arrays of images, alone or nested, whose first ones are in another range than 0..255: 0..1 or -1..1.

    What has another number of channels than RGB is none, such as the latents and the noise of compressors.
    """
    arrays = [array for array in keras.tree.flatten(data) if hasattr(array, "shape") and hasattr(array, "dtype")]
    for images in (array[:32] for array in arrays if len(array.shape) == 4 and array.shape[-1] == 3):
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(images.dtype)):
            continue
        # Tensors may be another framework's than the backend's.
        images = keras.ops.convert_to_numpy(images) if keras.ops.is_tensor(images) else np.asarray(images)
        low, high = (images.min(), images.max()) if images.size else (0, 0)
        if (low >= 0 and 0 < high <= 1) or (low < 0 and high <= _STANDARDISED):
            found = "0..1" if low >= 0 else f"{low:.1f}..{high:.1f}"
            warnings.warn(
                f"The images are within {found}, which is nearly black: models of keras_ci2p take RGB in 0..255 and "
                "scale it themselves. Leave out what scales the images, or undo it.",
                stacklevel=4,
            )
            return


def _making(name):
    """Returns `make_train_function` or its like, whose function does not take the weights along where it fails."""

    def making(self: Any, force: bool = False) -> Any:
        before = getattr(self, name)
        getattr(super(ChecksData, self), f"make_{name}")(force)
        if getattr(self, name) is not before:
            setattr(self, name, backend.safe_step(self, name))
        return getattr(self, name)

    return making


class ChecksData:
    """Mixed into models of images: looks at data first for what would only show in the results.

    What cannot be computed, such as labels of another shape, leaves the model as it was.
    """

    fit = _checking("fit")
    evaluate = _checking("evaluate")
    predict = _checking("predict")
    make_train_function = _making("train_function")
    make_test_function = _making("test_function")
    make_predict_function = _making("predict_function")
