"""All that determines a training run."""

from dataclasses import asdict, dataclass, field

from keras_ci2p.data.latent_cache import is_latent_cache
from keras_ci2p.models import CLASSIFIERS, CI2PClassifier
from keras_ci2p.training.backend import MATMUL_PRECISIONS
from keras_ci2p.training.recipe import RECIPES, Recipe

AUGMENTED_ON = ("host", "device")

# The compressor of a new CI2P-ViT, and the word for none.
DEFAULT_COMPRESSOR = "bmshj2018-factorized-mse-5-photos"
NO_COMPRESSOR = "none"
NO_TEACHER = "none"

# What changes where a run is computed, not what: it may differ when the run is taken up again.
FREE_TO_CHANGE = ("devices", "in_memory", "num_workers", "tensorboard")


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
