"""Opens the data of a run: batches, class weights, what a teacher says."""

from dataclasses import dataclass

from keras_ci2p.data.latent_cache import PROJECTION, LatentCache
from keras_ci2p.data.latent_loader import latent_folder
from keras_ci2p.data.loader import DataLoader, image_folder
from keras_ci2p.data.manifest import DataError, ImageManifest, summarize
from keras_ci2p.data.sources import open_data
from keras_ci2p.names import TEACHERS
from keras_ci2p.training.configs import NO_TEACHER
from keras_ci2p.training.distillation import FeatureProjection, TeacherTargets, load_teacher, resized, teacher_top1
from keras_ci2p.training.latents import open_codec
from keras_ci2p.training.optim import balanced_weights
from keras_ci2p.training.run_dir import RunError, check_contents, check_same
from keras_ci2p.training.teacher import teacher_sha256


@dataclass(frozen=True)
class TrainData:
    """The data of a run.

    Attributes:
        images: All images, `ImageManifest` or `LatentCache`.
        train, val: Their batches.
        targets: `TeacherTargets` of a teacher that is asked while training, or None.
        teacher: What is known of the teacher, a dict, or None.
        class_weights: One weight for each class, or None.
        record: What the run's record says of them.
        are_latents: Whether the batches are of latents.
    """

    images: ImageManifest | LatentCache
    train: DataLoader
    val: DataLoader
    targets: TeacherTargets | None
    teacher: dict | None
    class_weights: list | None
    record: dict
    are_latents: bool


def load_data(settings, cache, builder, devices, run_dir, previous, verbose):
    """Opens the `TrainData` of a run.

    Args:
        settings: `TrainConfig`.
        cache: The `LatentCache` that is trained on, or None.
        builder: `ModelBuilder`, which knows the size of a patch and what the model begins with.
        devices: `Devices`, which tell the part of each training batch to load.
        run_dir: Directory of the run.
        previous: The record of the run that is taken up, or None.
        verbose: Whether to print what was found.

    Raises:
        DataError: Data that cannot be used.
        RunError: Other data than the run was begun with; class weights of unknown classes.
    """
    images = open_data(settings.data) if cache is None else cache
    if verbose:
        print(summarize(images), flush=True)
    record, compressor = {"sha256": images.sha256, "photos": images.counts()}, None
    if cache is not None:
        record.update(latents=cache.manifest["settings"], compressor=cache.fingerprint)
    elif images.compressed:
        compressor = open_codec(settings.compressor or settings.init).compressor
        record.update(compressed=True, compressor=compressor.analysis.weights_hash())
        if verbose:
            print(
                "Latents are cropped to the image size, at random places, and flipped, as they are: crop_area and "
                "crop_aspect do not apply.",
                flush=True,
            )
    if previous is not None and (cache is None) != ("latents" not in previous["data"]):
        raise RunError(f"A run on images cannot go on with latents, or the reverse. Received: data={settings.data!r}")
    check_same("data", record, previous)
    check_contents(settings, previous, builder.contents)
    record.update(builder.contents)
    targets, teacher = find_teacher(settings, images, builder.patch_size, run_dir, previous, verbose)
    if teacher is not None:
        features = [{key: value for key, value in row.items() if key != "steps"} for row in teacher["features"]]
        record["teacher"] = {**teacher, "features": features}
    if cache is not None:
        # More of them may have been made since.
        record["views"] = cache.views("train")
        if verbose and previous is not None and previous["data"].get("views", record["views"]) != record["views"]:
            print(f"The cache has {record['views']} views of each photo by now, all of which are used.", flush=True)
    class_weights = _class_weights(settings.class_weights, images)
    train, val = _open_batches(settings, images, compressor, builder.patch_size, devices, targets, teacher)
    are_latents = cache is not None or compressor is not None
    return TrainData(images, train, val, targets, teacher, class_weights, record, are_latents)


def _open_batches(settings, images, compressor, patch_size, devices, targets, teacher):
    """`(training, validation)` batches; `compressor` is that of `.ci2p` files."""
    recipe = settings.recipe
    common = {"batch_size": recipe.batch_size, "num_workers": settings.num_workers, "num_threads": devices.num_threads}
    training = {
        "seed": settings.seed,
        "mixup": recipe.mixup,
        "cutmix": recipe.cutmix,
        "mix_probability": recipe.mix_probability,
        "shard": devices.shard,
    }
    if isinstance(images, LatentCache):
        load = latent_folder
        training.update(temperature=None if teacher is None else recipe.distill_temperature)
    elif compressor is not None:
        load = latent_folder
        common.update(compressor=compressor, image_size=recipe.image_size)
        training.update(augment=recipe.augmentation)
    else:
        load = image_folder
        common.update(image_size=recipe.image_size, patch_size=patch_size)
        training.update(augment=recipe.augmentation, augment_on=settings.augment, in_memory=settings.in_memory)
        training.update(targets=None if targets is None else targets.live(recipe.distill_temperature))
    return load(images, split="train", **training, **common), load(images, split="val", **common)


def _class_weights(wanted, images):
    """One weight for each class, or None."""
    if wanted is None:
        return None
    if wanted == "balanced":
        return balanced_weights(list(images.split("train").counts().values()))
    unknown = sorted(set(wanted) - set(images.class_names))
    if unknown:
        raise RunError(
            f"Class weights are given for {', '.join(unknown)}, which {images.root} does not have. It has: "
            f"{', '.join(images.class_names)}"
        )
    return [float(wanted.get(name, 1)) for name in images.class_names]


def find_teacher(settings, images, patch_size, run_dir, previous, verbose):
    """The teacher of a run.

    Args:
        settings: `TrainConfig`.
        images: All images, `ImageManifest` or `LatentCache`.
        patch_size: Height and width of a token in pixels.
        run_dir: Directory of the run.
        previous: The configuration of the run that is taken up, or None.
        verbose: Whether to print what is known of it.

    Returns:
        `(targets, description)`: `TeacherTargets` of one that is asked while training, else None; what is known of the
        teacher, a dict, None without one.

    Raises:
        DataError: A latent cache without targets, or with those of another teacher.
        RunError: Another teacher than the run was begun with.
    """
    targets = description = None
    if settings.teacher != NO_TEACHER:
        if isinstance(images, LatentCache):
            description = _stored_teacher(settings, images)
        elif settings.teacher is not None:
            targets, description = _asked_teacher(settings, images, patch_size, run_dir, previous, verbose)
    if previous is not None:
        sha256 = (description or {}).get("sha256")
        check_same("data", {"teacher.sha256": sha256}, previous)
    if verbose and description is not None:
        without = " --teacher none: from the labels alone." if targets is None else ""
        print(
            f"Learning from the teacher {description['name']}, top-1 {description['val_top1']:.2%} itself.{without}",
            flush=True,
        )
    return targets, description


def _stored_teacher(settings, cache):
    if settings.teacher is None:
        return cache.teacher
    if cache.teacher is None:
        raise DataError(
            f"The latent cache {cache.root} holds no targets of a teacher. Make a new one: keras-ci2p cache DATA OUT "
            f"--teacher {settings.teacher}"
        )
    if settings.teacher in TEACHERS:
        is_same = settings.teacher == cache.teacher["name"]
    else:
        is_same = teacher_sha256(settings.teacher) == cache.teacher["sha256"]
    if not is_same:
        raise DataError(
            f"The latent cache {cache.root} holds the targets of another teacher: {cache.teacher['name']}, SHA-256 "
            f"{cache.teacher['sha256']}. Received: teacher={settings.teacher!r}"
        )
    return cache.teacher


def _asked_teacher(settings, images, patch_size, run_dir, previous, verbose):
    options = settings.teacher_size, settings.teacher_range, settings.teacher_features
    teacher = load_teacher(settings.teacher, images, *options, verbose=verbose)
    if previous is not None and (run_dir / PROJECTION).is_file():
        projection = FeatureProjection.from_bytes((run_dir / PROJECTION).read_bytes())
        return TeacherTargets(teacher, projection), {**previous["data"]["teacher"], "sha256": teacher.sha256}
    if verbose:
        print(f"Looking at the teacher {teacher.name} ...", flush=True)
    recipe = settings.recipe
    targets = TeacherTargets(teacher)
    views = image_folder(
        images,
        split="train",
        augment=recipe.augmentation,
        seed=settings.seed,
        batch_size=32,
        image_size=recipe.image_size,
        patch_size=patch_size,
    )
    side = recipe.image_size // patch_size
    targets.fit((resized(images, teacher.image_size) for images, _ in views), (side, side))
    return targets, {**targets.describe(), "val_top1": teacher_top1(teacher, images.split("val"))}
