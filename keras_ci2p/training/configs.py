"""Settings of what takes long: training classifiers and compressors, comparing backends. Imports no Keras."""

import argparse
import json
import numbers
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self

from keras_ci2p.backend import MATMUL_PRECISIONS
from keras_ci2p.codec.ms_ssim import LEAST_SIDE
from keras_ci2p.config import NONE, Config
from keras_ci2p.names import (
    AUXILIARY_LEARNING_RATE,
    CLIP_NORM,
    HYPERPRIORS,
    METRICS,
    MODELS,
    NO_COMPRESSOR,
    QUALITIES,
    VARIANTS,
    WHOLE,
)
from keras_ci2p.setting import setting
from keras_ci2p.training.recipes import (
    DEFAULT_RECIPE,
    RECIPES,
    Recipe,
    add_recipe_flags,
    changes_of_recipe,
    recipe_from_args,
)

BACKENDS = ("torch", "jax", "tensorflow")
AUGMENTED_ON = ("host", "device")

# The compressor of a new CI2P-ViT, and the words for none.
DEFAULT_COMPRESSOR = "bmshj2018-factorized-mse-5-photos"
NO_TEACHER = NONE

# What records that leave this machine, and the commands of model cards, say in place of paths.
DATA, INIT, COMPRESSOR, TEACHER = "$DATA", "$INIT", "$COMPRESSOR", "$TEACHER"


def _read_class_weights(value):
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, str) and value != "balanced":
        pairs = [pair.rpartition("=") for pair in value.split(",")]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError
        value = {name: float(number) for name, _, number in pairs}
    if isinstance(value, dict):
        is_weight = [isinstance(weight, numbers.Real) and 0 <= weight < float("inf") for weight in value.values()]
        if not value or not all(is_weight):
            raise ValueError
        return {str(name): float(weight) for name, weight in value.items()}
    if value not in (None, "balanced"):
        raise ValueError
    return value


def _read_devices(value):
    if isinstance(value, str) and value != "all":
        value = int(value)
    if value not in (None, "all") and (isinstance(value, bool) or int(value) != value or value < 1):
        raise ValueError
    return value if value in (None, "all") else int(value)


def _read_teacher_range(value):
    if value is None:
        return None
    if isinstance(value, str):
        value = json.loads(value if value.startswith("[") else f"[{value}]")
    low, high = (tuple(map(float, end)) if isinstance(end, (list, tuple)) else float(end) for end in value)
    return low, high


def _optional_data(value):
    return None if value in (None, NONE) else str(value)


# For help texts.
VARIANT_NAMES = f"{', '.join(list(VARIANTS)[:-1])} or {list(VARIANTS)[-1]}"


class TrainConfig(Config):
    """Settings of `train`; with the data, the versions and the backend they determine the result.

    Raises:
        ValueError: A value out of its range, or settings that do not go together.

    Examples:
        >>> settings = keras_ci2p.training.TrainConfig(data="photos", variant="small", seed=1)
        >>> settings.model, settings.recipe.epochs
        ('ci2p', 30)
    """

    groups = {
        "model": ("model", "variant", "init", "compressor", "freeze_compressor"),
        "teacher": ("teacher", "teacher_size", "teacher_range", "teacher_features"),
        "recipe": ("class_weights", "max_minutes"),
        "computing": (),
    }

    data: str = setting(
        help="folder with one subfolder of images, or of .ci2p files, per class, tfds:NAME, or a latent cache",
        flag="DATA",
        placeholder=DATA,
    )
    model: str = setting("ci2p", "architecture", "--model", choices=MODELS)
    variant: str | None = setting(
        None, f"size: {VARIANT_NAMES}; default: tiny, with --init that of its model", "--variant"
    )
    recipe: Recipe = setting(RECIPES[DEFAULT_RECIPE], "`Recipe` of the run")
    seed: int = setting(0, "of all that is left to chance", "--seed", at_least=0, below=2**32)
    init: str | None = setting(
        None,
        "preset or run whose weights to fine-tune; the head is kept where the classes are the same",
        "--init",
        metavar="RUN|PRESET",
        placeholder=INIT,
    )
    compressor: str | None = setting(
        None,
        "trained compressor to begin with: a preset, a name such as bmshj2018-factorized-mse-5, or a CompressAI "
        f"checkpoint; none: random weights; default: that of --init or of the latents, else {DEFAULT_COMPRESSOR}",
        "--compressor",
        metavar="NAME|PATH",
        placeholder=COMPRESSOR,
    )
    freeze_compressor: bool | None = setting(
        None, "keep the compressor's weights; default: keep trained ones, train random ones", "--freeze-compressor"
    )
    teacher: str | None = setting(
        None,
        "learn from a trained classifier too: efficientnet-lite2 (ImageNet's features and a probe that is fitted to "
        "DATA; extra teacher), an .onnx, OpenVINO's .xml or .keras file, a preset or training run; none: not even that "
        "of a latent cache",
        "--teacher",
        metavar="NAME|PATH",
        placeholder=TEACHER,
    )
    teacher_size: int | None = setting(
        None, "height and width of its images; default: as its file says", "--teacher-size", at_least=1
    )
    teacher_range: tuple | None = setting(
        None,
        "what black and white are for it, such as --teacher-range=-1,1; default: as its file says",
        "--teacher-range",
        metavar="LOW,HIGH",
        read=_read_teacher_range,
        expected="two numbers LOW,HIGH, such as 0,1, or [[R,G,B],[R,G,B]]",
    )
    teacher_features: tuple[str, ...] | None = setting(
        None,
        "its layers, or its file's outputs, whose feature maps are learned, the finest first, '' for none; default: "
        "outputs called features_*",
        "--teacher-features",
        metavar="NAME,...",
    )
    dtype: str = setting("float32", "Keras dtype policy: float32 (default), mixed_bfloat16, mixed_float16", "--dtype")
    matmul_precision: str | None = setting(
        None,
        "of the products of float32 matrices, where the processor is faster with fewer bits: GPUs of NVIDIA, with "
        "torch also CPUs with AMX; default: the backend's own",
        "--matmul-precision",
        choices=MATMUL_PRECISIONS,
    )
    augment: str = setting(
        "host",
        "augment while images are loaded (host, the default), or inside the compiled step (device), where a GPU waits "
        "for its data",
        "--augment",
        choices=AUGMENTED_ON,
    )
    in_memory: bool = setting(
        False, "with --augment device: keep the images, so that each is decoded once", "--in-memory", machine_only=True
    )
    class_weights: str | dict | None = setting(
        None,
        "weigh classes in the loss; balanced: each class counts alike; a class that is missing has weight 1",
        "--class-weights",
        metavar="balanced|CLASS=X,...",
        read=_read_class_weights,
        expected="balanced or CLASS=NUMBER,... with numbers of at least 0",
    )
    devices: str | int | None = setting(
        None,
        "train on several devices; torch: start with torchrun; default: Keras's own choice of one",
        "--devices",
        metavar="all|N",
        machine_only=True,
        read=_read_devices,
        expected='"all" or an integer of at least 1',
    )
    num_workers: int = setting(
        0, "processes that load images; 0: threads of this one", "--workers", at_least=0, machine_only=True
    )
    deterministic: bool = setting(False, "the same result each time, slower (torch: one thread)", "--deterministic")
    tensorboard: bool = setting(False, "write RUN/tensorboard too", "--tensorboard", machine_only=True)
    max_minutes: float | None = setting(
        None,
        "measure an epoch first and train as many as fit into X minutes, one at least, in place of --epochs; the "
        "warm-up keeps its share of them",
        "--minutes",
        above=0,
        formerly=("minutes",),
    )

    def _check(self):
        if self.init is not None and self.variant is not None:
            raise ValueError(f"The size is that of init={self.init!r}. Received also: variant={self.variant!r}")
        if self.init is None and self.variant is None:
            object.__setattr__(self, "variant", "tiny")
        if self.in_memory and self.augment != "device":
            raise ValueError(f"in_memory goes with augment='device'. Received: augment={self.augment!r}")
        if self.model == "vit":
            self._refuse(("compressor", "freeze_compressor"), "a compressor, which model='vit' has not")
        if self.teacher in (None, NO_TEACHER):
            self._refuse(self.groups["teacher"][1:], "a teacher")
        elif self.augment == "device":
            raise ValueError("A teacher looks at images that are augmented on the host. Received: augment='device'")

    def _refuse(self, names, reason):
        """Raises ValueError where one of some settings is given."""
        for name in names:
            if getattr(self, name) not in (None, NONE):
                raise ValueError(f"{name} goes with {reason}. Received: {name}={getattr(self, name)!r}")

    def for_data(self, is_latent_cache: bool, are_compressed: bool = False) -> Self:
        """This config, checked against the kind of its data, with the compressor that is meant.

        Args:
            is_latent_cache: Whether `data` is a latent cache, which has its compressor and its teacher's targets.
            are_compressed: Whether `data` are `.ci2p` files, which hold no pixels.

        Raises:
            ValueError: Settings that do not go with such data.
        """
        if is_latent_cache or are_compressed:
            self._check_latents(
                f"{self.data} is a latent cache" if is_latent_cache else f"{self.data} holds .ci2p files"
            )
        if is_latent_cache:
            reason = "a teacher that is asked while training, not with a latent cache, which has its targets"
            self._refuse(self.groups["teacher"][1:], reason)
        elif are_compressed:
            self._refuse(self.groups["teacher"], "pixels, which .ci2p files do not hold")
        elif self.teacher not in (None, NO_TEACHER) and self.num_workers:
            raise ValueError(f"A teacher is asked by threads of this process. Received: num_workers={self.num_workers}")
        has_compressor = self.init is not None or is_latent_cache
        if has_compressor and self.model != "vit" and self.compressor == NO_COMPRESSOR:
            raise ValueError(f"The compressor is that of init or data. Received also: compressor={NO_COMPRESSOR!r}")
        if self.model == "vit" or has_compressor or self.compressor is not None:
            return self
        return replace(self, compressor=DEFAULT_COMPRESSOR)

    def _check_latents(self, where):
        """Raises ValueError for settings that need pixels."""
        if self.model == "vit":
            raise ValueError(f"{where}; train the model ci2p or ci2p_dual on it. Received: model={self.model!r}")
        if self.freeze_compressor is False:
            raise ValueError(f"{where}: its compressor cannot be trained. Received: freeze_compressor=False")
        if self.augment == "device":
            raise ValueError(f"{where}: what is augmented there is images. Received: augment='device'")

    @classmethod
    def add_flags(
        cls,
        parser: Any,
        prefix: str = "",
        group: Any = None,
        names: Iterable[str] | None = None,
        optional: Iterable[str] = (),
    ) -> None:
        super().add_flags(parser, prefix, group, names, optional)
        if names is not None:
            return
        (recipe,) = (group for group in parser._action_groups if group.title == "recipe")
        add_recipe_flags(recipe, "the recipe")
        Recipe.add_flags(recipe, prefix="recipe.", group=recipe)

    @classmethod
    def from_args(cls, args: argparse.Namespace, **values: Any) -> Self:
        config = super().from_args(args, recipe=recipe_from_args(args), **values)
        given = [name for name in ("epochs", "warmup_epochs") if name in changes_of_recipe(args)]
        if config.max_minutes is not None and given:
            raise ValueError(f"--minutes chooses the epochs, and the warm-up with them. Received also: {given[0]}")
        return config

    def command_line(
        self, base: Self | None = None, always: Iterable[str] = (), without: Iterable[str] = (), prefix: str = ""
    ) -> list[str]:
        """As `Config.command_line`; with `max_minutes`, without the recipe's epochs, which the run chooses."""
        words = super().command_line(base, always, (*without, "recipe"), prefix)
        if "recipe" in without:
            return words
        chosen = () if self.max_minutes is None else ("epochs", "warmup_epochs")
        return words + self.recipe.command_line(RECIPES[DEFAULT_RECIPE], without=chosen)


class CompressorTrainConfig(Config):
    """Settings of `train_compressor`; with the data, the versions and the backend they determine the result.

    Raises:
        ValueError: A value out of its range, or settings that do not go together.

    Examples:
        >>> settings = keras_ci2p.training.CompressorTrainConfig(data="photos", quality=3)
        >>> settings.metric, settings.steps
        ('mse', 20000)
    """

    data: str = setting(
        help="folder of images, with or without subfolders or with folders train and val, or tfds:NAME",
        flag="DATA",
        placeholder=DATA,
    )
    architecture: str | None = setting(
        None, f"default: {WHOLE[0]}, with --init that of its compressor", "--architecture", choices=WHOLE
    )
    quality: int | None = setting(
        None,
        "1..8, which sets lambda and the channels; default: 5, or that of --init, whose channels another must have",
        "--quality",
        at_least=min(QUALITIES),
        at_most=max(QUALITIES),
    )
    metric: str = setting(
        METRICS[0], "the error: mse, or ms-ssim for 1 - MS-SSIM, of at least 161 px", "--metric", choices=METRICS
    )
    lmbda: float | None = setting(None, "weight of the error; default: that of quality and metric", "--lmbda", above=0)
    steps: int = setting(20000, "training steps in all", "--steps", at_least=1)
    steps_per_epoch: int = setting(
        500, "steps between two measurements and checkpoints", "--steps-per-epoch", at_least=1
    )
    crop_size: int = setting(
        256, "sides of the random crops, a multiple of 16 (hyperpriors: 64)", "--crop-size", at_least=1, multiple_of=16
    )
    batch_size: int = setting(16, "crops of a step", "--batch-size", at_least=1)
    learning_rate: float = setting(
        1e-4,
        "at the beginning; it falls to nothing along a cosine. CompressAI's, for millions of steps",
        "--lr",
        above=0,
    )
    auxiliary_learning_rate: float = setting(
        AUXILIARY_LEARNING_RATE, "of the quantiles, constant", "--auxiliary-lr", above=0
    )
    clip_grad_norm: float | None = setting(
        CLIP_NORM, "largest norm of the gradients", "--clip-norm", above=0, formerly=("clip_norm",)
    )
    seed: int = setting(0, "of all that is left to chance", "--seed", at_least=0, below=2**32)
    init: str | None = setting(
        None,
        "compressor to begin with, as in train; it sets the architecture",
        "--init",
        metavar="NAME|PATH",
        placeholder=INIT,
    )
    val_images: int = setting(
        100,
        "validation images to measure on",
        "--val-images",
        at_least=1,
        formerly=("val_pictures",),
        old_flags=("--val-pictures",),
    )
    val_size: int = setting(
        256,
        "sides of their central crops, a multiple of 16 (hyperpriors: 64); smaller images are enlarged",
        "--val-size",
        at_least=1,
        multiple_of=16,
    )
    dtype: str = setting("float32", "Keras dtype policy", "--dtype", metavar="POLICY")
    num_workers: int = setting(
        0, "processes that load images; 0: threads of this one", "--workers", at_least=0, machine_only=True
    )
    deterministic: bool = setting(False, "the same result each time, slower", "--deterministic")

    def _check(self):
        for name, default in (("architecture", WHOLE[0]), ("quality", 5)):
            if self.init is None and getattr(self, name) is None:
                object.__setattr__(self, name, default)
        step = 64 if self.architecture in HYPERPRIORS else 16
        least = LEAST_SIDE if self.metric == "ms-ssim" else step
        for name in ("crop_size", "val_size"):
            size = getattr(self, name)
            if size % step or size < least:
                what = f"a multiple of {step}, at least {least}, for {self.architecture} and {self.metric}"
                raise ValueError(f"{name} must be {what}. Received: {name}={size}")

    @classmethod
    def _from_older(cls, values):
        """0.1.0, which knew no `metric`, recorded an architecture and a quality beside `init` that did not count."""
        ignored = ("architecture", "quality") if values.get("init") is not None and "metric" not in values else ()
        return {name: value for name, value in values.items() if name not in ignored}


class CompareConfig(Config):
    """Settings of `keras_ci2p.compare.compare`.

    Raises:
        ValueError: A value out of its range.

    Examples:
        >>> settings = keras_ci2p.compare.CompareConfig(backends=("torch", "jax"), variant="tiny")
        >>> settings.batch_size, settings.steps
        (8, 10)
    """

    backends: tuple[str, ...] = setting(
        BACKENDS,
        "torch, jax, tensorflow (default: all); the first that works is what the others are compared with",
        "--backends",
        metavar="NAME",
        choices=BACKENDS,
    )
    model: str = setting("ci2p", "architecture", "--model", choices=MODELS)
    variant: str = setting("base", f"size: {VARIANT_NAMES}", "--variant")
    image_size: int = setting(256, "height and width in pixels", "--image-size", at_least=1)
    batch_size: int = setting(8, "images of a step", "--batch-size", at_least=1)
    steps: int = setting(
        10, "of training, at least 3: the first compiles, and one tells no spread", "--steps", at_least=3
    )
    data: str | None = setting(
        None,
        "folder with one subfolder of images per class, or tfds:NAME; default: none, smooth synthetic images",
        "--data",
        read=_optional_data,
        expected="a folder, tfds:NAME or none",
    )
    dtype: str = setting("float32", "Keras dtype policy: float32 (default), mixed_bfloat16, mixed_float16", "--dtype")
    seed: int = setting(0, "of weights, images and augmentation", "--seed", at_least=0, below=2**32)

    def _check(self):
        if not self.backends or len(set(self.backends)) < len(self.backends):
            raise ValueError(f"backends must be different ones, one at least. Received: backends={self.backends!r}")
