"""How good a classifier or a compressor is."""

import keras
import numpy as np
from keras import ops

from keras_ci2p.data.loader import image_folder
from keras_ci2p.data.manifest import DataError
from keras_ci2p.data.overlap import MAX_DISTANCE, without_near_copies
from keras_ci2p.data.sources import open_data, scan_images
from keras_ci2p.data.transforms import center_crop, native_center_crop, random_crop
from keras_ci2p.models.rate_distortion import LAMBDAS, distortion_and_rate, psnr
from keras_ci2p.plots import plot_reconstructions

# Images in a row.
SHOWN = 5


def show_reconstructions(path, compressor, pictures, split="val", size=256):
    """Draws the first images that `evaluate_compressor` measures above their reconstructions."""
    batches = [images for images, _ in middle_crops(held_out(pictures, split, SHOWN), size, batch_size=1)]
    reconstructions = [compressor(images, training=False)["x_hat"] for images in batches]
    reconstructions = [ops.convert_to_numpy(x_hat)[0].clip(0, 255) for x_hat in reconstructions]
    images = [batch[0].astype("float32") for batch in batches]
    captions = [
        f"{float(psnr(np.square(restored - image).mean())):.1f} dB, {compressor.bits_per_pixel(batch):.2f} bit/pixel"
        for image, restored, batch in zip(images, reconstructions, batches, strict=True)
    ]
    title = f"{compressor.architecture}, quality {compressor.quality}"
    plot_reconstructions(path, images, reconstructions, captions, title)


def worst_images(report, data, image_size):
    """Reads the images that a report names as `worst`, for `keras_ci2p.plots.plot_worst`.

    Args:
        report: What `evaluate` returned for `data`.
        data: The data that were measured.
        image_size: `(height, width)` of the central crops.

    Returns:
        List of uint8 arrays `(height, width, 3)`.
    """
    manifest = open_data(data).split(report["split"])
    number_of = {file: number for number, file in enumerate(manifest.files)}
    return [center_crop(manifest.open(number_of[row["image"]]), image_size) for row in report["worst"]]


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
            `keras_ci2p.data.overlap.without_near_copies` finds them.
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
        patch_size=model.patch_size,
    )
    # Images that can no longer be read are left out of the batches; so labels come with the images.
    scores, labels = [], []
    progress = keras.utils.Progbar(images.steps_per_epoch, verbose=verbose, unit_name="batch")
    for batch, one_hot in images:
        scores.append(_predict_filled(model, batch, images.batch_size))
        labels.append(one_hot.argmax(-1))
        progress.add(1)
    scores, labels = np.concatenate(scores), np.concatenate(labels)
    files = _files_read(images.manifest, len(labels))
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
        **({"worst": _worst(model, scores, labels, files, class_names, worst)} if worst else {}),
    }


def _predict_filled(model, batch, batch_size):
    """`predict_on_batch` of a batch that is filled up with its last image: another size would be compiled anew.

    Returns:
        The outputs of the batch's own images, arrays as the model nests them.
    """
    count = len(batch)
    outputs = model.predict_on_batch(batch[np.minimum(np.arange(batch_size), count - 1)])
    return keras.tree.map_structure(lambda array: array[:count], outputs)


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


def _share(part, whole):
    return float(part / whole) if whole else None


def evaluate_compressor(compressor, data, split="val", pictures=100, size=256, lmbda=None, batch_size=8, verbose=0):
    """Bits, errors and cost of a compressor, on images that `train_compressor` keeps aside.

    The compressor stays compiled as it was, or not compiled.

    Args:
        compressor: `Compressor` with a factorized prior and a synthesis transform.
        data: Folder of images at any depth, "tfds:NAME" or an `ImageManifest`.
        split: "val", "test" of data that have it, or "all".
        pictures: How many at most, chosen by their contents; None for all.
        size: Height and width of the central crops, a multiple of 16; smaller images are enlarged.
        lmbda: Weight of the squared error; None for that of the compressor's quality.
        batch_size, verbose: As in `evaluate`.

    Returns:
        dict of means over the images: `psnr` in dB, of images clipped to 0..255; `bpp`, bits per pixel; `cost`,
        `lmbda * 255^2 * MSE + bpp`. And `lmbda`, `images`, `size`, `data_sha256`.

    Raises:
        DataError: Data that cannot be used.
        ValueError: A compressor that cannot decode, or whose quality is unknown without `lmbda`.
    """
    if compressor.entropy_bottleneck is None or compressor.synthesis is None:
        raise ValueError(
            f"{compressor.name} has no factorized prior and synthesis transform: it cannot be measured here."
        )
    if lmbda is None and compressor.quality is None:
        raise ValueError("Give `lmbda`: the compressor has no quality that would tell it.")
    lmbda = float(LAMBDAS[compressor.quality] if lmbda is None else lmbda)
    everything = scan_images(data)
    chosen = held_out(everything, split, pictures)
    crops = middle_crops(chosen, size, batch_size)
    rows = []
    progress = keras.utils.Progbar(crops.steps_per_epoch, verbose=verbose, unit_name="batch")
    for batch, _ in crops:
        rows.append(_measure_images(batch, _predict_filled(compressor, batch, crops.batch_size)))
        progress.add(1)
    mse, bpp, decibels = np.concatenate(rows, axis=1).astype("float64")
    return {
        "psnr": float(decibels.mean()),
        "bpp": float(bpp.mean()),
        "cost": float((lmbda * mse + bpp).mean()),
        "lmbda": lmbda,
        "images": len(mse),
        "size": size,
        "data_sha256": everything.sha256,
    }


def _measure_images(images, outputs):
    """Squared error in 0..255^2, bits per pixel and PSNR in dB, clipped, of each image: float32 `(3, batch)`."""
    mse, bpp = distortion_and_rate(images, outputs)
    clipped, _ = distortion_and_rate(images, {**outputs, "x_hat": np.clip(outputs["x_hat"], 0, 255)})
    return np.stack([keras.ops.convert_to_numpy(values) for values in (mse, bpp, psnr(clipped))])


def training_crops(pictures, size, batch_size, seed, num_workers=0):
    """Random crops of the training split, as an endless source of batches; their labels mean nothing."""
    return image_folder(
        pictures,
        split="train",
        image_size=size,
        batch_size=batch_size,
        seed=seed,
        augment=random_crop,
        num_workers=num_workers,
    )


def middle_crops(pictures, size, batch_size):
    """The central crop of each image, in order."""
    return image_folder(pictures, split="all", image_size=size, batch_size=batch_size, augment=native_center_crop)


def held_out(pictures, split="val", most=None):
    """Up to `most` images of a split, chosen by their contents alone."""
    pictures = pictures.split(split)
    order = sorted(range(len(pictures)), key=lambda i: pictures.hashes[i])
    return pictures.subset(order[:most])
