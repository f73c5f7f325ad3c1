"""What can be published."""

from abc import ABC, abstractmethod
from pathlib import Path

from keras_ci2p.data.tfds import PREFIX


class PublishError(ValueError):
    """A model that is not to be published as asked."""


class Subject(ABC):
    """A model with the data that it is measured on; a subclass for each kind of model.

    Args:
        preset: `Preset` of the model.
        record: What `read_record` tells of its training, or None.
        data: What it is measured on.
        batch_size, verbose: As in `evaluate`.

    Attributes:
        model: The preset's model.

    Raises:
        DataError: Data that cannot be used for it.
        PublishError: Data that would tell too much good of it.
    """

    def __init__(self, preset, record, data, batch_size, verbose):
        self.preset = preset
        self.record = record
        self.data = str(data)
        self.batch_size = batch_size
        self.verbose = verbose
        self.model = self.load(preset)

    @property
    def data_name(self):
        """ "tfds:NAME", or the last part of a folder's path."""
        return self.data if self.data.startswith(PREFIX) else Path(self.data).resolve().name

    @abstractmethod
    def load(self, preset):
        """The model of a `Preset`."""

    @abstractmethod
    def write(self, directory, storage):
        """Writes the model as a preset with what its own preset holds besides."""

    @abstractmethod
    def measure(self, model):
        """The measurements of a model, a dict of plain values."""

    @abstractmethod
    def compare(self, original, stored):
        """What the report says of the original's measurements; PublishError where the stored model's are not alike."""

    @abstractmethod
    def describe(self):
        """Architecture and sizes, a dict of plain values."""

    @abstractmethod
    def describe_data(self):
        """The data, a dict of plain values."""

    @abstractmethod
    def draw(self, directory, report):
        """Writes what pictures the card shows besides the curves."""

    @abstractmethod
    def card(self, report, notes):
        """The model card, Markdown."""
