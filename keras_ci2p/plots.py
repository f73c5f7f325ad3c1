"""Draws all figures: arrays and reports in, PNG files out.

What a figure shows has been computed, perhaps for days. So one that cannot be drawn is a warning, no error; each
function returns whether it has drawn. Sizes in pixels do not grow with the data.
"""

import functools
import math
import textwrap
import warnings

import numpy as np

from keras_ci2p.utils import atomic_file, require


def warn_without_matplotlib():
    """Warns where matplotlib is not installed: a training run goes on without its figures."""
    if not _has_matplotlib():
        warnings.warn("No curves will be drawn without matplotlib: pip install 'keras_ci2p[train]'.", stacklevel=2)


def _optional(draw):
    """Makes a warning of whatever keeps a figure from being drawn."""

    @functools.wraps(draw)
    def draw_if_possible(path, *arguments):
        problem = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                draw(path, *arguments)
            except Exception as error:
                problem = f"{path} is not drawn: {(str(error) or type(error).__name__).splitlines()[0]}"
        is_drawn = problem is None
        if any("missing from" in str(warning.message) for warning in caught):
            problem = problem or f"{path} shows boxes in place of letters that matplotlib's font does not have."
        if problem:
            warnings.warn(problem, stacklevel=2)
        return is_drawn

    return draw_if_possible


def _shown(text, longest=30):
    """A name as matplotlib draws it: short, of letters that exist, and no formula, which dollars would begin."""
    text = text.encode("utf-8", errors="replace").decode()
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return (text if len(text) <= longest else f"{text[: longest - 3]}...").replace("$", r"\$")


def _has_matplotlib():
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def _figure(width, height, **options):
    """An empty figure, sizes in inches; ImportError without matplotlib."""
    figure_class = require("matplotlib.figure", extra="train").Figure
    return figure_class(figsize=(width, height), layout="constrained", **options)


def _save(figure, path, dpi=120):
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


@_optional
def plot_curves(path, rows, title):
    """Draws loss and top-1 of training and validation over the epochs.

    Args:
        path: PNG to write.
        rows: One dict per epoch of `epoch`, `loss`, `top1`, `val_loss` and `val_top1` (shares in 0..1), and perhaps of
            `features_0_loss`, ..., the losses of a teacher's feature maps, which are drawn apart.
        title: Of the figure.
    """
    both = {"": "training", "val_": "validation"}
    # Label, factor, and the lines by their keys.
    panels = [
        ("loss", 1, {f"{prefix}loss": name for prefix, name in both.items()}),
        ("top-1 (%)", 100, {f"{prefix}top1": name for prefix, name in both.items()}),
    ]
    features = {key: f"map {key.split('_')[1]}" for key in rows[0] if key.startswith("features_")}
    if features:
        panels.append(("loss of feature maps, training", 1, features))
    figure = _figure(5 * len(panels), 4)
    epochs = [row["epoch"] for row in rows]
    for axes, (label, scale, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for key, name in lines.items():
            values = [row[key] * scale for row in rows]
            axes.plot(epochs, values, label=name, marker="o" if len(rows) < 30 else None, markersize=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(_shown(title, 90))
    _save(figure, path)


@_optional
def plot_reconstructions(path, images, reconstructions, captions, title):
    """Draws images above their reconstructions.

    Args:
        path: PNG to write.
        images: Arrays `(height, width, 3)`, RGB in 0..255; sizes may differ.
        reconstructions: As many, of the same sizes.
        captions: A line for each reconstruction, such as its PSNR and bits per pixel.
        title: Of the figure.
    """
    figure = _figure(2.6 * len(images), 5.6)
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, (image, restored, caption) in enumerate(zip(images, reconstructions, captions, strict=True)):
        for row, pixels in enumerate((image, restored)):
            pixels = np.rint(np.clip(pixels, 0, 255)).astype("uint8")
            axes[row, column].imshow(pixels, interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[1, column].set_title(_shown(caption, 60), fontsize=9)
    axes[0, 0].set_title("original", loc="left", fontsize=9)
    figure.suptitle(_shown(title, 90))
    _save(figure, path)


@_optional
def plot_compressor_curves(path, rows, title):
    """Draws RD loss, bits per pixel and PSNR of training and validation over the steps.

    Args:
        path: PNG to write.
        rows: Dicts of `step`, `cost` (the RD loss), `bpp`, `psnr`, and of the latter three with `val_` before.
        title: Of the figure.
    """
    figure = _figure(12, 3.6)
    steps = [row["step"] for row in rows]
    labels = {"cost": "RD loss", "bpp": "bits per pixel", "psnr": "PSNR (dB)"}
    for axes, (key, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        for prefix, name in (("", "training crops"), ("val_", "validation images")):
            axes.plot(steps, [row[prefix + key] for row in rows], label=name, marker="o", markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, which="both")
        if key == "cost":
            # It begins a hundred times as high as it ends.
            axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.suptitle(_shown(title, 90))
    _save(figure, path)


# Told apart by the colour-blind too; near those of the projects.
COLORS = {"torch": "#d1495b", "jax": "#3d6fb6", "tensorflow": "#edae49"}
NAMES = {"torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
_INK, _GREY = "#333333", "#777777"
# Of a bar, where the next begins 1 to the right.
_WIDTH = 0.62


@_optional
def plot_comparison(path, report):
    """Draws losses of all backends over each other, images per second, and memory.

    Args:
        path: PNG to write.
        report: What `keras_ci2p.compare.compare` returns.
    """
    figure = _figure(12.5, 4.4, facecolor="white")
    figure.get_layout_engine().set(wspace=0.06)
    losses, speed, memory = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _plot_losses(losses, report)
    _plot_speed(speed, report)
    _plot_memory(memory, report)
    for axes in (losses, speed, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=_INK, length=0, labelsize=10)
    figure.suptitle(textwrap.fill(comparison_title(report), 120), fontsize=10.5, color=_INK)
    _save(figure, path, dpi=150)


def _head(axes, text, remark=""):
    axes.set_title(text, loc="left", fontsize=12, color=_INK, fontweight="bold")
    axes.set_title(remark, loc="right", fontsize=10, color=_GREY)


def _working(report):
    return {backend: row for backend, row in report["backends"].items() if "error" not in row}


def _plot_losses(axes, report):
    working = _working(report)
    steps = range(1, report["settings"]["steps"] + 1)
    # The later the thinner, so that equal curves are all seen.
    for width, (backend, row) in zip((9, 5, 1.8), working.items(), strict=False):
        axes.plot(steps, row["losses"], color=COLORS[backend], linewidth=width, label=NAMES[backend])
    axes.set_xlabel("step", color=_INK)
    axes.grid(axis="y", color="#e4e4e4")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, labelcolor=_INK)
    largest = max(row["losses_difference"] for row in working.values())
    _head(axes, "Loss of each step", f"largest difference {largest:.1e}" if len(working) > 1 else "")


def _plot_speed(axes, report):
    speeds = {name: row["images_per_second"] for name, row in _working(report).items()}
    tops = {name: speed["most"] for name, speed in speeds.items()}
    _bars(axes, report, {name: speed["median"] for name, speed in speeds.items()}, "{:.3g}", tops)
    for name, speed in speeds.items():
        axes.vlines(list(report["backends"]).index(name), speed["least"], speed["most"], color=_INK, linewidth=1.2)
    _head(axes, "Images a second, training")


def _plot_memory(axes, report):
    working = _working(report)
    peaks = {name: peak_bytes(row) / 1e9 for name, row in working.items() if peak_bytes(row) is not None}
    _bars(axes, report, peaks, "{:.2f}", peaks)
    if any(row["memory"]["device_peak"] is not None for row in working.values()):
        _head(axes, "Peak memory of the GPU, GB")
        return
    for name in peaks:
        imported = working[name]["memory"]["imported"] / 1e9
        place = list(report["backends"]).index(name)
        axes.bar(place, imported, _WIDTH, color="white", alpha=0.45, hatch="////", edgecolor="white", linewidth=0)
    axes.set_xlabel("hatched: before there is a model", color=_INK)
    _head(axes, "Peak memory, GB")


def _bars(axes, report, heights, form, tops):
    """A bar for each backend, labelled above `tops`."""
    for i, name in enumerate(report["backends"]):
        if name in heights:
            axes.bar(i, heights[name], _WIDTH, color=COLORS[name])
        place, text = (tops[name], form.format(heights[name])) if name in heights else (0, "no result")
        color = _INK if name in heights else _GREY
        axes.annotate(text, (i, place), (0, 4), textcoords="offset points", ha="center", fontsize=11, color=color)
    axes.set_xticks(range(len(report["backends"])), [NAMES[name] for name in report["backends"]])
    axes.set_xlim(-0.6, len(report["backends"]) - 0.4)
    axes.set_ylim(0, 1.12 * max(tops.values()))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


# Of a confusion matrix: its largest side in inches, the most classes whose counts are told, and whose names are.
_LARGEST_SIDE, _MOST_COUNTS, _MOST_NAMES = 20, 30, 100


@_optional
def plot_confusion(path, report):
    """Draws the confusion matrix: rows are true classes, shares of each row in colour; of up to 30 classes the counts,
    of more than 100 only some of the names.

    Args:
        path: PNG to write.
        report: What `evaluate` returns.
    """
    names, counts = [_shown(name) for name in report["class_names"]], np.array(report["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(4.5, 0.55 * len(names) + 2), _LARGEST_SIDE)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    named = range(0, len(names), math.ceil(len(names) / _MOST_NAMES))
    # Points: they are not to overlap.
    size = min(10, 0.7 * 72 * side / len(named))
    axes.set_xticks(named, names[:: named.step], rotation=45 if len(named) <= _MOST_COUNTS else 90, ha="right")
    axes.set_yticks(named, names[:: named.step])
    axes.tick_params(labelsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= _MOST_COUNTS:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(f"top-1 {100 * report['top1']:.2f} % of {report['images']} images")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    _save(figure, path)


# Of images: more would make a picture that nothing opens.
MOST_SHOWN = 60


@_optional
def plot_worst(path, report, images):
    """Draws up to 60 images that a report of `evaluate` names as `worst`, each below what it was taken for.

    Args:
        path: PNG to write.
        report: What `evaluate` returns, with at least one image in `worst`.
        images: These images, arrays `(height, width, 3)`, RGB in 0..255; `worst_images` reads them.
    """
    rows = report["worst"][:MOST_SHOWN]
    columns = min(6, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = _figure(1.9 * columns, 2.35 * lines + 0.3)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, row, image in zip(panels, rows, images, strict=False):
        axes.imshow(image)
        axes.set_title(
            f"{_shown(row['true'])} ({100 * row['true_probability']:.1f} %)\n"
            f"as {_shown(row['predicted'])} ({100 * row['predicted_probability']:.1f} %)",
            fontsize=8,
        )
    wrong = round(report["images"] * (1 - report["top1"]))
    figure.suptitle(f"{len(rows)} of {wrong} wrong, the highest loss first", fontsize=10)
    _save(figure, path)


def comparison_title(report):
    """Says what was compared, and on what."""
    settings = report["settings"]
    name = {"ci2p": "CI2P-ViT", "ci2p_dual": "CI2P-ViT-ds", "vit": "ViT/16"}[settings["model"]]
    what = (
        f"{name} {settings['variant']}, {report['parameters']:,} parameters; batches of {settings['batch_size']} at "
        f"{settings['image_size']} px, {settings['dtype']}"
    )
    devices = dict.fromkeys(row["device"] for row in report["backends"].values() if "device" in row)
    return f"{what}; {' and '.join(devices)}" if devices else what


def peak_bytes(row):
    """Returns a backend's peak memory in bytes: of the GPU where there is one, else of the process."""
    memory = row["memory"]
    return memory["peak"] if memory["device_peak"] is None else memory["device_peak"]
