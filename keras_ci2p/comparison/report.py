"""A comparison as a table and as a figure."""

import textwrap

from keras_ci2p import files
from keras_ci2p.extras import require

# Told apart by the colour-blind too; near those of the projects.
COLORS = {"torch": "#d1495b", "jax": "#3d6fb6", "tensorflow": "#edae49"}
NAMES = {"torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow"}
_INK, _GREY = "#333333", "#777777"
# Of a bar, where the next begins 1 to the right.
_WIDTH = 0.62


def table(report):
    """Lines of plain text: one for each backend, with the reason where there is no result."""
    columns = ("backend", "version", "first step", "step (least..most)", "images/s", "memory", "logits", "loss")
    widths = (12, 14, 12, 26, 10, 10, 9, 9)

    def line(cells):
        first, *others = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        return "".join([first, *others]).rstrip()

    lines = [title(report), "", line(columns)]
    for backend, row in report["backends"].items():
        if "error" in row:
            lines.append(f"{backend:<{widths[0]}}no result: {textwrap.shorten(row['error'], 300)}")
            continue
        step = row["step"]
        is_reference = backend == report["reference"]
        lines.append(
            line(
                (
                    backend,
                    row["versions"][backend] or "?",
                    _seconds(row["first_step"]),
                    f"{_seconds(step['median'])} ({_seconds(step['least'])}..{_seconds(step['most'])})",
                    f"{row['images_per_second']['median']:.3g}",
                    _gigabytes(_peak(row)),
                    *("-" if is_reference else f"{row[f'{key}_difference']:.1e}" for key in ("logits", "losses")),
                )
            )
        )
    if len(report["backends"]) > 1 and report["reference"]:
        lines += [
            "",
            f"logits, loss: the largest difference to {report['reference']}, of the same weights and pictures",
        ]
    return "\n".join(lines)


def title(report):
    """What was compared, and on what."""
    settings = report["settings"]
    name = {"ci2p": "CI2P-ViT", "ci2p_dual": "CI2P-ViT-ds", "vit": "ViT/16"}[settings["model"]]
    what = (
        f"{name} {settings['variant']}, {report['parameters']:,} parameters; batches of {settings['batch_size']} at "
        f"{settings['image_size']} px, {settings['dtype']}"
    )
    devices = dict.fromkeys(row["device"] for row in report["backends"].values() if "device" in row)
    return f"{what}; {' and '.join(devices)}" if devices else what


def plot(path, report):
    """Losses of all backends laid over each other, images a second, and memory, as a PNG."""
    figure_class = require("matplotlib.figure", extra="train").Figure
    figure = figure_class(figsize=(12.5, 4.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(wspace=0.06)
    losses, speed, memory = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _plot_losses(losses, report)
    _plot_speed(speed, report)
    _plot_memory(memory, report)
    for axes in (losses, speed, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=_INK, length=0, labelsize=10)
    figure.suptitle(textwrap.fill(title(report), 120), fontsize=10.5, color=_INK)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


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
    peaks = {name: _peak(row) / 1e9 for name, row in working.items() if _peak(row) is not None}
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


def _peak(row):
    """Bytes: of the GPU where there is one, else of the process."""
    memory = row["memory"]
    return memory["peak"] if memory["device_peak"] is None else memory["device_peak"]


def _gigabytes(count):
    return "?" if count is None else f"{count / 1e9:.2f} GB"


def _seconds(value):
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"
