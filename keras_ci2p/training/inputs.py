"""The batches of a run."""

from keras_ci2p.data import image_folder


def make_inputs(settings, manifest, size_multiple):
    """`(training, validation)` datasets.

    Args:
        settings: `TrainSettings`.
        manifest: All photos.
        size_multiple: What the image size must be a multiple of.
    """
    recipe = settings.recipe
    common = {
        "image_size": recipe.image_size,
        "batch_size": recipe.batch_size,
        "size_multiple": size_multiple,
    }
    train_data = image_folder(
        manifest,
        split="train",
        seed=settings.seed,
        augment=recipe.augmentation,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        **common,
    )
    return train_data, image_folder(manifest, split="val", **common)
