"""One run on several devices: the devices are opened before the model is built, and every backend uses its own engine.

JAX: `keras.distribution.DataParallel`. TensorFlow: `tf.distribute.MirroredStrategy`. torch: `torchrun` and
`DistributedDataParallel` (`keras_ci2p.training.torch_data_parallel`). Each device computes on an equal part of every
batch, and the step is the one that a single device would take on the whole batch.

Batch normalisation sees the whole batch on JAX and TensorFlow. On torch each device normalises by its own part, and the
running statistics are the means over the devices.
"""

import contextlib
import functools
import hashlib
import json
import os

import keras
import numpy as np


class Devices:
    """The devices of a training run; this class itself is a single one.

    Attributes:
        count: Number of devices, over all processes.
        shard: `(index, count)`: the part of every training batch that this process loads (`EpochDataset`).
        num_threads: Threads to load with where several processes share a host, else None.
        keep_batches_whole: Whether the compiled step computes on the batches as they were loaded, not on parts of them.

    Example:
        devices = Devices.open("all")
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

    @staticmethod
    def open(devices=None):
        """The devices to train on. To be called before anything is computed, since several processes meet here.

        On torch each device has a process, which `torchrun` has started. With JAX there can be several hosts, a process
        on each, that find each other by `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `KERAS_DISTRIBUTION_NUM_PROCESSES` and
        `KERAS_DISTRIBUTION_PROCESS_ID` (`keras.distribution.initialize`); they train on all devices of all.

        Args:
            devices: "all", the number of devices, or None for a single one.

        Raises:
            ValueError: Another value, more devices than there are, or processes that were started for another number.
        """
        is_number = isinstance(devices, int) and not isinstance(devices, bool)
        if not (devices in (None, "all") or is_number and devices > 0):
            raise ValueError(f"`devices` must be 'all', a positive number or None. Received: devices={devices!r}")
        return _OPEN[keras.backend.backend()](devices)

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


class _JaxDevices(Devices):
    def __init__(self, names):
        import jax

        self.count = len(names)
        self.shard = (jax.process_index(), jax.process_count())
        self._distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)

    def scope(self):
        return self._distribution.scope()

    def validation(self, batches, size):
        return batches.map(_Fill(self.count, size, self.shard))

    def _gather(self, digest):
        from jax.experimental import multihost_utils

        digests = multihost_utils.process_allgather(np.frombuffer(digest, "uint8"))
        return [row.tobytes() for row in np.atleast_2d(digests)]


class _TensorFlowDevices(Devices):
    keep_batches_whole = False

    def __init__(self, names):
        self.count = len(names)
        self._strategy = _mirrored_strategy(tuple(names))

    def scope(self):
        return self._strategy.scope()

    def prepare(self, model):
        """Raises ValueError for what Keras computes wrongly, or not at all, on several devices of TensorFlow."""
        optimizer = model.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # Keras looks for overflows in the gradients of the first device alone.
            raise ValueError("mixed_float16 does not go with several devices of TensorFlow; take mixed_bfloat16.")
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                "Gradients cannot be accumulated on several devices of TensorFlow; take larger batches. "
                f"Received: gradient_accumulation_steps={optimizer.gradient_accumulation_steps}"
            )
        if any((optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue)):
            self._clip_whole_gradients(optimizer)
        for layer in batch_normalizations(model):
            layer.synchronized = True
        for state in random_states(model):
            first = state.numpy()
            for index, on_device in enumerate(self._strategy.experimental_local_results(state.value)):
                on_device.assign(first + [index, 0])

    def _clip_whole_gradients(self, optimizer):
        """Has the gradients added up before they are clipped; Keras clips those of each device, then adds."""
        import tensorflow as tf

        clip = type(optimizer)._clip_gradients

        def clip_whole(gradients):
            whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            # They will be added up once more, now equal.
            return [gradient / self.count for gradient in clip(optimizer, whole)]

        optimizer._clip_gradients = clip_whole

    def validation(self, batches, size):
        return batches.map(_Fill(self.count, size, self.shard))


class _Fill:
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


@functools.cache
def _mirrored_strategy(names):
    # One for all runs of a process: the collective operations of a second one would get the keys of the first.
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)


def _open_jax(wanted):
    import jax

    processes = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    if processes > 1 and wanted is None:
        raise ValueError(f"KERAS_DISTRIBUTION_NUM_PROCESSES is {processes}: train with devices='all'.")
    if processes > 1 and not jax.distributed.is_initialized():
        keras.distribution.initialize()
    if wanted is None:
        return Devices()
    names = keras.distribution.list_devices()
    if jax.process_count() > 1 and wanted not in ("all", len(names)):
        raise ValueError(
            f"{jax.process_count()} processes train on all of their {len(names)} devices. Received: devices={wanted}"
        )
    names = _first(names, wanted)
    return _JaxDevices(names) if len(names) > 1 else Devices()


def _open_tensorflow(wanted):
    if wanted is None:
        return Devices()
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = _first([device.name for device in devices], wanted)
    return _TensorFlowDevices(names) if len(names) > 1 else Devices()


def _open_torch(wanted):
    from keras_ci2p.training.torch_data_parallel import open_torch

    return open_torch(wanted)


def _first(names, wanted):
    if wanted == "all":
        return names
    if wanted > len(names):
        raise ValueError(
            f"There are {len(names)} devices ({', '.join(names)}), not {wanted}. Train on at most {len(names)}, or on "
            "'all'."
        )
    return names[:wanted]


_OPEN = {"jax": _open_jax, "tensorflow": _open_tensorflow, "torch": _open_torch}
