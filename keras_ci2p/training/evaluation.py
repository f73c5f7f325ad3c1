"""How good a classifier or a compressor is."""

import itertools
import unicodedata
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p.codec.ms_ssim import LEAST_SIDE
from keras_ci2p.data.animals10 import ENGLISH
from keras_ci2p.data.loader import image_folder
from keras_ci2p.data.manifest import DataError, ImageManifest, is_compressed
from keras_ci2p.data.overlap import MAX_DISTANCE, english_names, without_near_copies
from keras_ci2p.data.sources import open_data, scan_images
from keras_ci2p.data.transforms import center_crop, native_center_crop, random_crop
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import ImageClassifier, evaluation_size, predict_filled, probabilities
from keras_ci2p.models.rate_distortion import choose_lmbda, distortion, distortion_and_rate, psnr
from keras_ci2p.names import renamed_arguments
from keras_ci2p.plots import MOST_SHOWN, plot_reconstructions
from keras_ci2p.training.latents import FileReader, outputs_of
from keras_ci2p.utils import PathLike, listed

# Images in a row.
SHOWN = 5


def show_reconstructions(path, compressor, images, split="val", size=256):
    """Draws the first images that `evaluate_compressor` measures above their reconstructions; whether it could."""
    batches = [batch for batch, _ in middle_crops(held_out(images, split, SHOWN), size, batch_size=1)]
    reconstructions = [compressor(batch, training=False)["x_hat"] for batch in batches]
    reconstructions = [ops.convert_to_numpy(x_hat)[0].clip(0, 255) for x_hat in reconstructions]
    images = [batch[0].astype("float32") for batch in batches]
    captions = [
        f"{float(psnr(np.square(restored - image).mean())):.1f} dB, {compressor.bits_per_pixel(batch):.2f} bit/pixel"
        for image, restored, batch in zip(images, reconstructions, batches, strict=True)
    ]
    title = f"{compressor.architecture}, quality {compressor.quality}"
    return plot_reconstructions(path, images, reconstructions, captions, title)


def worst_images(report, data, image_size, reader=None):
    """Reads the first images that a report names as `worst`, as many as `keras_ci2p.plots.plot_worst` shows.

    Args:
        report: What `evaluate` returned for `data`.
        data: The data that were measured.
        image_size: `(height, width)` of the central crops.
        reader: As in `evaluate`; `.ci2p` files are decoded, since they are to be looked at.

    Returns:
        List of uint8 arrays `(height, width, 3)`.
    """
    rows = report["worst"][:MOST_SHOWN]
    manifest = open_data(data).split(report["split"])
    number_of = {file: number for number, file in enumerate(manifest.files)}
    numbers = [number_of[row["image"]] for row in rows]
    pictures = (
        reader.picture(manifest.root / manifest.files[number])
        if is_compressed(manifest.files[number])
        else manifest.open(number)
        for number in numbers
    )
    return [center_crop(picture, image_size) for picture in pictures]


def evaluate(
    model: ImageClassifier,
    data: ImageManifest | PathLike,
    split: str = "val",
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    verbose: int = 1,
    without_copies: bool = False,
    worst: int = 0,
    class_map: dict[str, str] | None = None,
    reader: FileReader | None = None,
) -> dict[str, Any]:
    """Top-1, top-5 and the confusion matrix of a classifier.

    Of `.ci2p` files, alone or among images, the latents are classified, without pixels: all whole tokens of them, as
    they are. Those of another compressor than the classifier's are decoded, which a warning tells.

    Args:
        model: A `CI2PViT` or `ViT` with class names.
        data: What `keras_ci2p.data.open_data` takes: a folder, "tfds:NAME" or an `ImageManifest`; the
            classes must be the model's, as `match_classes` finds them.
        split: "val" (the default, never trained on by `train`), "test" of data that have it, or "all".
        image_size: Height and width of the images; None for the model's.
        batch_size, verbose: As in `predict`.
        without_copies: Whether to leave out the images that have a near-copy among the training images, as
            `keras_ci2p.data.overlap.without_near_copies` finds them.
        worst: How many of the wrongly classified images to name.
        class_map: Dict of classes of the data to classes of the model, for those that are called otherwise; or None.
        reader: `FileReader` of `.ci2p` files, to give it a compressor that has no name; None to make one.

    Returns:
        dict: `images`, `top1`, `top5` (shares in 0..1), `per_class` (list of dicts with `name`, `images`, `recall`,
        `precision`), `confusion` (rows: true class, columns: predicted; None for more than 1000 classes),
        `class_names`, `split`, `data_sha256`. With
        `without_copies` also `copies`, a dict with the number `left_out` and the `max_distance` of the hashes; with
        `worst` such a list: of the wrongly classified images those of the highest loss, the highest first, dicts with
        `image` (its file), `true` and `predicted` class, the `probability` of each as `true_probability` and
        `predicted_probability`, and `loss`.

    Raises:
        DataError: Classes that are not the model's, or data that cannot be used.
        ValueError: `without_copies` with the split "all".

    Examples:
        >>> model = keras_ci2p.ViT((32, 32, 3), variant="tiny", num_layers=2, class_names=["bird", "cat", "dog"])
        >>> report = keras_ci2p.training.evaluate(model, "photos", verbose=0)
        >>> report["images"], report["per_class"][0]["name"]
        (6, 'bird')
    """
    whole = open_data(data)
    manifest = match_classes(model, whole, class_map)
    class_names = list(manifest.class_names)
    empty = [name for name, count in manifest.split(split).counts().items() if not count]
    if empty:
        what = whole.root if split == "all" else f"The {split} split of {whole.root}"
        warnings.warn(f"{what} has no images of {listed(empty)}: the figures tell nothing of them.", stacklevel=2)
    copies = {}
    if without_copies:
        manifest, count = without_near_copies(manifest, split)
        copies = {"copies": {"left_out": count, "max_distance": MAX_DISTANCE}}
    images = manifest.split(split)
    measure = _scores_of_files if images.compressed else _scores_of_images
    # Images that can no longer be read are left out; so labels come with the outputs.
    scores, labels, best, names = [], [], [], []
    progress = keras.utils.Progbar(-(-len(images) // batch_size), verbose=verbose, unit_name="batch")
    for outputs, truth, read in measure(model, images, image_size or evaluation_size(model), batch_size, reader):
        best.append(np.argsort(-outputs, axis=-1, kind="stable")[:, :5])
        if worst:
            scores.append(outputs)
        labels.append(truth)
        names += read
        progress.add(1)
    best, labels = np.concatenate(best), np.concatenate(labels)
    is_right = best[:, 0] == labels
    of_class, taken_for, right = (
        np.bincount(some, minlength=len(class_names)) for some in (labels, best[:, 0], labels[is_right])
    )
    return {
        "images": len(labels),
        "top1": float(is_right.mean()),
        "top5": float((best == labels[:, None]).any(-1).mean()),
        "per_class": [
            {
                "name": name,
                "images": int(of_class[i]),
                "recall": _share(right[i], of_class[i]),
                "precision": _share(right[i], taken_for[i]),
            }
            for i, name in enumerate(class_names)
        ],
        "confusion": _confusion(labels, best[:, 0], len(class_names)),
        "class_names": class_names,
        "split": split,
        "data_sha256": whole.sha256,
        **copies,
        **(
            {"worst": _worst(model, scores, labels, names or _files_read(images, len(labels)), class_names, worst)}
            if worst
            else {}
        ),
    }


def _scores_of_images(model, images, image_size, batch_size, reader):
    """Yields `(outputs, labels, files)` of each batch of images, no files where they are not known yet."""
    batches = image_folder(
        images, split="all", image_size=image_size, batch_size=batch_size, augment=False, patch_size=model.patch_size
    )
    for batch, one_hot in batches:
        yield predict_filled(model, batch, batches.batch_size), one_hot.argmax(-1), []


def _scores_of_files(model, images, image_size, batch_size, reader):
    """As `_scores_of_images`, of `.ci2p` files and images."""
    reader = reader or FileReader(getattr(model, "compressor", None))
    paths = [images.root / file for file in images.files]
    number_of = {path: number for number, path in enumerate(paths)}

    def leave_out(path, error):
        warnings.warn(f"{path} can no longer be read and is left out: {error}", stacklevel=2)

    results = outputs_of(model, reader, paths, batch_size, leave_out, image_size)
    read = 0
    while some := list(itertools.islice(results, batch_size)):
        numbers = [number_of[path] for path, _ in some]
        outputs, read = np.stack([outputs for _, outputs in some]), read + len(some)
        yield outputs, np.array(images.labels)[numbers], [images.files[number] for number in numbers]
    if not read:
        raise DataError(f"None of the {len(images)} files of {images.root} can be read.")


# Classes; its size grows by their square.
_LARGEST_CONFUSION = 1000


def _confusion(labels, predicted, num_classes):
    if num_classes > _LARGEST_CONFUSION:
        return None
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts.tolist()


def _files_read(manifest, count):
    """Returns the names of the images that were evaluated: all, or the `count` of them that can still be read."""
    numbers = range(len(manifest))
    if len(numbers) != count:
        numbers = [number for number in numbers if _is_readable(manifest, number)]
    return [manifest.files[number] for number in numbers]


def _is_readable(manifest, number):
    try:
        manifest.open(number)
    except OSError:
        return False
    return True


def _worst(model, scores, labels, names, class_names, count):
    chances = probabilities(model, np.concatenate(scores).astype("float64"))
    chances = chances / chances.sum(axis=-1, keepdims=True)
    predicted, of_truth = chances.argmax(axis=-1), chances[np.arange(len(labels)), labels]
    wrong = [i for i in np.argsort(of_truth, kind="stable") if predicted[i] != labels[i]]
    return [
        {
            "image": names[i],
            "true": class_names[labels[i]],
            "predicted": class_names[predicted[i]],
            "true_probability": float(of_truth[i]),
            "predicted_probability": float(chances[i].max()),
            "loss": float(-np.log(max(of_truth[i], np.finfo("float64").tiny))),
        }
        for i in wrong[:count]
    ]


def weakest(per_class, most):
    """Of a report's classes those of the lowest recall, `most` at most, in the report's order."""
    recalls = [2 if row["recall"] is None else row["recall"] for row in per_class]
    chosen = sorted(range(len(recalls)), key=recalls.__getitem__)[:most]
    return [per_class[i] for i in sorted(chosen)]


def match_classes(model, manifest, class_map=None):
    """Matches the classes of data with a model's by name, in whatever order and of whatever Unicode form.

    Those of Animals-10 may be named in English or Italian. The data may lack classes.

    Args:
        model: A classifier.
        manifest: `ImageManifest`.
        class_map: Dict of classes of the data to classes of the model, for those that are called otherwise; or None.

    Returns:
        `ImageManifest` whose labels count the model's classes; as it is for a model without class names.

    Raises:
        DataError: A class that the model does not have, or another number of them where it has no names.
    """
    class_map, names = class_map or {}, model.class_names
    if names is None:
        if class_map or len(manifest.class_names) != model.num_classes:
            raise DataError(
                f"The model has {model.num_classes} classes without names: the data must have as many, and no class "
                f"map. {manifest.root} has {len(manifest.class_names)}: {listed(manifest.class_names)}."
            )
        return manifest
    absent = sorted(set(class_map) - set(manifest.class_names))
    if absent:
        raise DataError(
            f"The class map names {listed(absent)}, which {manifest.root} does not have. It has: "
            f"{listed(manifest.class_names)}."
        )
    own = {}
    for aliases in (english_names(names), names):
        own.update(zip(map(_composed, aliases), names, strict=True))
    english = english_names(manifest.class_names)
    if {*english_names(names)} <= {*ENGLISH.values()}:
        # One by one, so that a further class is all that is not known.
        english = [ENGLISH.get(name.lower(), name) for name in manifest.class_names]
    english, found = dict(zip(manifest.class_names, english, strict=True)), {}
    for name in manifest.class_names:
        asked = [class_map[name]] if name in class_map else [name, english[name]]
        found[name] = next((own[alias] for alias in map(_composed, asked) if alias in own), None)
    unknown = [name for name, known in found.items() if known is None]
    missing = [name for name in names if name not in found.values()]
    if unknown:
        raise DataError(
            f"The classes of {manifest.root} are not the model's: it does not know "
            f"{listed([class_map.get(name, name) for name in unknown])}, and has {listed(missing or ['no others'])} "
            f"instead. Say which is which: --class-map {unknown[0]}={missing[0] if len(missing) == 1 else 'CLASS'} "
            "(in Python, class_map); or take out what the model is not for."
        )
    return manifest.with_class_names(names, found)


def _composed(name):
    """A name with its accents as one character each, whichever way a file system writes them."""
    return unicodedata.normalize("NFC", name)


def _share(part, whole):
    return float(part / whole) if whole else None


@renamed_arguments(pictures="num_images")
def evaluate_compressor(
    compressor: Compressor,
    data: ImageManifest | PathLike,
    split: str = "val",
    num_images: int | None = 100,
    size: int = 256,
    lmbda: float | None = None,
    batch_size: int = 8,
    verbose: int = 0,
    metric: str = "mse",
) -> dict[str, Any]:
    """Bits, errors and cost of a compressor, on images that `train_compressor` keeps aside.

    The compressor stays compiled as it was, or not compiled.

    Args:
        compressor: `Compressor` with a factorized prior or a hyperprior, and a synthesis transform.
        data: Folder of images at any depth, "tfds:NAME" or an `ImageManifest`.
        split: "val", "test" of data that have it, or "all".
        num_images: How many at most, chosen by their contents; None for all.
        size: Height and width of the central crops, a multiple of 16, for a hyperprior of 64; smaller images are
            enlarged.
        lmbda: Weight of the error; None for that of the compressor's quality.
        batch_size, verbose: As in `evaluate`.
        metric: The error in the cost, "mse" or "ms-ssim".

    Returns:
        dict of means over the images: `psnr` in dB and, of at least 161 pixels, `ms_ssim`, of images clipped to
        0..255; `bpp`, bits per pixel; `cost`, `lmbda * 255^2 * MSE + bpp` or `lmbda * (1 - MS-SSIM) + bpp`. And
        `lmbda`, `metric`, `images`, `size`, `data_sha256`.

    Raises:
        DataError: Data that cannot be used.
        ValueError: A compressor that cannot decode, or whose quality is unknown without `lmbda`.

    Examples:
        >>> compressor = keras_ci2p.Compressor.from_preset("bmshj2018-factorized-mse-5-photos")
        >>> report = keras_ci2p.training.evaluate_compressor(compressor, "photos", size=32)
        >>> report["images"], report["bpp"] > 0
        (6, True)
    """
    if compressor.entropy_bottleneck is None or compressor.synthesis is None:
        raise ValueError(f"{compressor.architecture} has no prior and synthesis transform here: it cannot be measured.")
    lmbda = float(choose_lmbda(lmbda, compressor.quality, metric))
    everything = scan_images(data)
    chosen = held_out(everything, split, num_images)
    crops = middle_crops(chosen, size, batch_size)
    rows = []
    progress = keras.utils.Progbar(crops.steps_per_epoch, verbose=verbose, unit_name="batch")
    for batch, _ in crops:
        rows.append(_measure_images(batch, predict_filled(compressor, batch, crops.batch_size), metric))
        progress.add(1)
    error, bpp, decibels, *similarity = np.concatenate(rows, axis=1).astype("float64")
    return {
        "psnr": float(decibels.mean()),
        **({"ms_ssim": float(similarity[0].mean())} if similarity else {}),
        "bpp": float(bpp.mean()),
        "cost": float((lmbda * error + bpp).mean()),
        "lmbda": lmbda,
        "metric": metric,
        "images": len(error),
        "size": size,
        "data_sha256": everything.sha256,
    }


def _measure_images(images, outputs, metric):
    """Of each image the error of the cost, bits per pixel, PSNR in dB, and of large ones MS-SSIM: float32 `(., batch)`.

    The latter two are of images clipped to 0..255.
    """
    clipped = np.clip(outputs["x_hat"], 0, 255)
    rows = [*distortion_and_rate(images, outputs, metric), psnr(distortion(images, clipped))]
    if min(images.shape[1:3]) >= LEAST_SIDE:
        rows.append(1 - distortion(images, clipped, "ms-ssim"))
    return np.stack([ops.convert_to_numpy(values) for values in rows])


def training_crops(images, size, batch_size, seed, num_workers=0):
    """Random crops of the training split, as an endless source of batches; their labels mean nothing."""
    return image_folder(
        images,
        split="train",
        image_size=size,
        batch_size=batch_size,
        seed=seed,
        augment=random_crop,
        num_workers=num_workers,
    )


def middle_crops(images, size, batch_size):
    """The central crop of each image, in order."""
    return image_folder(images, split="all", image_size=size, batch_size=batch_size, augment=native_center_crop)


def held_out(images, split="val", most=None):
    """Up to `most` images of a split, chosen by their contents alone."""
    images = images.split(split)
    order = sorted(range(len(images)), key=lambda i: images.hashes[i])
    return images.subset(order[:most])
