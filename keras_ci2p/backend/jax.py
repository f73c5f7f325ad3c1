"""JAX: kernels that are faster on a CPU than Keras's, settings, and devices on one or several hosts."""

import functools
import importlib.util
import os
import warnings

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from keras import ops

from keras_ci2p.backend import common
from keras_ci2p.backend.common import Devices, FillBatches, first
from keras_ci2p.utils import num_cpus

# === Kernels ===


@functools.cache
def _on_cpu():
    return jax.default_backend() == "cpu"


def linear(inputs, kernel, bias=None):
    """`common.linear`; on a CPU of all axes but the last made one, which makes the gradient twice as fast."""
    if not _on_cpu() or len(inputs.shape) <= 2:
        return common.linear(inputs, kernel, bias)
    outputs = common.linear(ops.reshape(inputs, (-1, inputs.shape[-1])), kernel, bias)
    return ops.reshape(outputs, (*ops.shape(inputs)[:-1], outputs.shape[-1]))


def pointwise_conv2d(inputs, kernel):
    """`common.pointwise_conv2d`; on a CPU as a product."""
    if not _on_cpu():
        return common.pointwise_conv2d(inputs, kernel)
    return linear(inputs, ops.convert_to_tensor(kernel)[0, 0])


def depthwise_conv2d(inputs, kernel, bias, strides, dilation):
    """`common.depthwise_conv2d`; on a CPU as the sum over the kernel's positions: its gradient is ten times faster.

    With strides, images are taken apart first: a sum over strided slices has gradients that XLA computes slowly.
    """
    kernel = ops.convert_to_tensor(kernel)
    rows, columns, channels, multiplier = kernel.shape
    if not _on_cpu() or multiplier != 1 or tuple(dilation) != (1, 1) or None in inputs.shape[1:3]:
        return common.depthwise_conv2d(inputs, kernel, bias, strides, dilation)
    inputs = common.pad_half_kernel(inputs, kernel)
    down, right = strides
    _, height, width, _ = inputs.shape
    out_height, out_width = (height - rows) // down + 1, (width - columns) // right + 1
    inputs = ops.pad(inputs, ((0, 0), (0, -height % down), (0, -width % right), (0, 0)))
    # [:, :, i, :, j]: the pixels `strides` apart from (i, j) on.
    inputs = ops.reshape(inputs, (-1, -(-height // down), down, -(-width // right), right, channels))
    outputs = sum(
        inputs[:, i // down : i // down + out_height, i % down, j // right : j // right + out_width, j % right]
        * kernel[i, j, :, 0]
        for i in range(rows)
        for j in range(columns)
    )
    return outputs if bias is None else outputs + bias


def attention(query, key, value):
    """`common.attention`; in float32 for float16 on a CPU, where XLA has no float16 product."""
    dtype = keras.backend.standardize_dtype(query.dtype)
    if dtype == "float16" and _on_cpu():
        query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
    return ops.cast(common.attention(query, key, value), dtype)


# === Initial weights ===


def draw_normal(shape, mean, stddev, dtype, seed):
    """`common.draw_normal`, by NumPy: XLA would compile a program for each shape.

    Of the 35 CPU s of a first prediction with the preset animals10, in an empty cache, that were 23.
    """
    return _array(_generator(seed).standard_normal(shape, "float32") * stddev + mean, dtype)


def draw_uniform(shape, minval, maxval, dtype, seed):
    """`common.draw_uniform`, by NumPy as well."""
    return _array(_generator(seed).random(shape, "float32") * (maxval - minval) + minval, dtype)


def _generator(seed):
    return np.random.default_rng(seed if isinstance(seed, int) else np.asarray(seed.next()))


def _array(values, dtype):
    dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    # Without a dtype of its own JAX would compile the copy.
    return jax.device_put(values.astype(jax.numpy.dtype(dtype)))


# === Settings and facts ===

# What makes a GPU's sums come in the same order each time.
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def is_traced(tensor):
    return isinstance(tensor, jax.core.Tracer)


def stored_value(variable):
    value = variable._value
    # None: put away by the trainer, whose steps have the weights as arguments.
    if value is None or is_traced(value) or value.is_deleted() or not value.is_fully_addressable:
        return None
    return common.stored_value(variable)


# What Keras's trainer takes from the variables, and gives to its functions.
_STATE = ("trainable_variables", "non_trainable_variables")
_STATES = {
    "train_function": (*_STATE, "optimizer_variables", "metrics_variables"),
    "test_function": (*_STATE, "metrics_variables"),
    "predict_function": _STATE,
}


def safe_step(model, name):
    step = getattr(model, name)

    def safe(state, iterator):
        try:
            return step(state, iterator)
        except StopIteration:
            raise
        except BaseException:
            # Keras gives back what the last step has left, and before the first one there is nothing.
            if not any(array.is_deleted() for array in jax.tree.leaves(state)):
                model._jax_state = dict(zip(_STATES[name], state, strict=True))
                model._jax_state_synced = False
                model.jax_state_sync()
            raise

    return safe


def untraced():
    return jax.ensure_compile_time_eval()


def make_deterministic():
    """Makes the same computation give the same result each time. On a CPU it does so anyway (checked with JAX 0.10).

    GPUs need a flag that XLA reads once, when it starts: before the first array is made.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_gpu_deterministic_ops" in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()
    if _has_started() and not _on_cpu():
        warnings.warn(
            f"JAX was in use before: what it computes may differ in rounding. Start with XLA_FLAGS={_DETERMINISTIC} in "
            "the environment.",
            stacklevel=3,
        )


def _has_started():
    # JAX 0.10; without it, better no warning than an error.
    from jax._src import xla_bridge

    return getattr(xla_bridge, "backends_are_initialized", lambda: False)()


compiles = True

# Bytes; what was not used for longest is deleted beyond them.
_MOST_COMPILED_CODE = 2 * 2**30
# How JAX is told not to keep what it compiles in less than a second, as most of a model's beginning is.
_THRESHOLD = "jax_persistent_cache_min_compile_time_secs"


def keep_compiled_code(directory):
    """`keras_ci2p.backend.keep_compiled_code`."""
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return None
    try:
        # Its files are run: nobody else's business.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    settings = {"jax_compilation_cache_dir": str(directory)}
    if _THRESHOLD.upper() not in os.environ:
        settings[_THRESHOLD] = 0
    if importlib.util.find_spec("filelock") and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        settings["jax_compilation_cache_max_size"] = _MOST_COMPILED_CODE
    for name, value in settings.items():
        jax.config.update(name, value)
    # Where another process makes room at the same time; it is compiled then, or kept the next time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    # What JAX has compiled before, it has remembered that there is no cache.
    compilation_cache.reset_cache()
    return directory


def set_matmul_precision(precision):
    """`keras_ci2p.backend.set_matmul_precision`."""
    jax.config.update("jax_default_matmul_precision", precision)


def arithmetic():
    """`keras_ci2p.backend.arithmetic`."""
    return {"threads": num_cpus(), "float32_products": jax.config.jax_default_matmul_precision or "default"}


def accelerator():
    """Returns the name of the first GPU or TPU, None where there is none."""
    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.device_kind


def peak_device_memory():
    """Returns the most bytes held on the first GPU or TPU so far, None where JAX computes on the CPU."""
    statistics = jax.devices()[0].memory_stats()
    return None if statistics is None else statistics["peak_bytes_in_use"]


# === Devices ===


def open_devices(wanted):
    """`keras_ci2p.backend.open_devices`."""
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
    names = first(names, wanted)
    return JaxDevices(names) if len(names) > 1 else Devices()


class JaxDevices(Devices):
    """Devices of this host, or of all hosts; each batch is shared out among them by `keras.distribution`."""

    def __init__(self, names):
        self.count = len(names)
        self.shard = (jax.process_index(), jax.process_count())
        self._distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)

    def scope(self):
        return self._distribution.scope()

    def validation(self, batches, size):
        return batches.map(FillBatches(self.count, size, self.shard))

    def all_reduce_mean(self, logs):
        # Metrics are the same on all hosts already; what each has measured itself is not.
        values = multihost_utils.process_allgather(np.array(list(logs.values()), "float32"))
        return dict(zip(logs, np.atleast_2d(values).mean(axis=0).tolist(), strict=True))

    def _gather(self, digest):
        digests = multihost_utils.process_allgather(np.frombuffer(digest, "uint8"))
        return [row.tobytes() for row in np.atleast_2d(digests)]
