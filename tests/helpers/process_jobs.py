"""What the processes of `test_processes.py` do."""

import gc
import os
import sys
import time

import numpy as np


def is_lean():
    """Whether scikit-learn cannot be found, and whether garbage is looked for."""
    return sys.modules.get("sklearn", "") is None, gc.isenabled()


IMPORTED = is_lean()


def main(name, *arguments):
    globals()[name](*arguments)


def tell(path):
    """Writes how this process was started."""
    names = ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
    started = {"imported": IMPORTED, "running": is_lean()}
    np.savez(path, **started, **{name: os.environ.get(name, "") for name in names})
    print("nobody hears this")


def fail():
    print("warning: of something else", file=sys.stderr)
    raise ValueError("no such thing")


def leave():
    sys.exit(3)


def sleep(path):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(path + ".new", path)
    time.sleep(300)


def predict(source, destination):
    """Logits of a nano model by the weights and images in a file."""
    import keras

    import keras_ci2p

    with np.load(source) as arrays:
        images = arrays["images"]
        weights = [arrays[f"weight_{i}"] for i in range(len(arrays.files) - 1)]
    model = make_model(images.shape[1:])
    model.set_weights(weights)
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    # Batch normalisation by the batch, too.
    trained = keras.ops.convert_to_numpy(model.get_layer("patch_generator")(model.compressor(images), training=True))
    macs = keras_ci2p.count_macs(model).macs
    loaded = [name for name in ("torch", "jax", "tensorflow") if f"keras_ci2p.backend.{name}" in sys.modules]
    np.savez(destination, logits=logits, trained=trained, macs=macs, loaded=loaded)


def make_model(image_shape):
    import keras_ci2p

    compressor = {"num_filters": 4, "latent_channels": 6}
    sizes = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "mlp_dim": 48}
    return keras_ci2p.CI2PViT(image_shape, num_classes=3, compressor=compressor, **sizes)


def deterministic(path):
    """What the switch sets, called twice."""
    import keras

    from keras_ci2p.backend import make_deterministic

    make_deterministic()
    make_deterministic()
    x = keras.ops.ones((2, 2))
    variables = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "CUBLAS_WORKSPACE_CONFIG")}
    np.savez(path, product=keras.ops.convert_to_numpy(keras.ops.matmul(x, x)), **variables)
