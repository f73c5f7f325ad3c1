"""Devices of a run, as on a backend without an engine of its own."""

import contextlib
import hashlib
import json

import keras
import numpy as np


class Devices:
    """The devices of a training run; this class itself is a single one.

    Attributes:
        count: Number of devices, over all processes.
        shard: `(index, count)`: the part of every training batch that this process loads (`DataLoader`).
        num_threads: Threads to load with where several processes share a host, else None.
        keep_batches_whole: Whether the compiled step computes on the batches as they were loaded, not on parts of them.

    Example:
        devices = open_devices("all")
        devices.check_batch_size(32)
        with devices.scope():
            model = keras_ci2p.ViT(variant="tiny")
            model.compile(...)
            devices.prepare(model)
            model.fit(..., validation_data=devices.validation(batches, size))
    """

    count = 1
    shard = (0, 1)
    num_threads = None
    keep_batches_whole = True

    @property
    def is_main(self):
        """Whether this process is the one that prints and writes files."""
        return self.shard[0] == 0

    def check_batch_size(self, batch_size):
        """Raises ValueError where a training batch of so many examples cannot be shared out evenly."""
        if batch_size % self.count:
            raise ValueError(
                f"A batch of {batch_size} examples cannot be shared out evenly among {self.count} devices. "
                f"Choose a multiple of {self.count}."
            )

    @contextlib.contextmanager
    def scope(self):
        """While it lasts, models are built, restored, compiled and trained on the devices."""
        yield

    def prepare(self, model):
        """Makes a model ready for `fit`, once it is compiled and its state restored; again if it is compiled again."""

    def validation(self, batches, size):
        """Batches for `validation_data` in place of `batches`, such that the loss and weighted metrics stay the same.

        Where a batch is shared out among devices, examples of weight 0 fill the last one. So `compile` must be given
        its metrics as `weighted_metrics`; the weights do not reach `metrics`.

        Args:
            batches: grain `IterDataset` of `(inputs, labels)`, the same in every process: not a shard.
            size: Number of examples in one epoch of it; its batches divide by `count`, except for the last one.

        Returns:
            A grain `IterDataset` of as many batches, of `(inputs, labels)` or `(inputs, labels, weights)`.
        """
        return batches

    def mean(self, logs):
        """The logs of an epoch, a dict of numbers, over the whole batches: the same in every process."""
        return dict(logs)

    def agree(self, what, value):
        """Waits for the other processes, and makes sure that they have the same `value`.

        Args:
            what: What it is, for the message.
            value: Anything that JSON can hold.

        Raises:
            ValueError: They differ.
        """
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        if len(set(self._gather(digest))) > 1:
            raise ValueError(
                f"The processes of this run differ in {what}. All must be started with the same arguments, and see the "
                "same data and the same directory of the run."
            )

    def describe(self):
        """Number of devices and processes, for the record of a run."""
        return {"count": self.count, "processes": self.shard[1]}

    def _gather(self, digest):
        return [digest]


class FillBatches:
    """Repeats the last example of a batch until the batch divides by `multiple`, then takes this process's part.

    What is repeated has weight 0. Keras divides the loss by the number of examples, the repeated ones included; the
    weight of the others makes up for it.
    """

    def __init__(self, multiple, size, shard):
        self._multiple = multiple
        self._weight = (size + -size % multiple) / size
        self._shard = shard

    def __call__(self, batch):
        inputs, labels = batch
        count = len(labels)
        index, processes = self._shard
        part = np.arange(count + -count % self._multiple)[index::processes]
        weights = np.where(part < count, self._weight, 0).astype("float32")
        taken = np.minimum(part, count - 1)
        return *keras.tree.map_structure(lambda array: array[taken], (inputs, labels)), weights


def batch_normalizations(model):
    """The model's layers of batch normalisation, at any depth."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def random_states(model):
    """The variables of the model's random generators, each a seed and a counter.

    Where devices have their own copies, those get another seed on each, so that what is dropped differs between the
    parts of a batch. The first device keeps its own: it is the one that checkpoints hold.
    """
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


def first(names, wanted):
    """The first `wanted` of the names, a number or "all"; ValueError where there are fewer."""
    if wanted == "all":
        return names
    if wanted > len(names):
        raise ValueError(
            f"There are {len(names)} devices ({', '.join(names)}), not {wanted}. Train on at most {len(names)}, or on "
            "'all'."
        )
    return names[:wanted]
