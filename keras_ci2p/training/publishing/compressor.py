"""Publishing a compressor."""

import keras

from keras_ci2p.models import Compressor
from keras_ci2p.training.compression import evaluate_compressor
from keras_ci2p.training.compression.data import open_pictures
from keras_ci2p.training.publishing.compressor_card import compressor_card
from keras_ci2p.training.publishing.subject import PublishError, Subject

# Share of the cost by which it may differ.
ALLOWED_DIFFERENCE = 0.01


class CompressorSubject(Subject):
    """A compressor, measured on held-out pictures of `data`, as `evaluate_compressor` takes it."""

    registered_name = keras.saving.get_registered_name(Compressor)

    def __init__(self, preset, record, data, batch_size, verbose):
        super().__init__(preset, record, data, batch_size, verbose)
        settings = record["settings"] if record else {}
        self._options = {
            key: settings[name]
            for key, name in (("pictures", "val_pictures"), ("size", "val_size"), ("lmbda", "lmbda"))
            if name in settings
        }
        self._pictures = open_pictures(data)

    def load(self, preset):
        return Compressor.from_preset(preset)

    def write(self, directory, storage):
        self.model.save_to_preset(directory, metadata=self.preset.further_metadata(), storage=storage)

    def measure(self, model):
        return evaluate_compressor(
            model, self._pictures, **self._options, batch_size=self.batch_size, verbose=self.verbose
        )

    def compare(self, original, stored):
        difference = abs(stored["cost"] / original["cost"] - 1)
        if not difference <= ALLOWED_DIFFERENCE:
            raise PublishError(
                f"Stored so compactly, the compressor has the cost {stored['cost']:.4f} in place of "
                f"{original['cost']:.4f}; at most {ALLOWED_DIFFERENCE:.0%} of difference is allowed. Choose a larger "
                "storage."
            )
        kept = {key: original[key] for key in ("psnr", "bpp", "cost")}
        return {**kept, "difference": difference, "allowed": ALLOWED_DIFFERENCE}

    def describe(self):
        model = self.model
        return {
            "class": type(model).__name__,
            "architecture": model.architecture,
            "quality": model.quality,
            "num_filters": model.num_filters,
            "latent_channels": model.latent_channels,
            "parameters": model.count_params(),
            "origin": model.origin,
        }

    def describe_data(self):
        splits = {name: len(self._pictures.split(name)) for name in ("train", "val")}
        by_contents = self._pictures.is_split_by_contents
        return {"name": self.data_name, "sha256": self._pictures.sha256, "split_by_contents": by_contents, **splits}

    def draw(self, directory, report):
        """None besides the curves."""

    def card(self, report, notes):
        return compressor_card(report, notes)
