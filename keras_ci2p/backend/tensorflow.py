"""TensorFlow's devices."""

import functools

import keras
import tensorflow as tf

from keras_ci2p.backend.common import Devices, FillBatches, batch_normalizations, first, random_states


def open_tensorflow(wanted):
    """`open_devices` on TensorFlow."""
    if wanted is None:
        return Devices()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = first([device.name for device in devices], wanted)
    return TensorFlowDevices(names) if len(names) > 1 else Devices()


class TensorFlowDevices(Devices):
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
