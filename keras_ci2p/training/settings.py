"""All that determines a training run."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `train`; with the data, the versions and the backend they determine the result.

    Attributes:
        data: Folder with one subfolder of photos per class.
        model: "ci2p" or "vit".
        variant: Size of the transformer (`keras_ci2p.models.VARIANTS`).
        image_size: Height and width, a multiple of 32 (ViT: of 16).
        epochs, batch_size, seed: Integers.
        learning_rate: Highest learning rate of AdamW.
        warmup_epochs: Linear rise from a third of it; then a cosine to a eightieth (the paper's 1e-4 to 1.25e-6).
        weight_decay: Of all trainable weights (paper: 0.05).
        label_smoothing: In [0, 1) (paper: 0.1).
        drop_path_rate: Stochastic depth of the last block (paper: 0.1).
        compressor: Trained compressor to begin with: a preset's name or directory, or a CompressAI checkpoint; None for
            random weights.
        freeze_compressor: Whether the compressor keeps its weights.
        dtype: Keras dtype policy.
        deterministic: Whether to trade speed for the same result each time.
    """

    data: str
    model: str = "ci2p"
    variant: str = "tiny"
    image_size: int = 256
    epochs: int = 50
    batch_size: int = 32
    seed: int = 0
    learning_rate: float = 5e-4
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.1
    compressor: str | None = None
    freeze_compressor: bool = False
    dtype: str = "float32"
    deterministic: bool = False

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("image_size", 1), ("warmup_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}. Received: {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in 0..2**32-1. Received: {self.seed}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive. Received: {self.learning_rate}")
        if self.compressor is not None and self.model != "ci2p":
            raise ValueError(f"A compressor goes with the model ci2p. Received: model={self.model!r}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1). Received: {self.label_smoothing}")

    def as_dict(self):
        return asdict(self)
