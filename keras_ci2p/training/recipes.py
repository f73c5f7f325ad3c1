"""What a run can be told: recipes and the settings of each kind of run."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from keras_ci2p.backend import MATMUL_PRECISIONS
from keras_ci2p.convert.zoo import NO_COMPRESSOR
from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation
from keras_ci2p.data.latent_cache import STORES, is_latent_cache
from keras_ci2p.layers.embedding import PATCH_SIZE
from keras_ci2p.models.backbone import CI2PClassifier
from keras_ci2p.models.loading import CLASSIFIERS
from keras_ci2p.models.rate_distortion import AUXILIARY_LEARNING_RATE, CLIP_NORM
from keras_ci2p.utils import require, write_text


@dataclass(frozen=True)
class Recipe:
    """Augmentation, loss, optimizer and schedule of a training run. The defaults are the paper's (section 4.1).

    The code of the paper trains for 500 epochs while its cosine is meant for 300, so that the learning rate rises
    again; here it ends at 300 epochs, and `RECIPES["paper_literal"]` does as the code did.

    Attributes:
        epochs: Passes over the training photos.
        batch_size: Photos of one step, over all devices.
        image_size: Height and width in pixels.
        augmentation: `keras_ci2p.data.Augmentation` of each photo.
        mixup, cutmix: Parameter of the Beta distribution of each; 0 for none. Of two that are not 0, one is chosen at
            random for each batch.
        mix_probability: With which a batch is mixed.
        label_smoothing: Share of the target that is spread over all classes.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 in the first.
        learning_rate: The highest.
        warmup_epochs: Linear rise to it, step by step.
        warmup_start: Share of the learning rate at which the rise begins.
        final_learning_rate: Share of the learning rate at which the cosine ends.
        cosine_epochs: Length of the half cosine after the warm-up; None for the epochs that are left. After it, the
            learning rate rises again.
        cosine_steps: "epoch" keeps the learning rate through each epoch, "batch" changes it smoothly.
        weight_decay: Of every trained weight, times the learning rate.
        beta_1, beta_2, epsilon: Of AdamW.
        clip_norm: Largest norm of all gradients together; None for no limit.
        accumulate: Batches whose gradients are averaged for one update.
        ema: Momentum of the moving average of the weights, for example 0.999; 0 for none. With it, the averages are
            validated and saved.
        distill_alpha: With a teacher, the share of its probabilities in the loss; the labels have the rest (Keras's
            `student_loss_weight`).
        distill_temperature: Of both probabilities; their divergence counts its square.
        distill_features: Weights of the teacher's feature maps, the finest first; of fewer maps the last ones.
        patience: Epochs without a better validation top-1 after which training ends; None for never.

    Raises:
        ValueError: A value out of its range.
    """

    epochs: int = 300
    batch_size: int = 128
    image_size: int = 256
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.1
    learning_rate: float = 1e-4
    warmup_epochs: float = 20.0
    warmup_start: float = 1 / 3
    final_learning_rate: float = 1.25e-6 / 1e-4
    cosine_epochs: float | None = None
    cosine_steps: str = "epoch"
    weight_decay: float = 0.05
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    distill_alpha: float = 1.0
    distill_temperature: float = 1.0
    distill_features: tuple = (8.0, 8.0, 16.0)
    patience: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "image_size", "accumulate"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("mixup", "cutmix", "warmup_epochs", "weight_decay"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("label_smoothing", "ema", "beta_1", "beta_2", "drop_path_rate"):
            self._check(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("warmup_start", "final_learning_rate"):
            self._check(name, 0 <= getattr(self, name) <= 1, "in [0, 1], a share of the learning rate")
        for name in ("mix_probability", "distill_alpha"):
            self._check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        object.__setattr__(self, "distill_features", tuple(self.distill_features))
        self._check("distill_features", all(weight >= 0 for weight in self.distill_features), "numbers of at least 0")
        for name in ("learning_rate", "epsilon", "distill_temperature"):
            self._check(name, getattr(self, name) > 0, "positive")
        for name in ("clip_norm", "cosine_epochs", "patience"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "positive or none")
        self._check("cosine_steps", self.cosine_steps in ("epoch", "batch"), '"epoch" or "batch"')

    def _check(self, name, fits, allowed):
        if not fits:
            raise ValueError(f"{name} must be {allowed}. Received: {getattr(self, name)!r}")

    def override(self, values):
        """This recipe with other values.

        Where the epochs change and the warm-up is not given, the warm-up keeps its share of the epochs.

        Args:
            values: dict by attribute; `augmentation` a dict of its own, or keys such as "augmentation.erasing". Strings
                are read as numbers, "none" as None, "0.3,1" as several.

        Raises:
            ValueError: Unknown attribute or a value that does not fit.
        """
        own, augmentation = {}, {}
        for key, value in values.items():
            if key == "augmentation" and isinstance(value, dict):
                augmentation.update(value)
            elif key.startswith("augmentation."):
                augmentation[key.removeprefix("augmentation.")] = value
            else:
                own[key] = value
        own = {key: _read(Recipe, key, value) for key, value in own.items()}
        augmentation = {key: _read(Augmentation, key, value) for key, value in augmentation.items()}
        if "epochs" in own and "warmup_epochs" not in own:
            own["warmup_epochs"] = self.warmup_epochs * own["epochs"] / self.epochs
        return replace(self, **own, augmentation=replace(self.augmentation, **augmentation))

    def as_dict(self):
        """Plain values, as JSON can hold them; `Recipe().override(...)` takes them back."""
        return json.loads(json.dumps(asdict(self)))

    def to_toml(self):
        """The table as a file that `read_recipe` takes."""
        values = self.as_dict()
        augmentation = values.pop("augmentation")
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        return "\n".join([*lines, "", "[augmentation]", *(f"{k} = {_toml(v)}" for k, v in augmentation.items()), ""])


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
        cosine_steps="batch",
        clip_norm=1.0,
        augmentation=CROP_AND_FLIP,
    ),
    # From trained weights: a lower learning rate, most of each photo is seen.
    "finetune": Recipe(
        epochs=20,
        batch_size=32,
        mixup=0.0,
        cutmix=0.0,
        learning_rate=5e-5,
        warmup_epochs=1.0,
        cosine_steps="batch",
        clip_norm=1.0,
        augmentation=replace(CROP_AND_FLIP, crop_area=(0.35, 1.0), erasing=0.1),
    ),
}


def read_recipe(source):
    """A recipe by its name, or from a TOML or YAML file.

    A file holds attributes of `Recipe`, those of the augmentation in a table `augmentation`, and optionally `base`, the
    name of the recipe that it changes ("paper" where it is missing).

    Args:
        source: A name of `RECIPES`, or the path of a file that ends in .toml, .yaml or .yml.

    Raises:
        ValueError: Unknown name or attribute, or a file that cannot be read as such.
        OSError: No such file.
    """
    if source in RECIPES:
        return RECIPES[source]
    path = Path(source)
    if path.suffix not in _READERS:
        raise ValueError(
            f"A recipe is one of {', '.join(RECIPES)}, or a .toml or .yaml file. Received: {str(source)!r}"
        )
    try:
        values = _READERS[path.suffix](path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no table of names and values")
        base = values.pop("base", "paper")
        if base not in RECIPES:
            raise ValueError(f"base must be one of {', '.join(RECIPES)}. Received: {base!r}")
        return RECIPES[base].override(values)
    except ValueError as error:
        raise ValueError(f"The recipe {path} cannot be used: {error}") from error


def write_recipe(path, recipe):
    """Writes a TOML file that `read_recipe` takes."""
    write_text(path, recipe.to_toml())


def _read_yaml(text):
    yaml = require("yaml", extra="train")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_READERS = {".toml": tomllib.loads, ".yaml": _read_yaml, ".yml": _read_yaml}


def _read(cls, name, value):
    """`value` as the type of the attribute, an int, float, str, None or pair."""
    types = {f.name: f.type for f in fields(cls)}
    if name not in types or types[name] is Augmentation:
        prefix = "augmentation." if cls is Augmentation else ""
        raise ValueError(f"A recipe has no number {prefix}{name}. It has: {', '.join(_names())}")
    expected = types[name]
    try:
        if expected is tuple:
            # Brackets too, as --show-recipe prints them.
            parts = value.strip("[] ").split(",") if isinstance(value, str) else value
            if cls is Recipe and isinstance(parts, (int, float)):
                parts = [parts]
            return tuple(float(part) for part in parts if cls is Augmentation or part != "")
        if value is None or str(value).lower() == "none":
            if expected in (int | None, float | None):
                return None
            raise ValueError
        if expected is str:
            return str(value)
        number = float(value)
        if expected in (int, int | None):
            if isinstance(value, bool) or number != int(number):
                raise ValueError
            return int(number)
        return number
    except (TypeError, ValueError) as error:
        kind = {
            tuple: "a pair of numbers" if cls is Augmentation else "numbers such as 8,8,16",
            int: "an integer",
            float: "a number",
        }.get(expected, "a number or none")
        raise ValueError(f"{name} must be {kind}. Received: {value!r}") from error


def _names():
    own = [f.name for f in fields(Recipe) if f.type is not Augmentation]
    return own + [f"augmentation.{f.name}" for f in fields(Augmentation)]


def _toml(value):
    # TOML has no null.
    return '"none"' if value is None else json.dumps(value)


AUGMENTED_ON = ("host", "device")

# The compressor of a new CI2P-ViT.
DEFAULT_COMPRESSOR = "bmshj2018-factorized-mse-5-photos"
NO_TEACHER = "none"

# What changes where a run is computed, not what: it may differ when the run is taken up again.
TRAIN_FREE_TO_CHANGE = ("devices", "in_memory", "num_workers", "tensorboard")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `train`; with the data, the versions and the backend they determine the result.

    Attributes:
        data: Folder with one subfolder of photos per class, "tfds:NAME", or a latent cache.
        model: "ci2p", "ci2p_dual" or "vit".
        variant: Size of the transformer (`keras_ci2p.models.VARIANTS`); None with `init`, whose size it is.
        recipe: `Recipe`.
        seed: In 0..2**32-1.
        init: Preset or training run to begin with; its head is kept where it has the same classes.
        compressor: Trained compressor to begin with: a preset's name or directory, or a CompressAI checkpoint; "none"
            for random weights; None for that of `init` or of the latent cache, else `DEFAULT_COMPRESSOR`.
        freeze_compressor: Whether the compressor keeps its weights; None: where it begins with trained ones.
        teacher: Trained classifier that is imitated too, as `keras_ci2p.training.load_teacher` takes it;
            "none" for none; None for that of the latent cache, where it has one.
        teacher_size, teacher_range, teacher_features: Size of its images, what black and white are for it, and names of
            its feature maps, where its file does not say so; as in `open_teacher`.
        dtype: Keras dtype policy.
        matmul_precision: Of the products of float32 matrices: "float32", "tensorfloat32" or "bfloat16"; None for the
            backend's own.
        augment: "host" augments with Pillow while photos are loaded, "device" inside the compiled training step.
        in_memory: With augment="device", whether to keep the decoded photos.
        class_weights: "balanced", or a dict of weights by class name, 1 where one is missing; None for equal weights.
        devices: "all", a number of devices, or None for Keras's own choice of one.
        num_workers: Processes that load photos; 0 for threads in this one.
        deterministic: Whether to trade speed for the same result each time.
        tensorboard: Whether to write logs for TensorBoard too.
        minutes: What the run may take, or None. An epoch is measured first, and as many as fit, one at least, take the
            place of the recipe's; the warm-up keeps its share of them.
    """

    data: str
    model: str = "ci2p"
    variant: str | None = None
    recipe: Recipe = field(default_factory=lambda: RECIPES["quick"])
    seed: int = 0
    init: str | None = None
    compressor: str | None = None
    freeze_compressor: bool | None = None
    teacher: str | None = None
    teacher_size: int | None = None
    teacher_range: tuple | None = None
    teacher_features: tuple | None = None
    dtype: str = "float32"
    matmul_precision: str | None = None
    augment: str = "host"
    in_memory: bool = False
    class_weights: str | dict | None = None
    devices: str | int | None = None
    num_workers: int = 0
    deterministic: bool = False
    tensorboard: bool = False
    minutes: float | None = None

    def __post_init__(self):
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"minutes must be positive. Received: {self.minutes}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32-1. Received: {self.seed}")
        if self.model not in CLASSIFIERS:
            raise ValueError(f"model must be one of {', '.join(CLASSIFIERS)}. Received: {self.model!r}")
        self._check_compressor()
        self._check_teacher()
        if self.init is not None and self.variant is not None:
            raise ValueError(f"The size is that of init={self.init!r}. Received also: variant={self.variant!r}")
        if self.init is None and self.variant is None:
            object.__setattr__(self, "variant", "tiny")
        if self.augment not in AUGMENTED_ON:
            raise ValueError(f"augment must be one of {', '.join(AUGMENTED_ON)}. Received: {self.augment!r}")
        if self.matmul_precision not in (None, *MATMUL_PRECISIONS):
            allowed = ", ".join(MATMUL_PRECISIONS)
            raise ValueError(f"matmul_precision must be one of {allowed}. Received: {self.matmul_precision!r}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative. Received: {self.num_workers}")
        if isinstance(self.class_weights, str) and self.class_weights != "balanced":
            raise ValueError(f'class_weights must be "balanced" or a dict. Received: {self.class_weights!r}')

    def _check_compressor(self):
        if not issubclass(CLASSIFIERS[self.model], CI2PClassifier):
            if self.compressor not in (None, NO_COMPRESSOR):
                raise ValueError(f"A compressor goes with ci2p and ci2p_dual. Received: model={self.model!r}")
            return
        has_one = self.init is not None or is_latent_cache(self.data)
        if has_one and self.compressor == NO_COMPRESSOR:
            raise ValueError(f"The compressor is that of init or data. Received also: compressor={NO_COMPRESSOR!r}")
        if not has_one and self.compressor is None:
            object.__setattr__(self, "compressor", DEFAULT_COMPRESSOR)

    def _check_teacher(self):
        said = [
            name for name in ("teacher_size", "teacher_range", "teacher_features") if getattr(self, name) is not None
        ]
        if said and (self.teacher in (None, NO_TEACHER) or is_latent_cache(self.data)):
            raise ValueError(
                f"{said[0]} goes with a teacher that is asked while training, not with a latent cache, which has its "
                f"targets. Received: teacher={self.teacher!r}, data={self.data!r}"
            )
        if self.teacher in (None, NO_TEACHER):
            return
        if self.augment == "device":
            raise ValueError("A teacher looks at images that are augmented on the host. Received: augment='device'")
        if self.num_workers and not is_latent_cache(self.data):
            raise ValueError(f"A teacher is asked by threads of this process. Received: num_workers={self.num_workers}")

    def as_dict(self):
        return {**asdict(self), "recipe": self.recipe.as_dict()}


# Few enough files to have all of them open, large enough to be read well.
MOST_SHARDS = 256
LEAST_SHARD_RECORDS = 1024


@dataclass(frozen=True)
class CacheSettings:
    """Settings of `cache_latents`; with photos, compressor and backend they determine the latents.

    Attributes:
        views: Augmented views of each training photo.
        image_size: Height and width of the views in pixels, or `(height, width)`; multiples of 32.
        augmentation: `keras_ci2p.data.Augmentation` of the views.
        store: "float16", or "rounded" to integers as the compressor itself does it, in an eighth of the space.
        seed: Of the views, an integer in 0..2**32-1.
        batch_size: Images that are encoded at a time; rounded down to whole photos, one at least.
        shard_records: Latents in a file, rounded up to whole batches; an interruption loses at most so many. None for
            1024, or more where that would be more than 256 files.

    Raises:
        ValueError: A value out of its range.
    """

    views: int = 4
    image_size: tuple = (256, 256)
    augmentation: Augmentation = field(default_factory=Augmentation)
    store: str = "float16"
    seed: int = 0
    batch_size: int = 32
    shard_records: int | None = None

    def __post_init__(self):
        size = self.image_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        object.__setattr__(self, "image_size", size)
        if len(size) != 2 or min(size) < 1 or any(side % PATCH_SIZE for side in size):
            raise ValueError(f"image_size must be one or two positive multiples of {PATCH_SIZE}. Received: {size}")
        if self.store not in STORES:
            raise ValueError(f"store must be one of {', '.join(STORES)}. Received: {self.store!r}")
        for name in ("views", "batch_size", "shard_records"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {value}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32-1. Received: {self.seed}")

    def as_dict(self):
        """Plain values, as JSON holds them."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values):
        """The settings that `as_dict` gave."""
        return cls(**{**values, "augmentation": Augmentation(**values["augmentation"])})

    @property
    def batch_images(self):
        """Images that are encoded at a time."""
        return max(1, self.batch_size // self.views) * self.views

    def records_per_shard(self, total):
        """Latents in each file but the last, where there are `total`; a multiple of `batch_images`."""
        wanted = self.shard_records or max(LEAST_SHARD_RECORDS, total // MOST_SHARDS)
        return -(-wanted // self.batch_images) * self.batch_images


# What changes where a run is computed, not what: it may differ when the run is taken up again.
COMPRESSOR_FREE_TO_CHANGE = ("num_workers",)


@dataclass(frozen=True)
class CompressorSettings:
    """Settings of `train_compressor`; with the data, the versions and the backend they determine the result.

    Attributes:
        data: Folder of pictures at any depth, or "tfds:NAME".
        architecture: "bmshj2018-factorized" or "bmshj2018-factorized-relu".
        quality: 1..8, the channels and CompressAI's `lmbda`.
        lmbda: Weight of the squared error in place of the quality's.
        steps: Training steps in all.
        steps_per_epoch: Steps after which the held-out pictures are measured and a checkpoint is written.
        crop_size: Height and width of the random crops (CompressAI: 256).
        batch_size: Crops in a step (CompressAI: 16).
        learning_rate: Adam's, at the beginning; it falls to nothing along a cosine. CompressAI's is 1e-4, for millions
            of steps.
        auxiliary_learning_rate: The quantiles', constant.
        clip_norm: Largest norm of the gradients, or None.
        seed: In 0..2**32-1.
        init: Preset of a `Compressor` or CompressAI checkpoint to begin with, which sets architecture and quality.
        val_pictures: Held-out pictures to measure on.
        val_size: Height and width of their central crops; smaller pictures are enlarged.
        dtype: Keras dtype policy.
        num_workers: Processes that load pictures; 0 for threads in this one.
        deterministic: Whether to trade speed for the same result each time.
    """

    data: str
    architecture: str = "bmshj2018-factorized"
    quality: int = 5
    lmbda: float | None = None
    steps: int = 20000
    steps_per_epoch: int = 500
    crop_size: int = 256
    batch_size: int = 16
    learning_rate: float = 1e-4
    auxiliary_learning_rate: float = AUXILIARY_LEARNING_RATE
    clip_norm: float | None = CLIP_NORM
    seed: int = 0
    init: str | None = None
    val_pictures: int = 100
    val_size: int = 256
    dtype: str = "float32"
    num_workers: int = 0
    deterministic: bool = False

    def __post_init__(self):
        for name in ("steps", "steps_per_epoch", "crop_size", "batch_size", "val_pictures", "val_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive. Received: {getattr(self, name)}")
        for name in ("crop_size", "val_size"):
            if getattr(self, name) % 16:
                raise ValueError(f"{name} must be a multiple of 16. Received: {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32-1. Received: {self.seed}")

    def as_dict(self):
        return asdict(self)
