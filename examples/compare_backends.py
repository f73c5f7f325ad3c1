"""One preset on torch, JAX and TensorFlow: how far apart the predictions are, and how long a training step takes.

python examples/compare_backends.py                            # the preset animals10, scikit-image's cat
python examples/compare_backends.py my_model photo.jpg another.jpg --batch-size 32

Keras reads the backend once, when it is imported; so each has a process of its own.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def measure(preset, pictures, batch_size, result):
    """In the process of one backend: probabilities of each picture, and seconds of a training step."""
    import keras

    from keras_ci2p import CI2PViT
    from keras_ci2p.data import center_crop, load_image
    from keras_ci2p.training.evaluation import evaluation_size

    model = CI2PViT.from_preset(preset)
    images = np.stack([center_crop(load_image(path), evaluation_size(model)) for path in pictures])
    probabilities = keras.ops.softmax(model.predict(images, verbose=0))
    names = model.class_names or [str(i) for i in range(model.num_classes)]

    # Training for time's sake: at a learning rate of 0, on one picture again and again. The first pass compiles.
    batches = np.repeat(images[:1], 5 * batch_size, axis=0)
    model.compile(keras.optimizers.AdamW(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(2):
        began = time.perf_counter()
        model.fit(batches, np.zeros(len(batches)), batch_size=batch_size, verbose=0)
        step = (time.perf_counter() - began) / 5
    np.savez(result, probabilities=keras.ops.convert_to_numpy(probabilities), step=step, names=names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="animals10", help="name or directory; default: animals10")
    parser.add_argument("pictures", nargs="*", help="default: the cat of scikit-image")
    parser.add_argument("--batch-size", type=int, default=8, help="of a training step; default: 8")
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.result:
        measure(args.preset, args.pictures, args.batch_size, args.result)
        return

    with tempfile.TemporaryDirectory() as directory:
        pictures = args.pictures
        if not pictures:
            from skimage import data

            pictures = [str(Path(directory, "cat.png"))]
            Image.fromarray(data.chelsea()).save(pictures[0])
        results = {}
        for backend in ("torch", "jax", "tensorflow"):
            if importlib.util.find_spec(backend) is None:
                print(f"{backend} is not installed")
                continue
            result = Path(directory, f"{backend}.npz")
            options = ["--batch-size", str(args.batch_size), "--result", str(result)]
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, __file__, args.preset, *pictures, *options]
            subprocess.run(command, env=environment, check=True)
            with np.load(result) as arrays:
                results[backend] = dict(arrays)

    reference = next(iter(results))
    print(f"{'':12}{'difference to ' + reference:>22}{'training step':>16}   first picture")
    for backend, found in results.items():
        difference = np.abs(found["probabilities"] - results[reference]["probabilities"]).max()
        best = found["probabilities"][0].argmax()
        answer = f"{found['probabilities'][0, best]:.4%} {found['names'][best]}"
        print(f"{backend:12}{difference:22.1e}{1000 * found['step']:13.0f} ms   {answer}")


if __name__ == "__main__":
    main()
