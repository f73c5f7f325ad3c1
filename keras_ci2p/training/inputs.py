"""The batches of a run."""

from keras_ci2p.data import image_folder, latent_folder
from keras_ci2p.data.latent_cache import LatentCache


def make_inputs(settings, photos, size_multiple, devices):
    """`(training, validation)` datasets.

    Args:
        settings: `TrainSettings`.
        photos: All photos, `ImageManifest` or `LatentCache`.
        size_multiple: What the image size must be a multiple of.
        devices: `Devices`, which tell the part of each training batch to load.
    """
    recipe = settings.recipe
    common = {"batch_size": recipe.batch_size, "num_workers": settings.num_workers, "num_threads": devices.num_threads}
    training = {"seed": settings.seed, "mixup": recipe.mixup, "cutmix": recipe.cutmix, "shard": devices.shard}
    if isinstance(photos, LatentCache):
        make = latent_folder
    else:
        make = image_folder
        common.update(image_size=recipe.image_size, size_multiple=size_multiple)
        training.update(augment=recipe.augmentation, augment_on=settings.augment, in_memory=settings.in_memory)
    return make(photos, split="train", **training, **common), make(photos, split="val", **common)
