"""What a run learns from: batches, and a teacher."""

from keras_ci2p.data import DataError, image_folder, latent_folder
from keras_ci2p.data.latent_cache import PROJECTION, LatentCache
from keras_ci2p.training.efficientnet import TEACHERS
from keras_ci2p.training.run_directory import check_same
from keras_ci2p.training.settings import NO_TEACHER
from keras_ci2p.training.teacher import teacher_sha256
from keras_ci2p.training.teacher_targets import FeatureProjection, TeacherTargets, load_teacher, resized, teacher_top1


def make_inputs(settings, photos, size_multiple, devices, targets=None, teacher=None):
    """`(training, validation)` datasets.

    Args:
        settings: `TrainSettings`.
        photos: All photos, `ImageManifest` or `LatentCache`.
        size_multiple: What the image size must be a multiple of.
        devices: `Devices`, which tell the part of each training batch to load.
        targets: `TeacherTargets` of a teacher that is asked while training, or None.
        teacher: What is known of the teacher, or None.
    """
    recipe = settings.recipe
    common = {"batch_size": recipe.batch_size, "num_workers": settings.num_workers, "num_threads": devices.num_threads}
    training = {
        "seed": settings.seed,
        "mixup": recipe.mixup,
        "cutmix": recipe.cutmix,
        "mix_probability": recipe.mix_probability,
        "shard": devices.shard,
    }
    if isinstance(photos, LatentCache):
        make = latent_folder
        training.update(temperature=None if teacher is None else recipe.distill_temperature)
    else:
        make = image_folder
        common.update(image_size=recipe.image_size, size_multiple=size_multiple)
        training.update(augment=recipe.augmentation, augment_on=settings.augment, in_memory=settings.in_memory)
        training.update(targets=None if targets is None else targets.live(recipe.distill_temperature))
    return make(photos, split="train", **training, **common), make(photos, split="val", **common)


def find_teacher(settings, photos, size_multiple, run_dir, previous, verbose):
    """The teacher of a run.

    Args:
        settings: `TrainSettings`.
        photos: All photos, `ImageManifest` or `LatentCache`.
        size_multiple: Height and width of a token in pixels.
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
        if isinstance(photos, LatentCache):
            description = _stored_teacher(settings, photos)
        elif settings.teacher is not None:
            targets, description = _asked_teacher(settings, photos, size_multiple, run_dir, previous, verbose)
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


def _asked_teacher(settings, photos, size_multiple, run_dir, previous, verbose):
    options = settings.teacher_size, settings.teacher_range, settings.teacher_features
    teacher = load_teacher(settings.teacher, photos, *options, verbose=verbose)
    if previous is not None and (run_dir / PROJECTION).is_file():
        projection = FeatureProjection.from_bytes((run_dir / PROJECTION).read_bytes())
        return TeacherTargets(teacher, projection), {**previous["data"]["teacher"], "sha256": teacher.sha256}
    if verbose:
        print(f"Looking at the teacher {teacher.name} ...", flush=True)
    recipe = settings.recipe
    targets = TeacherTargets(teacher)
    views = image_folder(
        photos,
        split="train",
        augment=recipe.augmentation,
        seed=settings.seed,
        batch_size=32,
        image_size=recipe.image_size,
        size_multiple=size_multiple,
    )
    side = recipe.image_size // size_multiple
    targets.fit((resized(images, teacher.image_size) for images, _ in views), (side, side))
    return targets, {**targets.describe(), "val_top1": teacher_top1(teacher, photos.split("val"))}
