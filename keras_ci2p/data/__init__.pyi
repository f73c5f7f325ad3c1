# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p.data.augmentation import Augmentation as Augmentation
from keras_ci2p.data.augmentation import CROP_AND_FLIP as CROP_AND_FLIP
from keras_ci2p.data.latent_cache import LatentCache as LatentCache
from keras_ci2p.data.latent_cache import open_cache as open_cache
from keras_ci2p.data.latent_cache import seal_cache as seal_cache
from keras_ci2p.data.latent_loader import latent_folder as latent_folder
from keras_ci2p.data.loader import image_folder as image_folder
from keras_ci2p.data.manifest import DataError as DataError
from keras_ci2p.data.manifest import ImageManifest as ImageManifest
from keras_ci2p.data.manifest import validation_mask as validation_mask
from keras_ci2p.data.sources import open_data as open_data
from keras_ci2p.data.sources import scan_folder as scan_folder
from keras_ci2p.data.sources import scan_images as scan_images
from keras_ci2p.data.tfds import prepare_tfds as prepare_tfds
from keras_ci2p.data.transforms import center_crop as center_crop
from keras_ci2p.data.transforms import load_image as load_image
