# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p.convert.compressai import DownloadError as DownloadError
from keras_ci2p.convert.compressai import from_compressai as from_compressai
from keras_ci2p.convert.compressai import read_compressor as read_compressor
from keras_ci2p.convert.compressai import to_compressai as to_compressai
from keras_ci2p.convert.mmpretrain import from_mmpretrain as from_mmpretrain
from keras_ci2p.convert.mmpretrain import to_mmpretrain as to_mmpretrain
from keras_ci2p.convert.pretrained_vit import from_vit as from_vit
from keras_ci2p.convert.state_dict import CheckpointError as CheckpointError
from keras_ci2p.names import zoo_names as zoo_names
