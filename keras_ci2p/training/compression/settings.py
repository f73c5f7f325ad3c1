"""All that determines the training of a compressor."""

from dataclasses import asdict, dataclass

from keras_ci2p.models.rate_distortion import AUXILIARY_LEARNING_RATE, CLIP_NORM

# What changes where a run is computed, not what: it may differ when the run is taken up again.
FREE_TO_CHANGE = ("num_workers",)


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
