"""What every backend has: Keras's own kernels, a single device. A backend's module overrides what it has better.

Kernels take Keras variables or tensors. All images are channels last.
"""

import contextlib
import copy
import hashlib
import json
import random
import types
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_ci2p.utils import num_cpus

# === Kernels ===


def linear(inputs, kernel, bias=None):
    """Multiplies along the last axis.

    Args:
        inputs: `(..., channels)`.
        kernel: `(channels, units)`.
        bias: `(units,)`, or None.

    Returns:
        `(..., units)`.
    """
    outputs = ops.matmul(inputs, kernel)
    return outputs if bias is None else ops.add(outputs, bias)


def conv2d(inputs, kernel, bias, strides, dilation):
    """Convolves images padded with `dilation * (size // 2)` zeros on each side.

    Args:
        inputs: `(batch, height, width, channels)`.
        kernel: `(rows, columns, channels / groups, filters)`, rows and columns odd.
        bias: `(filters,)`, or None.
        strides, dilation: `(rows, columns)`; one of them is `(1, 1)`.

    Returns:
        `(batch, ceil(height / rows of strides), ceil(width / columns of strides), filters)`.
    """
    inputs, padding = _padded(inputs, kernel, strides)
    outputs = ops.conv(inputs, kernel, list(strides), padding, "channels_last", dilation)
    return _with_bias(outputs, bias)


def pointwise_conv2d(inputs, kernel):
    """Convolves images with a kernel of one pixel, `(1, 1, channels, filters)`."""
    return conv2d(inputs, kernel, None, (1, 1), (1, 1))


def depthwise_conv2d(inputs, kernel, bias, strides, dilation):
    """Convolves each channel of images by itself.

    Args:
        inputs: `(batch, height, width, channels)`.
        kernel: `(rows, columns, channels, multiplier)`, rows and columns odd.
        bias: `(channels * multiplier,)`, or None.
        strides, dilation: As in `conv2d`.

    Returns:
        As `conv2d`, with `channels * multiplier` filters.
    """
    inputs, padding = _padded(inputs, kernel, strides)
    outputs = ops.depthwise_conv(inputs, kernel, strides, padding, "channels_last", dilation)
    return _with_bias(outputs, bias)


def pad_half_kernel(inputs, kernel):
    """Pads images with `size // 2` zeros on each side, for a convolution without dilation."""
    rows, columns = (size // 2 for size in kernel.shape[:2])
    return ops.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _padded(inputs, kernel, strides):
    """The images and Keras's word for what padding they still need: "same" is symmetric without strides alone."""
    if tuple(strides) == (1, 1):
        return inputs, "same"
    return pad_half_kernel(inputs, kernel), "valid"


def _with_bias(outputs, bias):
    return outputs if bias is None else ops.add(outputs, ops.reshape(bias, (1, 1, 1, -1)))


def batch_norm(inputs, scale, offset, epsilon, synchronized=False):
    """Normalises each channel by the statistics of the batch.

    Args:
        inputs: `(batch, ..., channels)`, float32 or float64.
        scale, offset: `(channels,)` of the same dtype, or None.
        epsilon: Added to the variance.
        synchronized: Whether the batch is that of all of TensorFlow's devices.

    Returns:
        The normalised tensor, and the channels' means and (biased) variances, `(channels,)`.
    """
    axes = list(range(len(inputs.shape) - 1))
    mean, variance = ops.moments(inputs, axes, synchronized=synchronized)
    outputs = ops.batch_normalization(inputs, mean, variance, -1, offset=offset, scale=scale, epsilon=epsilon)
    return outputs, mean, variance


def layer_norm(inputs, scale, offset, epsilon):
    """Normalises along the last axis, in float32 at least.

    Args:
        inputs: `(..., channels)`.
        scale, offset: `(channels,)`, or None.
        epsilon: Added to the variance.

    Returns:
        A tensor like `inputs`.
    """
    return ops.layer_normalization(inputs, scale, offset, -1, epsilon)


def attention(query, key, value):
    """Computes `softmax(query key^T / sqrt(head_dim)) value`, each `(batch, tokens, heads, head_dim)`."""
    # Of float64 Keras makes float32 on torch.
    return ops.cast(ops.dot_product_attention(query, key, value), query.dtype)


class AdamWStep(NamedTuple):
    """What a step of AdamW takes beside weights, gradients and moments.

    Attributes:
        iterations: Steps before this one, a Keras variable.
        learning_rate: Scalar tensor.
        weight_decay, beta_1, beta_2, epsilon: Numbers, as Keras's AdamW takes them.
    """

    iterations: object
    learning_rate: object
    weight_decay: float
    beta_1: float
    beta_2: float
    epsilon: float


# A function that takes a step of AdamW, as in `backend.torch`; None where Keras's own operations are as fast.
adamw_step = None


def adamw_takes_all_weights():
    """Whether `adamw_step` is to be given all weights in one call."""
    return False


# === Settings and facts ===

# Whether training gets faster where freed memory stays with the process (`keep_freed_memory`).
gains_by_kept_memory = False

# Whether training makes the heap grow with memory that is free (`release_freed_memory`).
fragments_memory = False

# Whether the first step of a model takes long, since it is compiled.
compiles = False


def keep_compiled_code(directory):
    """`keras_ci2p.backend.keep_compiled_code`, where there is nothing to keep."""


def draw_normal(shape, mean, stddev, dtype, seed):
    """Initial weights: as `keras.random.normal`."""
    return keras.random.normal(shape, mean, stddev, dtype, seed)


def draw_uniform(shape, minval, maxval, dtype, seed):
    """Initial weights: as `keras.random.uniform`."""
    return keras.random.uniform(shape, minval, maxval, dtype, seed)


def is_traced(tensor):
    """Whether `tensor` stands for others in a trace with weights that may be put away when the next one is made."""
    return False


# Whether a layer that is computed once more for its gradient draws other random numbers, without a word.
draws_anew = False


def is_recomputing():
    """Whether a layer is computed once more for its gradient, so that what it changes is changed already."""
    return False


def drawn_once(draw):
    """Returns `draw()`, a random seed; where a layer is computed once more for its gradient, the seed of the first."""
    return draw()


def stored_value(variable):
    """Returns what a Keras variable holds, as an array, whatever is being traced; None where it cannot be looked at."""
    return ops.convert_to_numpy(variable._value)


def untraced():
    """Returns a context whose operations are computed at once, also while a step is traced."""
    return contextlib.nullcontext()


def make_deterministic():
    """Makes the same computation give the same result each time."""


def safe_step(model, name):
    """Returns a step of a Keras model, the attribute `name`; should it fail, the model has its weights still."""
    return getattr(model, name)


def no_grad():
    """A context in which nothing is kept for gradients; as it is, without a tape."""
    return contextlib.nullcontext()


def set_random_seed(seed):
    """`keras_ci2p.backend.set_random_seed`."""
    random.seed(seed)
    np.random.seed(seed)


def set_matmul_precision(precision):
    """`keras_ci2p.backend.set_matmul_precision`."""
    if precision != "float32":
        raise ValueError(
            f"{keras.backend.backend()} computes float32 products in float32 alone. "
            f"Received: matmul_precision={precision!r}"
        )


def arithmetic():
    """`keras_ci2p.backend.arithmetic`."""
    return {"threads": num_cpus(), "float32_products": "float32"}


def accelerator():
    """Returns the name of the first GPU or TPU, None where the backend computes on the CPU."""


def peak_device_memory():
    """Returns the most bytes held on the first GPU or TPU so far, None where the backend computes on the CPU."""


# === Data ===


def watched(data, look):
    """Returns data for Keras's `fit` whose first batch is shown to `look` once it is read: none is read for that alone.

    Args:
        data: A generator, a `keras.utils.PyDataset` (whose first batch is read once more), a `torch.utils.data`,
            `tf.data` or grain dataset; anything else is returned as it is.
        look: Function of a batch as it comes.
    """
    seen = []

    def watch(batch):
        if not seen:
            seen.append(True)
            look(batch)
        return batch

    package = type(data).__module__.partition(".")[0]
    bases = {f"{base.__module__}.{base.__name__}" for base in type(data).__mro__}
    if isinstance(data, types.GeneratorType):
        return (watch(batch) for batch in data)
    if isinstance(data, keras.utils.PyDataset):
        # What is wrong with it, Keras will find.
        with contextlib.suppress(Exception):
            watch(data[0])
    elif "torch.utils.data.dataloader.DataLoader" in bases:
        return _watched_loader(data, watch)
    elif "tensorflow.python.data.ops.dataset_ops.DatasetV2" in bases:
        return _watched_tf_data(data, watch)
    elif package == "grain" and hasattr(data, "map"):
        return data.map(watch)
    return data


def _watched_loader(loader, watch):
    class Watched(type(loader)):
        def __iter__(self):
            return map(watch, super().__iter__())

    loader = copy.copy(loader)
    loader.__class__ = Watched
    return loader


def _watched_tf_data(dataset, watch):
    import tensorflow as tf

    def images(batch):
        tensors = [tensor for tensor in tf.nest.flatten(batch) if hasattr(tensor, "shape") and hasattr(tensor, "dtype")]
        return [tensor for tensor in tensors if tensor.shape.rank in (4, None) and tensor.dtype.is_floating]

    def map_function(index, batch):
        # In threads of its own, where Python is asked at each start alone.
        tf.cond(
            index == 0,
            lambda: tf.py_function(lambda *batch: bool(watch(batch)), images(batch), tf.bool),
            lambda: False,
        )
        return batch

    return dataset.enumerate().map(map_function) if images(dataset.element_spec) else dataset


# === Devices ===


def open_devices(wanted):
    """`keras_ci2p.backend.open_devices`."""
    if wanted is not None:
        first(["the CPU"], wanted)
    return Devices()


class Devices:
    """The devices of a training run; this class itself is a single one.

    Attributes:
        count: Number of devices, over all processes.
        shard: `(index, count)`: the part of every training batch that this process loads (`DataLoader`).
        num_threads: Threads to load with where several processes share a host, else None.
        keep_batches_whole: Whether the compiled step computes on the batches as they were loaded, not on parts of them.

    Examples:
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
    def is_main_process(self):
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

    def all_reduce_mean(self, logs):
        """The logs of an epoch, a dict of numbers, over the whole batches: the same in every process."""
        return dict(logs)

    def assert_equal(self, what, value):
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
