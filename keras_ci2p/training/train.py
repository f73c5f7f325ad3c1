"""A training run of a classifier: a directory from which it can be taken up again."""

import inspect
import time
from dataclasses import replace
from typing import Any

import keras

from keras_ci2p.backend import environment, make_deterministic, open_devices, set_matmul_precision, set_random_seed
from keras_ci2p.codec.file_format import read_compressed
from keras_ci2p.codec.rans import CodecError
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data.latent_cache import PROJECTION, is_latent_cache, open_cache
from keras_ci2p.data.latent_loader import check_latent_augmentation
from keras_ci2p.data.sources import first_compressed
from keras_ci2p.layers.embedding import PATCH_SIZE
from keras_ci2p.models.augmented_classifier import AugmentedClassifier
from keras_ci2p.models.backbone import CompressorMixin
from keras_ci2p.models.ci2p_vit import CLASSIFIERS
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.plots import warn_without_matplotlib
from keras_ci2p.presets import BEST, PresetError, open_preset, preset_of
from keras_ci2p.training.callbacks import (
    ClassifierRecorder,
    DataTimer,
    InterruptCallback,
    MemoryCallback,
    SwapEMA,
    tell_of_compilation,
)
from keras_ci2p.training.configs import TrainConfig
from keras_ci2p.training.distillation import DistilledClassifier, guided_layers
from keras_ci2p.training.latents import analysis_of, cached_compressor, known_compressor
from keras_ci2p.training.optim import SoftTargetCrossentropy, make_optimizer
from keras_ci2p.training.recipes import RECIPES, write_recipe
from keras_ci2p.training.run_dir import (
    LAST,
    RUN_RECORD,
    Checkpoints,
    RunError,
    check_config,
    previous_run,
    recipe_of_latents,
    run_lock,
    warn_of_other_backend,
)
from keras_ci2p.training.time_budget import as_begun, within_budget
from keras_ci2p.training.train_data import load_data
from keras_ci2p.utils import PathLike, clean_up, require, user_path, write_bytes, write_json, wrong_choice

RECIPE = "recipe.toml"


def train(
    settings: TrainConfig, run_dir: PathLike, resume: bool = False, verbose: int = 1
) -> tuple[ImageClassifier, list[dict[str, Any]]]:
    """Trains a model as `settings` say and records the run.

    `run_dir` gets `best/` and `last/` (presets: the weights of the best validation top-1 and the last), `history.csv`,
    `curves.png`, `run.json` (settings, data, versions), `recipe.toml` and `checkpoints/`. Whatever ends the process,
    `resume=True` goes on after the last whole epoch, as if nothing had happened.

    Args:
        settings: `TrainConfig`.
        run_dir: Directory of the run.
        resume: Whether to go on with the run in `run_dir`, else it must be new.
        verbose: As in `fit`.

    Returns:
        `(model, history)`: the model with its last weights, and a list of one dict per epoch.

    Raises:
        RunError: An existing directory without `resume`, one of other settings or data, or one in use by another
            process; a loss that is not finite.
        DataError: Data that cannot be used.
        ValueError: An image size or variant that the model does not take; settings that do not fit a latent cache.

    Examples:
        >>> recipe = keras_ci2p.training.read_recipe("quick")
        >>> recipe = recipe.override({"epochs": 1, "batch_size": 8, "image_size": 32})
        >>> settings = keras_ci2p.training.TrainConfig(data="photos", recipe=recipe)
        >>> model, history = keras_ci2p.training.train(settings, "run", verbose=0)
        >>> keras_ci2p.load_preset("run").class_names
        ['bird', 'cat', 'dog']
    """
    began = time.perf_counter()
    run_dir = user_path(run_dir)
    _require_packages(settings)

    # === Run ===
    on_latents = is_latent_cache(settings.data)
    compressed = None if on_latents else first_compressed(settings.data)
    if compressed is not None:
        settings = _fit_to_file(settings, compressed)
    settings = settings.for_data(on_latents, compressed is not None)
    cache = open_cache(settings.data) if on_latents else None
    if on_latents:
        settings = _fit_to_cache(settings, cache)
    previous = previous_run(run_dir, resume)
    if settings.max_minutes is not None and previous is not None:
        settings = as_begun(settings, previous)
    check_config(settings, previous)

    # === Devices ===
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
    with run_lock(run_dir, devices.is_main_process), devices.scope():
        if devices.is_main_process and previous_run(run_dir, resume) != previous:
            raise RunError(f"Another process has just been at work in {run_dir}.")
        return _train(settings, run_dir, previous, cache, devices, verbose if devices.is_main_process else 0, began)


def _train(settings, run_dir, previous, cache, devices, verbose, began):
    # === Data ===
    # What the model is built from first: a wrong size or variant should not wait for the images.
    builder = ModelBuilder(settings, cache)
    data = load_data(settings, cache, builder, devices, run_dir, previous, verbose)
    # Until here nothing but the lock is written, so that all processes have seen the same directory.
    devices.assert_equal("settings or data", [settings.lasting(), data.record])

    # === Model ===
    run = TrainRun(settings, data, builder, devices)
    if settings.max_minutes is not None and previous is None:
        within_budget(run, began, run_dir, verbose)
    run.build()
    if devices.is_main_process:
        clean_up(run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints", devices.is_main_process)
    record = checkpoints.restore(run.trained_model) or {"history": [], "best": None}
    devices.assert_equal("the checkpoint", record)
    devices.prepare(run.trained_model)
    if previous is not None:
        warn_of_other_backend(previous)
    elif devices.is_main_process:
        _write_records(run, run_dir)

    # === Callbacks ===
    recipe, epochs_done = run.settings.recipe, len(record["history"])
    batches = DataTimer(data.train.repeat(epochs_done))
    ema = SwapEMA() if recipe.ema_momentum else None
    recorder = ClassifierRecorder(
        run_dir,
        record,
        checkpoints if devices.is_main_process else None,
        run.model,
        recipe,
        run.title,
        batches,
        data.train.batch_size,
        data.images,
        ema=ema,
        tensorboard=settings.tensorboard,
        reduce_logs=devices.all_reduce_mean,
        verbose=verbose,
    )

    # === Training ===
    if epochs_done < recipe.epochs and not recorder.patience_is_over:
        callbacks = [*([ema] if ema else []), recorder]
        if verbose:
            tell_of_compilation()
        run.fit(batches, callbacks, initial_epoch=epochs_done, epochs=recipe.epochs, verbose=verbose)
    elif ema:
        # As `fit` does at its end.
        run.trained_model.optimizer.finalize_variable_values(run.trained_model.trainable_variables)
    recorder.write_preset(LAST)
    if verbose:
        best = max(record["history"], key=lambda row: row["val_top1"])
        print(f"Best validation top-1: {best['val_top1']:.2%} in epoch {best['epoch']}. Model: {run_dir / BEST}")
    return run.model, record["history"]


def _require_packages(settings):
    """Raises ImportError, and warns, before hours of work, not after the first epoch."""
    require("grain", extra="train")
    warn_without_matplotlib()
    if settings.tensorboard:
        require("tensorboardX", extra="tensorboard")


def _fit_to_cache(settings, cache):
    """The settings with the image size and augmentation of a latent cache, which its latents are made with.

    Raises:
        ValueError: An image size or augmentation that is neither the cache's nor a recipe's own.
    """
    recipe = settings.recipe.override(recipe_of_latents(cache.manifest["settings"]))
    for name, stored in (("image_size", cache.image_size), ("augmentation", (recipe.augmentation,))):
        asked, defaults = getattr(settings.recipe, name), [getattr(known, name) for known in RECIPES.values()]
        if asked not in stored and asked not in defaults:
            raise ValueError(
                f"{settings.data} is a latent cache, made with {name} {' x '.join(map(str, stored))}, which can no "
                f"longer be changed. Leave {name} out, or make a new cache. Received: {name}={asked}"
            )
    return replace(settings, recipe=recipe)


def _fit_to_file(settings, path):
    """The settings with the compressor that a `.ci2p` file of their data names, unless they have one.

    Raises:
        DataError: An augmentation that takes pixels.
    """
    check_latent_augmentation(settings.recipe.augmentation)
    if settings.compressor is None and settings.init is None and settings.model != "vit":
        try:
            return replace(settings, compressor=known_compressor(read_compressed(path.read_bytes()).name))
        except (OSError, CodecError):
            # It has no name, or is damaged, which is told when all are read.
            pass
    return settings


def _write_records(run, run_dir):
    """Writes what a new run was told and what it found; the record last, since it makes the directory a run."""
    here = {**environment(), "devices": run.devices.describe()}
    try:
        if run.data.targets is not None:
            write_bytes(run_dir / PROJECTION, run.data.targets.projection.to_bytes())
        write_recipe(run_dir / RECIPE, run.settings.recipe)
        write_json(run_dir / RUN_RECORD, {"settings": run.settings.to_dict(), "data": run.data.record, **here})
    except OSError:
        for name in (PROJECTION, RECIPE):
            (run_dir / name).unlink(missing_ok=True)
        raise


class TrainRun:
    """A model with what it is trained on, and how.

    Args:
        settings: `TrainConfig`.
        data: `TrainData`.
        builder: `ModelBuilder`.
        devices: `Devices`.

    Attributes:
        model: The classifier; None until `build`.
        trained_model: The compiled Keras model to `fit`, which shares the classifier's weights: the classifier itself,
            its part after the compressor, or a wrapper that augments or asks a teacher.
    """

    def __init__(self, settings, data, builder, devices):
        self.settings = settings
        self.data = data
        self.devices = devices
        self.model = None
        self.trained_model = None
        self._builder = builder

    @property
    def title(self):
        """Model and image size, in a few words."""
        height, width, _ = self.model.image_shape
        size = height if height == width else f"{height} x {width}"
        return f"{self.settings.model} {self.settings.variant or self.settings.init}, {size} px"

    def build(self):
        """Builds and compiles a new model, each time the same.

        Raises:
            ValueError: Class weights, where the recipe leaves all to the teacher; as in `distilled`.
        """
        settings, data = self.settings, self.data
        recipe = settings.recipe
        set_random_seed(settings.seed)
        self.model = self._builder.build_model(data.images.class_names)
        self.trained_model = self._wrap(self.model)
        self.trained_model.compile(
            optimizer=make_optimizer(recipe, data.train.steps_per_epoch),
            loss=SoftTargetCrossentropy(recipe.label_smoothing, data.class_weights),
            # Weighted, since several devices fill up the last batch of the validation with examples of weight 0.
            weighted_metrics=[
                keras.metrics.CategoricalAccuracy(name="top1"),
                keras.metrics.TopKCategoricalAccuracy(min(5, self.model.num_classes), name="top5"),
            ],
        )
        # Not in the first step: TensorFlow traces a step twice that makes variables.
        self.trained_model.optimizer.build(self.trained_model.trainable_variables)

    def _wrap(self, model):
        settings, teacher = self.settings, self.data.teacher
        inner = model.latent_classifier if self.data.are_latents else model
        if teacher is not None:
            if settings.class_weights is not None and settings.recipe.distill_alpha == 1:
                raise ValueError(
                    "class_weights weigh the labels, which do not count with distill_alpha=1. Set it lower, such as "
                    f"0.5, or leave class_weights out. Received: class_weights={settings.class_weights!r}"
                )
            return distilled(inner, teacher, settings.recipe)
        if settings.augment == "device":
            return AugmentedClassifier(model, model.image_shape[:2], seed=settings.seed)
        return inner

    def fit(self, batches, callbacks, **options):
        """Calls `fit` on endless training batches, with the validation data; Ctrl-C ends it after the current batch."""
        val, interrupt = self.data.val, InterruptCallback()
        with interrupt.watching():
            return self.trained_model.fit(
                batches,
                steps_per_epoch=self.data.train.steps_per_epoch,
                validation_data=self.devices.validation(val.repeat(), len(val.manifest)),
                validation_steps=val.steps_per_epoch,
                callbacks=[*callbacks, MemoryCallback(), interrupt],
                # The dataset shuffles by itself.
                shuffle=False,
                **options,
            )


class ModelBuilder:
    """Builds the classifier of a run; what that takes is read once.

    Args:
        settings: `TrainConfig`.
        cache: The `LatentCache` that is trained on, or None.

    Attributes:
        patch_size: Height and width of a token in pixels.
        contents: Hashes of what the model begins with, by the settings that name it.

    Raises:
        ValueError: An image size or variant that the model does not take.
        PresetError: A preset to begin with that cannot be used.
    """

    def __init__(self, settings, cache):
        self._settings = settings
        self._cache = cache
        self._class = CLASSIFIERS[settings.model]
        self._preset = None if settings.init is None else open_preset(preset_of(settings.init))
        if self._preset is not None and self._preset.is_quantized:
            raise PresetError(
                f"{settings.init} is quantised, so that it cannot be trained. Begin with the preset it was made of."
            )
        self.patch_size = self._read_patch_size()
        size = (settings.recipe.image_size,) * 2 if cache is None else cache.image_size
        if any(side % self.patch_size for side in size):
            raise ValueError(
                f"The images of the model {settings.model} have height and width that are multiples of "
                f"{self.patch_size}. Received: image_size={size[0]}"
            )
        if settings.init is None and settings.variant not in self._class.variants:
            raise ValueError(wrong_choice("variant", settings.variant, self._class.variants))
        self._arguments = {
            "image_shape": (*size, 3),
            "drop_path_rate": settings.recipe.drop_path_rate,
            "dtype": settings.dtype,
        }
        self.contents = {} if self._preset is None else {"init": self._preset.sha256}
        self._checks_compressor = False
        if issubclass(self._class, CompressorMixin):
            self._read_compressor()

    def _read_patch_size(self):
        if issubclass(self._class, CompressorMixin):
            return PATCH_SIZE
        default = inspect.signature(self._class).parameters["patch_size"].default
        if self._preset is None:
            return default
        name = keras.saving.get_registered_name(self._class.backbone_cls)
        return self._preset.config(name, f"a {self._class.__name__}").get("patch_size", default)

    def _read_compressor(self):
        settings, compressor = self._settings, read_compressor(self._settings.compressor)
        if compressor is not None:
            self.contents["compressor"] = analysis_of(compressor).weights_hash()
        # It has made the latents, so the model's must be checked against it, unless it is taken from there.
        self._checks_compressor = self._cache is not None
        if self._cache is not None and compressor is None and settings.init is None:
            compressor, self._checks_compressor = cached_compressor(self._cache), False
        freeze = settings.freeze_compressor
        if freeze is None:
            freeze = any(part is not None for part in (compressor, settings.init, self._cache))
        self._arguments.update(compressor=compressor, freeze_compressor=freeze)

    def build_model(self, class_names):
        """A new classifier that gives logits.

        With `init`, the preset's head is kept where it has the same class names in the same order, else it is new.

        Raises:
            DataError: Its compressor is not the one that has made the latents.
        """
        names = list(class_names)
        head = {"num_classes": len(names), "class_names": names}
        if self._preset is None:
            model = self._class(variant=self._settings.variant, **head, **self._arguments)
        else:
            keeps_head = self._preset.task().get("class_names") == names
            # The loss takes logits, whatever the preset gives.
            model = self._class.from_preset(
                self._preset, activation=None, **({} if keeps_head else head), **self._arguments
            )
        if self._checks_compressor:
            self._cache.check_compressor(model.compressor)
        return model


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
            f"each of them. Received: distill_features={recipe.distill_features}"
        )
    return DistilledClassifier(
        model,
        guided_layers(model, len(channels)),
        channels,
        recipe.distill_alpha,
        recipe.distill_temperature,
        weights,
    )
