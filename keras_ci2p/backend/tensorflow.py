"""TensorFlow: the step of AdamW, settings, and the devices of one host."""

import functools

import keras
import tensorflow as tf

from keras_ci2p.backend.common import Devices, FillBatches, batch_normalizations, first, random_states
from keras_ci2p.utils import num_cpus

# === Kernels ===


def adamw_takes_all_weights():
    # On each of several devices it is given that device's own, one by one.
    return not tf.distribute.has_strategy()


def adamw_step(weights, gradients, momentums, velocities, step):
    """Takes a step of AdamW: weight decay, then `ResourceApplyAdam` (TensorFlow 2.21) in place of Keras's passes.

    Args:
        weights: Of Keras, or of TensorFlow, as Keras gives them to `update_step`.
        gradients, momentums, velocities, step: As in `keras_ci2p.backend.torch.adamw_step`.
    """
    weights = [weight.value if isinstance(weight, keras.Variable) else weight for weight in weights]
    # The same for all weights; as operations for each they were half of what is traced.
    numbers = {dtype: _adam_numbers(step, dtype) for dtype in {weight.dtype for weight in weights}}
    decays = {dtype: 1 - step.weight_decay * some["lr"] for dtype, some in numbers.items()} if step.weight_decay else {}
    for weight, gradient, momentum, velocity in zip(weights, gradients, momentums, velocities, strict=True):
        if decays:
            weight.assign(weight * decays[weight.dtype])
        tf.raw_ops.ResourceApplyAdam(
            var=weight.handle,
            m=momentum.value.handle,
            v=velocity.value.handle,
            grad=tf.cast(gradient, weight.dtype),
            **numbers[weight.dtype],
        )


def _adam_numbers(step, dtype):
    """Arguments of `ResourceApplyAdam`."""
    number = tf.cast(step.iterations + 1, dtype)
    beta1, beta2 = (tf.constant(beta, dtype) for beta in (step.beta_1, step.beta_2))
    return {
        "beta1_power": tf.pow(beta1, number),
        "beta2_power": tf.pow(beta2, number),
        "lr": tf.cast(step.learning_rate, dtype),
        "beta1": beta1,
        "beta2": beta2,
        "epsilon": tf.constant(step.epsilon, dtype),
    }


# === Settings and facts ===

# A step of base in batches of 8 at 256 px took 1.36 times as long without (`benchmarks/optimizations.py`).
gains_by_kept_memory = True

compiles = True


# `tf.recompute_grad`, where it computes at once; in a graph Keras fails with it.
draws_anew = True


def safe_step(model, name):
    step = getattr(model, name)
    if name == "train_function" and model.built and model.optimizer is not None:
        # A step that makes variables, the optimizer's, is traced twice: half of the time that it takes to compile.
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)

    def safe(data):
        try:
            return step(data)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise
        except BaseException:
            # What was traced in part can make no variables later, such as the optimizer's: it will be traced anew.
            setattr(model, name, None)
            raise

    return safe


def untraced():
    return tf.init_scope()


def make_deterministic():
    """Makes the same computation give the same result each time: by deterministic kernels."""
    tf.config.experimental.enable_op_determinism()


set_random_seed = keras.utils.set_random_seed


def set_matmul_precision(precision):
    """`keras_ci2p.backend.set_matmul_precision`."""
    if precision == "bfloat16":
        raise ValueError("TensorFlow computes no float32 products in bfloat16. Received: matmul_precision='bfloat16'")
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")


def arithmetic():
    """`keras_ci2p.backend.arithmetic`."""
    # 0 stands for all.
    threads = tf.config.threading.get_intra_op_parallelism_threads() or num_cpus()
    may_round = tf.config.experimental.tensor_float_32_execution_enabled()
    return {"threads": threads, "float32_products": "tensor_float_32 where there is" if may_round else "float32"}


def accelerator():
    """Returns the name of the first GPU, None where there is none."""
    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else None


def peak_device_memory():
    """Returns the most bytes held on the first GPU so far, None where TensorFlow computes on the CPU."""
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if has_gpu else None


# === Devices ===


def open_devices(wanted):
    """`keras_ci2p.backend.open_devices`."""
    if wanted is None:
        return Devices()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = first([device.name for device in devices], wanted)
    return TensorFlowDevices(names) if len(names) > 1 else Devices()


class TensorFlowDevices(Devices):
    """Devices of this host, under a `MirroredStrategy`: each has its copy of the weights and a part of the batch."""

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
        clip = type(optimizer)._clip_gradients

        def clip_whole(gradients):
            whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            # They will be added up once more, now equal.
            return [gradient / self.count for gradient in clip(optimizer, whole)]

        optimizer._clip_gradients = clip_whole

    def validation(self, batches, size):
        return batches.map(FillBatches(self.count, size, self.shard))


@functools.cache
def _mirrored_strategy(names):
    # One for all runs of a process: the collective operations of a second one would get the keys of the first.
    return tf.distribute.MirroredStrategy(names)
