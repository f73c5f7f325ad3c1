"""What a compressor leaves of pictures, and the curves of its training, as PNGs."""

import numpy as np
from keras import ops

from keras_ci2p import files
from keras_ci2p.extras import require
from keras_ci2p.models.rate_distortion import psnr
from keras_ci2p.training.compression.data import held_out, middle_crops

# Pictures in a row.
SHOWN = 5


def show_reconstructions(path, compressor, pictures, split="val", size=256):
    """`plot_reconstructions` of the first pictures that `evaluate_compressor` measures."""
    crops = middle_crops(held_out(pictures, split, SHOWN), size, batch_size=1)
    plot_reconstructions(path, compressor, [images[0] for images, _ in crops])


def plot_reconstructions(path, compressor, images):
    """Originals above their reconstructions, with PSNR and bits per pixel.

    Args:
        path: PNG to write.
        compressor: `Compressor` with a factorized prior and a synthesis transform.
        images: Arrays `(height, width, 3)`, RGB in 0..255, multiples of 16; sizes may differ.
    """
    figure_class = require("matplotlib.figure", extra="train").Figure
    figure = figure_class(figsize=(2.6 * len(images), 5.6), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, image in enumerate(images):
        batch = np.asarray(image, "float32")[None]
        restored = ops.convert_to_numpy(compressor(batch, training=False)["x_hat"])[0].clip(0, 255)
        error = float(psnr(np.square(restored - batch[0]).mean()))
        for row, pixels in enumerate((batch[0], restored)):
            axes[row, column].imshow(np.rint(pixels).astype("uint8"), interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[1, column].set_title(f"{error:.1f} dB, {compressor.bits_per_pixel(batch):.2f} bit/pixel", fontsize=9)
    axes[0, 0].set_title("original", loc="left", fontsize=9)
    figure.suptitle(f"{compressor.architecture}, quality {compressor.quality}")
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_compressor_curves(path, rows, title):
    """Cost, bits per pixel and PSNR of training and held-out pictures over the steps."""
    figure_class = require("matplotlib.figure", extra="train").Figure
    figure = figure_class(figsize=(12, 3.6), layout="constrained")
    steps = [row["step"] for row in rows]
    labels = {"cost": "cost", "bpp": "bits per pixel", "psnr": "PSNR (dB)"}
    for axes, (key, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        for prefix, name in (("", "training crops"), ("val_", "held-out pictures")):
            axes.plot(steps, [row[prefix + key] for row in rows], label=name, marker="o", markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, which="both")
        if key == "cost":
            # It begins a hundred times as high as it ends.
            axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.suptitle(title)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
