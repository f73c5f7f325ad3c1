"""How good a classifier is on a folder of photos."""

import math

import keras
import numpy as np

from keras_ci2p import files
from keras_ci2p.data import DataError, center_crop, image_folder, open_data
from keras_ci2p.data.near_copies import MAX_DISTANCE, without_near_copies
from keras_ci2p.extras import require


def evaluate(model, data, split="val", image_size=None, batch_size=32, verbose=1, without_copies=False, worst=0):
    """Top-1, top-5 and the confusion matrix of a classifier.

    Args:
        model: A `CI2PViT` or `ViT` with class names.
        data: What `keras_ci2p.data.open_data` takes: a folder, "tfds:NAME" or an `ImageManifest`; the
            classes must be the model's.
        split: "val" (the default, never trained on by `train`), "test" of data that have it, or "all".
        image_size: Height and width of the images; None for the model's.
        batch_size, verbose: As in `predict`.
        without_copies: Whether to leave out the images that have a near-copy among the training images, as
            `keras_ci2p.data.near_copies.without_near_copies` finds them.
        worst: How many of the wrongly classified images to name.

    Returns:
        dict: `images`, `top1`, `top5` (shares in 0..1), `per_class` (list of dicts with `name`, `images`, `recall`,
        `precision`), `confusion` (rows: true class, columns: predicted), `class_names`, `split`, `data_sha256`. With
        `without_copies` also `copies`, a dict with the number `left_out` and the `max_distance` of the hashes; with
        `worst` such a list: of the wrongly classified images those of the highest loss, the highest first, dicts with
        `image` (its file), `true` and `predicted` class, the `probability` of each as `true_probability` and
        `predicted_probability`, and `loss`.

    Raises:
        DataError: Classes that are not the model's, or data that cannot be used.
        ValueError: `without_copies` with the split "all".
    """
    manifest = whole = open_data(data)
    class_names = check_classes(model, manifest)
    copies = {}
    if without_copies:
        manifest, count = without_near_copies(manifest, split)
        copies = {"copies": {"left_out": count, "max_distance": MAX_DISTANCE}}
    images = image_folder(
        manifest,
        split=split,
        image_size=image_size or evaluation_size(model),
        batch_size=batch_size,
        augment=False,
        size_multiple=model.size_multiple,
    )
    # Photos that can no longer be read are left out of the batches; so labels come with the images.
    scores, labels, files_read = [], [], []
    progress = keras.utils.Progbar(images.steps_per_epoch, verbose=verbose, unit_name="batch")
    for number, (batch, one_hot) in enumerate(images):
        if len(batch):
            scores.append(model.predict_on_batch(batch))
            labels.append(one_hot.argmax(-1))
            files_read += _files_of_batch(images, number, len(batch))
        progress.add(1)
    scores, labels = np.concatenate(scores), np.concatenate(labels)
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
        "data_sha256": whole.sha256,
        **copies,
        **({"worst": _worst(model, scores, labels, files_read, class_names, worst)} if worst else {}),
    }


def _files_of_batch(images, number, count):
    """Names of the `count` images in the batch `number` of `image_folder`, which leaves out what it cannot read."""
    first = number * images.batch_size
    numbers = range(first, min(first + images.batch_size, len(images.manifest)))
    if len(numbers) != count:
        numbers = [number for number in numbers if _is_readable(images.manifest, number)]
    return [images.manifest.files[number] for number in numbers]


def _is_readable(manifest, number):
    try:
        manifest.open(number)
    except OSError:
        return False
    return True


def _worst(model, scores, labels, names, class_names, count):
    scores = np.asarray(scores, "float64")
    if model.activation is None:
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities = scores / scores.sum(axis=-1, keepdims=True)
    predicted, of_truth = probabilities.argmax(axis=-1), probabilities[np.arange(len(labels)), labels]
    wrong = [i for i in np.argsort(of_truth, kind="stable") if predicted[i] != labels[i]]
    return [
        {
            "image": names[i],
            "true": class_names[labels[i]],
            "predicted": class_names[predicted[i]],
            "true_probability": float(of_truth[i]),
            "predicted_probability": float(probabilities[i].max()),
            "loss": float(-np.log(max(of_truth[i], np.finfo("float64").tiny))),
        }
        for i in wrong[:count]
    ]


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


def plot_worst(path, report, data, image_size=(192, 192)):
    """The images that a report of `evaluate` names as `worst`, as a PNG, each above what it was taken for.

    Args:
        path: Where to.
        report: What `evaluate` gave, with at least one image in `worst`.
        data: The data that were measured.
        image_size: `(height, width)` of the central crops that are shown.
    """
    figure_class = require("matplotlib.figure", extra="train").Figure
    manifest = open_data(data).split(report["split"])
    number_of = {file: number for number, file in enumerate(manifest.files)}
    rows = report["worst"]
    columns = min(6, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = figure_class(figsize=(1.9 * columns, 2.35 * lines + 0.3), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, rows, strict=False):
        axes.imshow(center_crop(manifest.open(number_of[row["image"]]), image_size))
        axes.set_title(
            f"{row['true']} ({100 * row['true_probability']:.1f} %)\n"
            f"as {row['predicted']} ({100 * row['predicted_probability']:.1f} %)",
            fontsize=8,
        )
    wrong = report["images"] - int(np.trace(report["confusion"]))
    figure.suptitle(f"{len(rows)} of {wrong} wrong, the highest loss first", fontsize=10)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _share(part, whole):
    return float(part / whole) if whole else None
