"""All that determines a latent cache."""

import json
from dataclasses import asdict, dataclass, field

from keras_ci2p.data import Augmentation
from keras_ci2p.data.latent_storage import STORES
from keras_ci2p.layers.ci2p_patch_embedding import PATCH_SIZE

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
