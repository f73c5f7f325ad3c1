"""Recipes: augmentation, loss, optimizer and schedule of a training run, by name or from a file; latent caches by them.

Imports no Keras.
"""

import argparse
import numbers
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Self

from keras_ci2p.config import Config, read_table
from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation
from keras_ci2p.data.latent_cache import STORES
from keras_ci2p.setting import setting
from keras_ci2p.utils import PathLike, did_you_mean, user_path, write_text


class Recipe(Config):
    """Augmentation, loss, optimizer and schedule of a training run. The defaults are the paper's (section 4.1).

    The code of the paper trains for 500 epochs while its cosine is meant for 300, so that the learning rate rises
    again; here it ends at 300 epochs, and `RECIPES["paper_literal"]` does as the code did.

    Raises:
        ValueError: A value out of its range.

    Examples:
        >>> recipe = keras_ci2p.training.Recipe(epochs=10, mixup=0.0, warmup_epochs=1)
        >>> recipe.learning_rate, recipe.warmup_epochs
        (0.0001, 1.0)
    """

    epochs: int = setting(300, "passes over the training images; the warm-up keeps its share", "--epochs", at_least=1)
    batch_size: int = setting(128, "images of a step, over all devices", "--batch-size", at_least=1)
    image_size: int = setting(256, "height and width, a multiple of 32 (vit: of 16)", "--image-size", at_least=1)
    mixup: float = setting(0.8, "parameter of Mixup's Beta distribution; 0: none", "--mixup", at_least=0)
    cutmix: float = setting(1.0, "the same of CutMix; of both, one is chosen for each batch", "--cutmix", at_least=0)
    mix_probability: float = setting(1.0, "with which a batch is mixed", at_least=0, at_most=1)
    label_smoothing: float = setting(
        0.1, "share of the target that is spread over all classes", "--label-smoothing", at_least=0, below=1
    )
    drop_path_rate: float = setting(
        0.1, "stochastic depth of the last block, rising from 0", "--drop-path-rate", at_least=0, below=1
    )
    learning_rate: float = setting(1e-4, "the highest learning rate", "--lr", above=0)
    warmup_epochs: float = setting(20.0, "linear rise of the learning rate", "--warmup-epochs", at_least=0)
    warmup_init_ratio: float = setting(
        1 / 3, "share of the learning rate where the rise begins", at_least=0, at_most=1, formerly=("warmup_start",)
    )
    min_lr_ratio: float = setting(
        1.25e-6 / 1e-4,
        "share of the learning rate where the cosine ends",
        at_least=0,
        at_most=1,
        formerly=("final_learning_rate",),
    )
    cosine_epochs: float | None = setting(
        None, "length of the half cosine, after which the learning rate rises again; none: the epochs left", above=0
    )
    lr_update: str = setting(
        "epoch",
        "epoch keeps the learning rate through each epoch, batch changes it smoothly",
        choices=("epoch", "batch"),
        formerly=("cosine_steps",),
    )
    weight_decay: float = setting(
        0.05, "of every trained weight, times the learning rate", "--weight-decay", at_least=0
    )
    beta_1: float = setting(0.9, "of AdamW", at_least=0, below=1)
    beta_2: float = setting(0.999, "of AdamW", at_least=0, below=1)
    epsilon: float = setting(1e-8, "of AdamW", above=0)
    clip_grad_norm: float | None = setting(
        None,
        "largest norm of all gradients together; none: no limit",
        "--clip-norm",
        metavar="X|none",
        above=0,
        formerly=("clip_norm",),
    )
    grad_accum_steps: int = setting(
        1, "batches whose gradients are averaged for one update", "--accumulate", at_least=1, formerly=("accumulate",)
    )
    ema_momentum: float = setting(
        0.0,
        "momentum of the moving average of the weights, such as 0.999, which is then validated and saved; 0: none",
        "--ema",
        at_least=0,
        below=1,
        formerly=("ema",),
    )
    ema_warmup: bool = setting(
        False,
        "let that momentum rise, (1 + n) / (10 + n) after n updates at most, so that averages of a short run do not "
        "keep its first weights",
        "--ema-warmup",
    )
    distill_alpha: float = setting(
        1.0,
        "with a teacher, the share of its probabilities in the loss; the labels have the rest",
        at_least=0,
        at_most=1,
    )
    distill_temperature: float = setting(
        1.0, "of the teacher's and the student's probabilities; their divergence counts its square", above=0
    )
    distill_features: tuple[float, ...] = setting(
        (8.0, 8.0, 16.0), "weights of the teacher's feature maps, the finest first; of fewer maps the last", at_least=0
    )
    patience: int | None = setting(
        None,
        "stop after so many epochs without a better validation top-1; none: never",
        "--patience",
        metavar="N|none",
        above=0,
    )
    augmentation: Augmentation = setting(Augmentation(), "`keras_ci2p.data.Augmentation` of each training image")

    def _check(self):
        if self.ema_warmup and not self.ema_momentum:
            raise ValueError("ema_warmup goes with an average: give ema_momentum too. Received: ema_momentum=0")

    def override(self, values: dict[str, Any]) -> Self:
        """This recipe with other values, as `Config.override` takes them.

        Where the epochs change and the warm-up is not given, the warm-up keeps its share of the epochs.
        """
        changed = super().override(values)
        if changed.epochs == self.epochs or "warmup_epochs" in values:
            return changed
        return replace(changed, warmup_epochs=self.warmup_epochs * changed.epochs / self.epochs)

    def command_line(
        self, base: Self | None = None, always: Iterable[str] = (), without: Iterable[str] = (), prefix: str = ""
    ) -> list[str]:
        # Else the warm-up would keep its share of other epochs.
        if self.epochs != (RECIPES["paper"] if base is None else base).epochs and "epochs" not in without:
            always = (*always, "warmup_epochs")
        return super().command_line(base, always, without, prefix)


RECIPES = {
    "paper": Recipe(),
    "paper_literal": Recipe(epochs=500, cosine_epochs=280),
    # For tens of epochs: little augmentation, a higher learning rate, a smooth cosine.
    "quick": Recipe(
        epochs=30,
        batch_size=32,
        mixup=0.0,
        cutmix=0.0,
        learning_rate=5e-4,
        warmup_epochs=3.0,
        lr_update="batch",
        clip_grad_norm=1.0,
        augmentation=CROP_AND_FLIP,
    ),
    # From trained weights: a lower learning rate, most of each image is seen.
    "finetune": Recipe(
        epochs=20,
        batch_size=32,
        mixup=0.0,
        cutmix=0.0,
        learning_rate=5e-5,
        warmup_epochs=1.0,
        lr_update="batch",
        clip_grad_norm=1.0,
        augmentation=replace(CROP_AND_FLIP, crop_area=(0.35, 1.0), erasing=0.1),
    ),
}
# Where none is named.
DEFAULT_RECIPE = "quick"


def read_recipe(source: PathLike) -> Recipe:
    """A recipe by its name, or from a TOML or YAML file.

    A file holds settings of `Recipe`, those of the augmentation in a table `augmentation`, and optionally `base`, the
    name of the recipe that it changes ("paper" where it is missing).

    Args:
        source: A name of `RECIPES`, or the path of a file that ends in .toml, .yaml or .yml.

    Raises:
        ValueError: Unknown name or setting, or a file that cannot be read as such.
        OSError: No such file.

    Examples:
        >>> recipe = keras_ci2p.training.read_recipe("quick").override({"epochs": 60})
        >>> recipe.epochs, recipe.warmup_epochs
        (60, 6.0)
    """
    if source in RECIPES:
        return RECIPES[source]
    path = user_path(source)
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise ValueError(
            f"A recipe is one of {', '.join(RECIPES)}, or a .toml or .yaml file. Received: source={str(source)!r}."
            f"{did_you_mean(source, RECIPES)}"
        )
    try:
        values = read_table(path)
        base = values.pop("base", "paper")
        if base not in RECIPES:
            raise ValueError(f"base must be one of {', '.join(RECIPES)}. Received: {base!r}")
        return RECIPES[base].override(values)
    except ValueError as error:
        raise ValueError(f"The recipe {path} cannot be used: {error}") from error


def write_recipe(path, recipe):
    """Writes a TOML file that `read_recipe` takes."""
    write_text(path, recipe.to_toml())


def add_recipe_flags(group, text):
    """Adds --recipe and --set to an `argparse` parser or group; `text` tells what a recipe is for."""
    names = ", ".join(f"{name} (default)" if name == DEFAULT_RECIPE else name for name in RECIPES)
    group.add_argument(
        "--recipe", default=argparse.SUPPRESS, metavar="NAME|FILE", help=f"{text}: {names}, or a .toml or .yaml file"
    )
    group.add_argument(
        "--set",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME=VALUE",
        help="change any number of the recipe, such as augmentation.erasing=0",
    )


def changes_of_recipe(args):
    """What parsed arguments change of the recipe that they name, a dict."""
    values = Recipe.given(args, "recipe.")
    for pair in getattr(args, "set", ()):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE. Received: {pair!r}")
        values[name] = value
    return values


def recipe_from_args(args):
    """The recipe that --recipe names, changed as the other parsed arguments say."""
    return read_recipe(getattr(args, "recipe", DEFAULT_RECIPE)).override(changes_of_recipe(args))


# Few enough files to have all of them open, large enough to be read well.
MOST_SHARDS = 256
LEAST_SHARD_RECORDS = 1024
# A CI2P token is that many pixels wide.
_PATCH_SIZE = 32


def _read_image_size(value):
    if isinstance(value, str):
        value = [int(side) for side in value.split(",")]
    sides = (value, value) if isinstance(value, numbers.Real) else tuple(value)
    height, width = sides if len(sides) == 2 else sides * 2
    size = int(height), int(width)
    if size != (height, width) or min(size) < 1 or any(side % _PATCH_SIZE for side in size):
        raise ValueError
    return size


class LatentCacheConfig(Config):
    """Settings of `cache_latents`; with images, compressor and backend they determine the latents.

    Raises:
        ValueError: A value out of its range.

    Examples:
        >>> settings = keras_ci2p.training.LatentCacheConfig(views=2, image_size=128)
        >>> settings.image_size, settings.store
        ((128, 128), 'float16')
    """

    views: int = setting(4, "augmented views of each training image", "--views", metavar="K", at_least=1)
    image_size: int | tuple[int, int] = setting(
        (256, 256),
        f"height and width of the views, multiples of {_PATCH_SIZE}; default: that of the recipe",
        "--image-size",
        metavar="N|H,W",
        read=_read_image_size,
        expected=f"one or two positive multiples of {_PATCH_SIZE}",
    )
    augmentation: Augmentation = setting(Augmentation(), "`keras_ci2p.data.Augmentation` of the views")
    store: str = setting(
        "float16",
        "16-bit floats (default), or integers as the compressor makes them, in an eighth of the space",
        "--store",
        choices=STORES,
    )
    seed: int = setting(0, "of the views", "--seed", at_least=0, below=2**32)
    batch_size: int = setting(
        32, "images encoded at a time, rounded down to all views of an image", "--batch-size", at_least=1
    )
    shard_records: int | None = setting(
        None,
        "latents in a file, rounded up to whole batches; default: 1024, more for over 256 files",
        "--shard-records",
        at_least=1,
    )

    @classmethod
    def from_args(cls, args: argparse.Namespace, **values: Any) -> Self:
        """The config that parsed arguments give; of the recipe the augmentation and the image size count."""
        recipe = recipe_from_args(args)
        return cls(
            **{"image_size": recipe.image_size, "augmentation": recipe.augmentation, **cls.given(args), **values}
        )

    def command_line(
        self, base: Self | None = None, always: Iterable[str] = (), without: Iterable[str] = (), prefix: str = ""
    ) -> list[str]:
        words = super().command_line(base, always, without, prefix)
        # The recipe whose augmentation and image size are the defaults of this class.
        return words if "augmentation" in without else ["--recipe", "paper", *words]

    @property
    def batch_images(self) -> int:
        """Images that are encoded at a time."""
        return max(1, self.batch_size // self.views) * self.views

    def records_per_shard(self, total: int) -> int:
        """Latents in each file but the last, where there are `total`; a multiple of `batch_images`."""
        wanted = self.shard_records or max(LEAST_SHARD_RECORDS, total // MOST_SHARDS)
        return -(-wanted // self.batch_images) * self.batch_images
