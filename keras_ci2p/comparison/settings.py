"""All that determines a comparison."""

from dataclasses import asdict, dataclass

from keras_ci2p.models import CLASSIFIERS

BACKENDS = ("torch", "jax", "tensorflow")


@dataclass(frozen=True)
class CompareSettings:
    """Settings of `compare`.

    Attributes:
        backends: Names of Keras's backends, of `BACKENDS`, in the order in which they are measured. The others are
            compared with the first that works.
        model: "ci2p", "ci2p_dual" or "vit".
        variant: Size of the transformer (`keras_ci2p.models.VARIANTS`).
        image_size: Height and width in pixels.
        batch_size: Images of a step.
        steps: Training steps, at least 3: the first compiles.
        data: Folder with one subfolder of photos per class, or "tfds:NAME"; None for smooth synthetic pictures.
        dtype: Keras dtype policy.
        seed: Of weights, photos and augmentation, in 0..2**32-1.

    Raises:
        ValueError: A value out of its range.
    """

    backends: tuple = BACKENDS
    model: str = "ci2p"
    variant: str = "base"
    image_size: int = 256
    batch_size: int = 8
    steps: int = 10
    data: str | None = None
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "backends", tuple(self.backends))
        self._check("backends", 0 < len(self.backends) == len(set(self.backends)), "different ones")
        self._check("backends", set(self.backends) <= set(BACKENDS), f"of {', '.join(BACKENDS)}")
        self._check("model", self.model in CLASSIFIERS, f"one of {', '.join(CLASSIFIERS)}")
        self._check("batch_size", self.batch_size >= 1, "at least 1")
        self._check("steps", self.steps >= 3, "at least 3: the first compiles, and one tells no spread")
        self._check("seed", 0 <= self.seed < 2**32, "in 0..2**32-1")

    def _check(self, name, fits, allowed):
        if not fits:
            raise ValueError(f"{name} must be {allowed}. Received: {getattr(self, name)!r}")

    def as_dict(self):
        return {**asdict(self), "backends": list(self.backends)}
