"""Images as data: reads, splits, augments and loads them. Knows no models."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "augmentation": ["Augmentation", "CROP_AND_FLIP"],
        "latent_cache": ["LatentCache", "open_cache", "seal_cache"],
        "latent_loader": ["latent_folder"],
        "loader": ["image_folder"],
        "manifest": ["DataError", "ImageManifest", "validation_mask"],
        "sources": ["open_data", "scan_folder", "scan_images"],
        "tfds": ["prepare_tfds"],
        "transforms": ["center_crop", "load_image"],
    },
)
