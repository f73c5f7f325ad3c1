"""What a model sees: a picture, what its compressor keeps of it, where it looks, and what it takes it for, as one PNG.

python examples/inspect_model.py                               # the preset animals10, scikit-image's cat
python examples/inspect_model.py my_model photo.jpg --out photo.png
python examples/inspect_model.py my_model --sample astronaut   # another of scikit-image's
python examples/inspect_model.py my_model photo.jpg --data photos     # and the confusion matrix, photo_confusion.png
"""

import argparse
import os
from pathlib import Path

# The framework is chosen as in Keras: torch, jax or tensorflow.
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from keras_ci2p import ViT
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data import center_crop, load_image
from keras_ci2p.layers import attention_rollout
from keras_ci2p.models.ci2p_vit import open_classifier
from keras_ci2p.models.image_classifier import probabilities
from keras_ci2p.plots import plot_confusion
from keras_ci2p.training import evaluate
from keras_ci2p.training.evaluation import evaluation_size


def read_sample(name):
    from skimage import data

    if name not in data.__all__:
        raise SystemExit(f"scikit-image has no picture {name!r}. It has: {', '.join(data.__all__)}")
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def reconstruction(model, batch, name):
    """The picture decoded from the model's own latents, rounded as for storing; None where nothing can decode them."""
    if isinstance(model, ViT) or not name:
        return None
    try:
        pixels = read_compressor(name).decode(keras.ops.round(model.compressor.encode(batch)))
    except (ValueError, OSError) as error:
        print(f"No reconstruction: {error}")
        return None
    return np.rint(keras.ops.convert_to_numpy(pixels)[0].clip(0, 255)).astype("uint8")


def received_attention(model, batch):
    """How much each token counts, 1 on average: all layers' attention, as the mean of the output tokens has it."""
    rollout = attention_rollout(model.attention_maps(batch))
    rows, columns = (size // model.patch_size for size in batch.shape[1:3])
    return rollout[0].mean(axis=0).reshape(rows, columns) * rows * columns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="animals10", help="name, directory or run; default: animals10")
    parser.add_argument("picture", nargs="?", help="default: --sample")
    parser.add_argument("--sample", default="chelsea", metavar="NAME", help="of scikit-image; default: chelsea, a cat")
    parser.add_argument("--compressor", help="preset, run or checkpoint that decodes the latents; default: the model's")
    parser.add_argument("--data", help="folder of photos, one subfolder per class, for the confusion matrix")
    parser.add_argument("--out", type=Path, default="inspection.png", help="default: inspection.png")
    args = parser.parse_args()

    model, preset = open_classifier(args.preset)
    picture = load_image(args.picture) if args.picture else read_sample(args.sample)
    picture = center_crop(picture, evaluation_size(model))
    batch = picture[None]
    decoded = reconstruction(model, batch, args.compressor or preset.metadata.get("compressor"))

    figure = Figure(figsize=(15 if decoded is not None else 11.5, 3.7), layout="constrained")
    axes = list(figure.subplots(1, 4 if decoded is not None else 3))
    shown = [("picture", picture)]
    if decoded is not None:
        error = np.square(decoded.astype(float) - picture).mean()
        shown.append((f"reconstruction, {10 * np.log10(255**2 / max(error, 1e-9)):.1f} dB", decoded))
    shown.append(("attention rollout (1: the mean token)", picture.mean(axis=-1)))
    for panel, (title, pixels) in zip(axes, shown, strict=False):
        panel.imshow(pixels, cmap="gray", interpolation="lanczos")
        panel.set_title(title)
        panel.set_axis_off()
    height, width = picture.shape[:2]
    overlay = axes[-2].imshow(
        received_attention(model, batch),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        cmap="inferno",
        alpha=0.6,
        # The tokens are few, and what each sees has no edges: the layers before mix it with its neighbours.
        interpolation="bicubic",
    )
    figure.colorbar(overlay, ax=axes[-2], shrink=0.8)

    scores = probabilities(model, model.predict_on_batch(batch))[0]
    best = np.argsort(scores)[-10:]
    names = model.class_names or [str(i) for i in range(model.num_classes)]
    colours = ["C0" if i == best[-1] else "lightsteelblue" for i in best]
    bars = axes[-1].barh([names[i] for i in best], 100 * scores[best], color=colours)
    axes[-1].bar_label(bars, fmt="%.1f %%", padding=3)
    axes[-1].set_xlim(0, 120)
    axes[-1].set_xticks([])
    axes[-1].tick_params(left=False)
    axes[-1].spines[["top", "right", "bottom"]].set_visible(False)
    axes[-1].set_title("probabilities")
    figure.savefig(args.out, dpi=120)
    print(f"{names[best[-1]]}, {scores[best[-1]]:.1%}. Picture: {args.out}")

    if args.data:
        path = args.out.with_name(f"{args.out.stem}_confusion.png")
        report = evaluate(model, args.data)
        plot_confusion(path, report)
        print(f"top-1 {report['top1']:.2%} of {report['images']} photos. Confusion matrix: {path}")


if __name__ == "__main__":
    main()
