"""Publishing a classifier."""

import math

import keras
import numpy as np

from keras_ci2p.data import open_data
from keras_ci2p.data.seen import NAMES_FILE, carried_files, count_overlap, encode_names
from keras_ci2p.layers.ci2p_patch_embedding import compressor_config
from keras_ci2p.models import CLASSIFIERS
from keras_ci2p.presets import PresetError
from keras_ci2p.training.evaluation import check_classes, evaluate, plot_confusion
from keras_ci2p.training.publishing.classifier_card import classifier_card
from keras_ci2p.training.publishing.subject import PublishError, Subject

# By what share of the photos the numbers of right answers may differ, and by one photo at least.
ALLOWED_DIFFERENCE = 0.005

# The last two are of the dual-scale model.
_SIZES = ("num_layers", "hidden_dim", "num_heads", "mlp_dim", "early_dim", "merge_at")


class ClassifierSubject(Subject):
    """A classifier, measured on the validation photos of `data`, as `evaluate` takes it."""

    def __init__(self, preset, record, data, batch_size, verbose):
        super().__init__(preset, record, data, batch_size, verbose)
        self._photos = open_data(data)
        check_classes(self.model, self._photos)
        self._check_unseen()

    def _check_unseen(self):
        count = len(self._photos.split("val"))
        known, by_name = count_overlap(self.preset, self._photos, "val")
        if known:
            by = f" ({by_name} are known by class and name alone)" if by_name else ""
            raise PublishError(
                f"{known} of the {count} validation photos of {self.data} were trained on{by}: the figures would be "
                "too good. Give the data of the training, or photos that are not in it; other photos of the same names "
                "need new ones."
            )

    def load(self, preset):
        name = preset.registered_name()
        for classifier in CLASSIFIERS.values():
            if keras.saving.get_registered_name(classifier.backbone_class) == name:
                return classifier.from_preset(preset)
        raise PresetError(f"{preset.directory} is of a class that cannot be published: {name!r}.")

    def write(self, directory, storage):
        files = carried_files(self.preset)
        if NAMES_FILE not in files and self._is_data_of_training():
            # Of a run that was begun when presets knew no names.
            files[NAMES_FILE] = encode_names(self._photos)
        self.model.save_to_preset(directory, metadata=self.preset.further_metadata(), files=files, storage=storage)

    def measure(self, model):
        return evaluate(model, self._photos, batch_size=self.batch_size, verbose=self.verbose)

    def compare(self, original, stored):
        difference = abs(_right_answers(original) - _right_answers(stored))
        allowed = max(1, math.floor(ALLOWED_DIFFERENCE * original["images"]))
        if difference > allowed:
            raise PublishError(
                f"Stored so compactly, the model has top-1 {stored['top1']:.2%} in place of {original['top1']:.2%}: "
                f"{difference} of {original['images']} photos, of which at most {allowed} are allowed. Choose a larger "
                "storage."
            )
        return {"top1": original["top1"], "top5": original["top5"], "difference": difference, "allowed": allowed}

    def describe(self):
        backbone = self.model.backbone
        compressor = getattr(self.model, "compressor", None)
        if compressor is not None:
            compressor = {**compressor_config(compressor), "frozen": self.model.freeze_compressor}
        return {
            "class": type(self.model).__name__,
            "image_shape": self.model.image_shape,
            "parameters": _parameters(self.model),
            **{key: getattr(backbone, key) for key in _SIZES if hasattr(backbone, key)},
            "compressor": compressor,
        }

    def describe_data(self):
        val = self._photos.split("val")
        counts = self._photos.split("train").counts() if self._is_data_of_training() else {}
        return {
            "name": self.data_name,
            "sha256": self._photos.sha256,
            "split_by_contents": self._photos.is_split_by_contents,
            "classes": [
                {"name": name, "train": counts.get(name), "val": count} for name, count in val.counts().items()
            ],
        }

    def _is_data_of_training(self):
        trained_on = self.preset.metadata.get("training", {}).get("train_sha256")
        return trained_on == self._photos.split("train").sha256

    def draw(self, directory, report):
        plot_confusion(directory / "confusion.png", report)

    def card(self, report, notes):
        return classifier_card(report, notes)


def _right_answers(measurements):
    return int(np.trace(measurements["confusion"]))


def _parameters(model):
    """Number of weights without the running statistics of batch normalisation."""
    return sum(math.prod(weight.shape) for weight in model.weights if not weight.name.startswith("moving_"))
