"""How good a classifier is on a folder of photos."""

import keras
import numpy as np

from keras_ci2p import files
from keras_ci2p.data import DataError, image_folder, open_data
from keras_ci2p.extras import require


def evaluate(model, data, split="val", image_size=None, batch_size=32, verbose=1):
    """Top-1, top-5 and the confusion matrix of a classifier.

    Args:
        model: A `CI2PViT` or `ViT` with class names.
        data: What `keras_ci2p.data.open_data` takes: a folder, "tfds:NAME" or an `ImageManifest`; the
            classes must be the model's.
        split: "val" (the default, never trained on by `train`), "test" of data that have it, or "all".
        image_size: Height and width of the images; None for the model's.
        batch_size, verbose: As in `predict`.

    Returns:
        dict: `images`, `top1`, `top5` (shares in 0..1), `per_class` (list of dicts with `name`, `images`, `recall`,
        `precision`), `confusion` (rows: true class, columns: predicted), `class_names`, `data_sha256`.

    Raises:
        DataError: Classes that are not the model's, or data that cannot be used.
    """
    manifest = open_data(data)
    class_names = check_classes(model, manifest)
    images = image_folder(
        manifest,
        split=split,
        image_size=image_size or evaluation_size(model),
        batch_size=batch_size,
        augment=False,
        size_multiple=model.size_multiple,
    )
    # Photos that can no longer be read are left out of the batches; so labels come with the images.
    probabilities, labels = [], []
    progress = keras.utils.Progbar(images.steps_per_epoch, verbose=verbose, unit_name="batch")
    for batch, one_hot in images:
        if len(batch):
            probabilities.append(model.predict_on_batch(batch))
            labels.append(one_hot.argmax(-1))
        progress.add(1)
    scores, labels = np.concatenate(probabilities), np.concatenate(labels)
    order = np.argsort(-scores, axis=-1, kind="stable")
    # The folder's labels count its subfolders; the model's outputs count its class names.
    labels = np.array([class_names.index(name) for name in manifest.class_names])[labels]
    confusion = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    return {
        "images": len(labels),
        "top1": float((order[:, 0] == labels).mean()),
        "top5": float((order[:, :5] == labels[:, None]).any(-1).mean()),
        "per_class": [
            {
                "name": name,
                "images": int(confusion[i].sum()),
                "recall": _share(confusion[i, i], confusion[i].sum()),
                "precision": _share(confusion[i, i], confusion[:, i].sum()),
            }
            for i, name in enumerate(class_names)
        ],
        "confusion": confusion.tolist(),
        "class_names": class_names,
        "split": split,
        "data_sha256": manifest.sha256,
    }


def check_classes(model, manifest):
    """The model's class names; DataError unless they are the folder's, in whatever order."""
    if len(manifest.class_names) != model.num_classes:
        raise DataError(
            f"{manifest.root} has {len(manifest.class_names)} classes, the model {model.num_classes}: "
            f"{', '.join(manifest.class_names)} against {', '.join(model.class_names or ['no names'])}."
        )
    if model.class_names is None:
        return list(manifest.class_names)
    if set(model.class_names) != set(manifest.class_names):
        unknown = sorted(set(manifest.class_names) ^ set(model.class_names))
        raise DataError(f"The classes of {manifest.root} are not the model's; they differ in {', '.join(unknown)}.")
    return list(model.class_names)


def evaluation_size(model):
    """`(height, width)` that the model was made for, 256 where it takes any."""
    return tuple(256 if size is None else size for size in model.image_shape[:2])


def plot_confusion(path, report):
    """The confusion matrix as a PNG: rows are true classes, shares of each row in colour, counts in the cells."""
    figure_class = require("matplotlib.figure", extra="train").Figure
    names, counts = report["class_names"], np.array(report["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.5, 0.55 * len(names) + 2)
    figure = figure_class(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= 30:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(f"top-1 {100 * report['top1']:.2f} % of {report['images']} photos")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _share(part, whole):
    return float(part / whole) if whole else None
