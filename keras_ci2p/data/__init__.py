"""Photos from folders: reading, splitting, augmenting and feeding them. Knows no models."""

from keras_ci2p.data.augmentation import CROP_AND_FLIP, Augmentation
from keras_ci2p.data.decode import load_image
from keras_ci2p.data.folder import DataError, ImageManifest, scan_folder
from keras_ci2p.data.latent_cache import LatentCache, open_cache
from keras_ci2p.data.latents import latent_folder
from keras_ci2p.data.pipeline import image_folder
from keras_ci2p.data.source import open_data
from keras_ci2p.data.split import validation_mask
from keras_ci2p.data.transforms import center_crop

__all__ = [
    "CROP_AND_FLIP",
    "Augmentation",
    "DataError",
    "ImageManifest",
    "LatentCache",
    "center_crop",
    "image_folder",
    "latent_folder",
    "load_image",
    "open_cache",
    "open_data",
    "scan_folder",
    "validation_mask",
]
