"""A training run: a directory from which it can be taken up again."""

import time
import warnings
from pathlib import Path

import keras

from keras_ci2p.backend import environment, make_deterministic, open_devices, set_matmul_precision
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data.latent_cache import PROJECTION, LatentCache, is_latent_cache, open_cache
from keras_ci2p.data.latent_loader import latent_folder
from keras_ci2p.data.loader import image_folder
from keras_ci2p.data.manifest import DataError, summarize
from keras_ci2p.data.sources import open_data
from keras_ci2p.models.augmented_classifier import AugmentedClassifier
from keras_ci2p.models.backbone import CI2PClassifier
from keras_ci2p.models.loading import CLASSIFIERS
from keras_ci2p.plots import warn_without_matplotlib
from keras_ci2p.presets import BEST
from keras_ci2p.training.cache_latents import cached_compressor
from keras_ci2p.training.callbacks import AveragedWeights, RaiseInterrupt, Recorder
from keras_ci2p.training.distillation import (
    DistilledClassifier,
    FeatureProjection,
    TeacherTargets,
    guided_layers,
    load_teacher,
    resized,
    teacher_top1,
)
from keras_ci2p.training.efficientnet import TEACHERS
from keras_ci2p.training.optim import SoftTargetCrossentropy, balanced_weights, make_optimizer
from keras_ci2p.training.recipes import NO_TEACHER, TRAIN_FREE_TO_CHANGE, TrainSettings, write_recipe
from keras_ci2p.training.run_dir import CONFIG, LAST, Checkpoints, RunError, check_same, previous_run
from keras_ci2p.training.teacher import teacher_sha256
from keras_ci2p.training.time_budget import as_begun, within_budget
from keras_ci2p.utils import clean_up, require, write_bytes, write_json

RECIPE = "recipe.toml"


def train(settings, run_dir, resume=False, verbose=1):
    """Trains a model as `settings` say and records the run.

    `run_dir` gets `best/` and `last/` (presets: the weights of the best validation top-1 and the last), `history.csv`,
    `curves.png`, `config.json` (settings, data, versions), `recipe.toml` and `checkpoints/`. Whatever ends the process,
    `resume=True` goes on after the last whole epoch, as if nothing had happened.

    Args:
        settings: `TrainSettings`.
        run_dir: Directory of the run.
        resume: Whether to go on with the run in `run_dir`, else it must be new.
        verbose: As in `fit`.

    Returns:
        `(model, history)`: the model with its last weights, and a list of one dict per epoch.

    Raises:
        RunError: An existing directory without `resume`, or one of other settings or data; a loss that is not finite.
        DataError: Data that cannot be used.
        ValueError: An image size or variant that the model does not take.
    """
    began = time.perf_counter()
    run_dir = Path(run_dir)
    # Before hours of work, not after the first epoch.
    require("grain", extra="train")
    warn_without_matplotlib()
    if settings.tensorboard:
        require("tensorboardX", extra="tensorboard")
    previous = previous_run(run_dir, resume)
    if settings.minutes is not None and previous is not None:
        settings = as_begun(settings, previous)
    check_same("settings", _lasting(settings), previous, _lasting(TrainSettings(settings.data)))
    if settings.deterministic:
        make_deterministic()
    if settings.matmul_precision is not None:
        set_matmul_precision(settings.matmul_precision)
    devices = open_devices(settings.devices)
    devices.check_batch_size(settings.recipe.batch_size)
    if settings.augment == "device" and not devices.keep_batches_whole:
        raise ValueError(
            "augment='device' does not go with several devices of TensorFlow, which take apart what is drawn for a "
            "whole batch. Augment on the host."
        )
    with devices.scope():
        return _train(settings, run_dir, previous, devices, verbose if devices.is_main_process else 0, began)


def _train(settings, run_dir, previous, devices, verbose, began):
    from keras_ci2p.training.callbacks import TimedDataset

    # The model first: a wrong size or variant should not wait for the photos.
    parts = ModelParts(settings)
    size_multiple = parts.make(("a", "b")).size_multiple
    photos = open_data(settings.data) if parts.cache is None else parts.cache
    if verbose:
        print(summarize(photos), flush=True)
    data = {"sha256": photos.sha256, "photos": photos.counts()}
    if parts.cache is not None:
        data.update(latents=parts.cache.manifest["settings"], compressor=parts.cache.fingerprint)
    check_same("data", data, previous)
    targets, teacher = find_teacher(settings, photos, size_multiple, run_dir, previous, verbose)
    if teacher is not None:
        data["teacher"] = _in_short(teacher)
    if parts.cache is not None:
        # More of them may have been made since.
        data["views"] = parts.cache.views("train")
        if verbose and previous is not None and previous["data"].get("views", data["views"]) != data["views"]:
            print(f"The cache has {data['views']} views of each photo by now, all of which are used.", flush=True)
    # Until here nothing is written, so that all processes have seen the same directory.
    devices.assert_equal("settings or data", [_lasting(settings), data])
    class_weights = _class_weights(settings.class_weights, photos)

    train_data, val_data = make_inputs(settings, photos, size_multiple, devices, targets, teacher)

    def make_learner(recipe):
        """`(classifier, compiled model to fit)`, each time the same."""
        keras.utils.set_random_seed(settings.seed)
        model = parts.make(photos.class_names)
        learner = parts.learner(model, teacher, recipe)
        learner.compile(
            optimizer=make_optimizer(recipe, train_data.steps_per_epoch),
            loss=SoftTargetCrossentropy(recipe.label_smoothing, class_weights),
            # Weighted, since several devices fill up the last batch of the validation with examples of weight 0.
            weighted_metrics=[
                keras.metrics.CategoricalAccuracy(name="top1"),
                keras.metrics.TopKCategoricalAccuracy(min(5, model.num_classes), name="top5"),
            ],
        )
        return model, learner

    if settings.minutes is not None and previous is None:
        settings = within_budget(settings, began, make_learner, train_data, val_data, devices, run_dir, verbose)
    recipe = settings.recipe
    model, learner = make_learner(recipe)
    if devices.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        clean_up(run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    record = checkpoints.restore(learner) or {"history": [], "best": None}
    devices.assert_equal("the checkpoint", record)
    devices.prepare(learner)
    if previous is None:
        if devices.is_main_process:
            here = {**environment(), "devices": devices.describe()}
            if targets is not None:
                write_bytes(run_dir / PROJECTION, targets.projection.to_bytes())
            write_json(run_dir / CONFIG, {"settings": settings.as_dict(), "data": data, **here})
            write_recipe(run_dir / RECIPE, recipe)
    elif previous.get("backend") != keras.backend.backend():
        warnings.warn(
            f"This run was begun on {previous.get('backend')} and goes on with {keras.backend.backend()}: "
            "the result will differ from one made on one backend.",
            stacklevel=3,
        )
    averaging = AveragedWeights() if recipe.ema else None
    epochs_done = len(record["history"])
    timed = TimedDataset(train_data.repeat(epochs_done))
    recorder = Recorder(
        run_dir,
        model,
        record,
        checkpoints if devices.is_main_process else None,
        timed,
        train_data.manifest,
        photos,
        averaging,
        settings,
        reduce_logs=devices.all_reduce_mean,
        verbose=verbose,
    )
    if epochs_done < recipe.epochs and not recorder.patience_is_over:
        interrupt = RaiseInterrupt()
        with interrupt.watching():
            learner.fit(
                timed,
                steps_per_epoch=train_data.steps_per_epoch,
                validation_data=devices.validation(val_data.repeat(), len(val_data.manifest)),
                validation_steps=val_data.steps_per_epoch,
                initial_epoch=epochs_done,
                epochs=recipe.epochs,
                callbacks=[*([averaging] if averaging else []), recorder, interrupt],
                # The dataset shuffles by itself.
                shuffle=False,
                verbose=verbose,
            )
    elif averaging:
        # As `fit` does at its end.
        learner.optimizer.finalize_variable_values(learner.trainable_variables)
    recorder.write_preset(LAST)
    if verbose:
        best = max(record["history"], key=lambda row: row["val_top1"])
        print(f"Best validation top-1: {best['val_top1']:.2%} in epoch {best['epoch']}. Model: {run_dir / BEST}")
    return model, record["history"]


def _class_weights(wanted, photos):
    """One weight for each class, or None."""
    if wanted is None:
        return None
    if wanted == "balanced":
        return balanced_weights(list(photos.split("train").counts().values()))
    unknown = sorted(set(wanted) - set(photos.class_names))
    if unknown:
        raise RunError(
            f"Class weights are given for {', '.join(unknown)}, which {photos.root} does not have. It has: "
            f"{', '.join(photos.class_names)}"
        )
    return [float(wanted.get(name, 1)) for name in photos.class_names]


def _lasting(settings):
    return {key: value for key, value in settings.as_dict().items() if key not in TRAIN_FREE_TO_CHANGE}


def _in_short(teacher):
    """What a run's record says of its teacher."""
    features = [{key: value for key, value in row.items() if key != "steps"} for row in teacher["features"]]
    return {**teacher, "features": features}


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
        common.update(image_size=recipe.image_size, patch_size=size_multiple)
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


class ModelParts:
    """What the model of a run is made from.

    Args:
        settings: `TrainSettings`.

    Attributes:
        cache: The `LatentCache` that is trained on, or None.

    Raises:
        ValueError: Settings that do not fit the latent cache.
    """

    def __init__(self, settings):
        self._settings = settings
        self._class = CLASSIFIERS[settings.model]
        self.cache = open_cache(settings.data) if is_latent_cache(settings.data) else None
        self._compressor = read_compressor(settings.compressor)
        self._freeze = settings.freeze_compressor
        if self._freeze is None:
            begins_trained = (self._compressor, settings.init, self.cache)
            self._freeze = any(part is not None for part in begins_trained)
        size = settings.recipe.image_size
        self._image_size = (size, size)
        if self.cache is not None:
            self._check_fits_cache()
            self._image_size = self.cache.image_size
            if self._compressor is None and settings.init is None:
                self._compressor = cached_compressor(self.cache)

    def _check_fits_cache(self):
        where = f"{self._settings.data} is a latent cache"
        if not issubclass(self._class, CI2PClassifier):
            raise ValueError(
                f"{where}; train the model ci2p or ci2p_dual on it. Received: model={self._settings.model!r}"
            )
        if not self._freeze:
            raise ValueError(f"{where}: its compressor cannot be trained. Received: freeze_compressor=False")
        if self._settings.augment == "device":
            raise ValueError(f"{where}: its views are augmented already. Received: augment='device'")

    def make(self, class_names):
        """A new classifier.

        With `init`, the preset's head is kept where it has the same class names in the same order, else it is new.
        """
        settings = self._settings
        names = list(class_names)
        arguments = {
            "image_shape": (*self._image_size, 3),
            "drop_path_rate": settings.recipe.drop_path_rate,
            "dtype": settings.dtype,
        }
        if issubclass(self._class, CI2PClassifier):
            arguments.update(freeze_compressor=self._freeze, compressor=self._compressor)
        if settings.init is None:
            model = self._class(variant=settings.variant, num_classes=len(names), class_names=names, **arguments)
        else:
            model = self._class.from_preset(settings.init, **arguments)
            if model.class_names != names:
                head = {"num_classes": len(names), "class_names": names}
                model = self._class.from_preset(settings.init, **head, **arguments)
        if self.cache is not None:
            self.cache.check_compressor(model.compressor)
        return model

    def learner(self, model, teacher, recipe):
        """The Keras model to `fit`, which shares the classifier's weights.

        Args:
            model: The classifier.
            teacher: What `describe` of the teacher's targets says, or None.
            recipe: `Recipe`.

        Raises:
            ValueError: Class weights, where the recipe leaves all to the teacher; as in `distilled`.
        """
        learner = model if self.cache is None else model.latent_classifier
        if teacher is not None:
            if self._settings.class_weights is not None and recipe.distill_alpha == 1:
                raise ValueError(
                    "class_weights weigh the labels, which do not count with distill_alpha=1. Set it lower, such as "
                    "0.5, or leave class_weights out."
                )
            return distilled(learner, teacher, recipe)
        if self._settings.augment == "device":
            return AugmentedClassifier(model, self._image_size, seed=self._settings.seed)
        return learner


def distilled(model, teacher, recipe):
    """The `DistilledClassifier` of a recipe.

    Args:
        model: What is trained, images or latents to logits.
        teacher: What `TeacherTargets.describe` says.
        recipe: `Recipe`.

    Raises:
        ValueError: More feature maps than the recipe has weights for.
    """
    channels = [row["channels"] for row in teacher["features"]]
    weights = recipe.distill_features[len(recipe.distill_features) - len(channels) :]
    if len(weights) != len(channels):
        raise ValueError(
            f"The teacher {teacher['name']} has {len(channels)} feature maps; distill_features must hold a weight for "
            f"each of them. Received: {recipe.distill_features}"
        )
    return DistilledClassifier(
        model,
        guided_layers(model, len(channels)),
        channels,
        recipe.distill_alpha,
        recipe.distill_temperature,
        weights,
    )
