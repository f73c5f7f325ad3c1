"""Trains nano models for a few steps, on one device and on all, and writes what has become of them.

`python two_devices.py OUT one/CASE two/CASE...` writes `OUT.0.npz`, and with several processes `OUT.1.npz` and so on.
"""

import os
import sys
from pathlib import Path

import numpy as np

from keras_ci2p.backend import lean_start

with lean_start():
    import keras

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import NANO

import keras_ci2p
from keras_ci2p.backend import open_devices, set_random_seed
from keras_ci2p.backend.common import Devices, batch_normalizations, random_states
from keras_ci2p.training.optim import FusedAdamW

SIZE = 32
BATCH = 8
# Neither half of it nor of its last batch is whole.
VALIDATION = 9
# Each layer is traced for each device.
SIZES = {**NANO, "num_layers": 1}
TOP1 = "top1"


def examples(count, seed):
    """Random images with one of three labels, each altered by the random numbers that grain hands it."""
    import grain

    class Examples(grain.transforms.RandomMap):
        def __len__(self):
            return count

        def random_map(self, element, rng):
            image = np.random.default_rng([seed, element]).integers(0, 256, (SIZE, SIZE, 3)).astype("float32")
            return image * rng.uniform(0.5, 1), np.eye(3, dtype="float32")[element % 3]

        def collate(self, elements):
            images, labels = zip(*elements, strict=True)
            return np.stack(images).astype("float32"), np.stack(labels)

    return Examples()


def dataset(count, seed, is_training, shard=(0, 1)):
    from keras_ci2p.data.loader import DataLoader

    return DataLoader(
        examples(count, seed),
        batch_size=BATCH,
        shuffle=is_training,
        drop_remainder=is_training,
        seed=0,
        num_threads=1,
        shard=shard,
    )


def vit(drop_path_rate=0.0):
    # The first layer is never dropped.
    sizes = NANO if drop_path_rate else SIZES
    return keras_ci2p.ViT((SIZE, SIZE, 3), num_classes=3, drop_path_rate=drop_path_rate, **sizes)


def ci2p():
    """All of it learns. The compressor is small, since JAX compiles convolutions slowly."""
    compressor = {"num_filters": 4, "latent_channels": 8}
    return keras_ci2p.CI2PViT(
        (SIZE, SIZE, 3), num_classes=3, drop_path_rate=0.0, compressor=compressor, freeze_compressor=False, **SIZES
    )


# Model, optimizer, steps. Adam divides by the gradient's size: without epsilon it would magnify rounding.
CASES = {
    "sgd": (vit, lambda: keras.optimizers.SGD(1.0), 1),
    "adamw": (vit, lambda: FusedAdamW(1e-2, epsilon=1e-4, global_clipnorm=0.01, use_ema=True), 4),
    "batch_norm": (ci2p, lambda: keras.optimizers.SGD(1e-3), 1),
    "drop_path": (lambda: vit(drop_path_rate=0.5), lambda: keras.optimizers.SGD(1.0), 2),
}


def run(case, devices):
    """dict of arrays: weights before and after, running statistics, random states, logs."""
    make_model, make_optimizer, steps = CASES[case]
    set_random_seed(0)
    model = make_model()
    model.compile(
        make_optimizer(),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.CategoricalAccuracy(name=TOP1)],
    )
    result = {f"seed/{i}": keras.ops.convert_to_numpy(state) for i, state in enumerate(random_states(model))}
    devices.prepare(model)
    before = model.get_weights()
    data = dataset(20, 1, is_training=True, shard=devices.shard)
    devices.check_batch_size(data.batch_size)
    validation = {}
    if case == "adamw":
        batches = dataset(VALIDATION, 2, is_training=False)
        validation = {
            "validation_data": devices.validation(batches.repeat(), VALIDATION),
            "validation_steps": batches.steps_per_epoch,
        }
    history = model.fit(data.repeat(), steps_per_epoch=steps, shuffle=False, verbose=0, **validation).history
    logs = devices.all_reduce_mean({key: values[-1] for key, values in history.items()})
    result.update({f"log/{key}": value for key, value in logs.items()})
    for i, (old, new) in enumerate(zip(before, model.get_weights(), strict=True)):
        result[f"before/{i}"], result[f"after/{i}"] = old, new
    for i, layer in enumerate(batch_normalizations(model)):
        result[f"mean/{i}"] = keras.ops.convert_to_numpy(layer.moving_mean)
        result[f"variance/{i}"] = keras.ops.convert_to_numpy(layer.moving_variance)
    for i, state in enumerate(random_states(model)):
        result[f"states/{i}"] = copies(state)
    return result


def copies(variable):
    """`(copies, ...)`: the value on each device of this process that has its own."""
    if keras.backend.backend() != "tensorflow":
        return keras.ops.convert_to_numpy(variable)[None]
    import tensorflow as tf

    values = tf.distribute.get_strategy().experimental_local_results(variable.value)
    return np.stack([value.numpy() for value in values])


def main(out, *runs):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    devices = open_devices("all")
    results = {name: run(name.removeprefix("one/"), Devices()) for name in runs if name.startswith("one/")}
    with devices.scope():
        if runs == ("crash",) and not devices.is_main_process:
            raise RuntimeError("one process crashes")
        devices.assert_equal("the runs", runs)
        disagreement = disagree(devices)
        results.update((name, run(name.removeprefix("two/"), devices)) for name in runs if name.startswith("two/"))
    arrays = {f"{name}/{key}": value for name, result in results.items() for key, value in result.items()}
    index, processes = devices.shard
    shared = {"count": devices.count, "processes": processes, "disagreement": disagreement}
    np.savez(f"{out}.{index}.npz", **shared, **arrays)


def disagree(devices):
    """The message to processes of which each has another value."""
    try:
        devices.assert_equal("their numbers", devices.shard[0])
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(*sys.argv[1:])
