"""The curves of a run: `history.csv` and `curves.png`."""

import csv
import io

from keras_ci2p import files
from keras_ci2p.extras import require


def write_csv(path, rows):
    """Writes the rows (dicts with equal keys, one per epoch)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def plot_curves(path, rows, title):
    """Loss and top-1 of training and validation over the epochs, as a PNG."""
    figure_class = require("matplotlib.figure", extra="train").Figure
    figure = figure_class(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, key, label, scale in zip(
        figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 (%)"), (1, 100), strict=True
    ):
        for prefix, name in (("", "training"), ("val_", "validation")):
            values = [row[prefix + key] * scale for row in rows]
            axes.plot(epochs, values, label=name, marker="o" if len(rows) < 30 else None, markersize=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
