"""How a model is trained: every number of it, in one table."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from keras_ci2p import files
from keras_ci2p.data import CROP_AND_FLIP, Augmentation
from keras_ci2p.extras import require


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
    files.write_text(path, recipe.to_toml())


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
