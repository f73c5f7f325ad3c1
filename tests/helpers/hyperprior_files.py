"""What the processes of `test_hyperpriors.py` do."""

from pathlib import Path

import keras
import numpy as np
from golden_weights import hyperprior_state_dict
from skimage import data

from keras_ci2p import Compressor
from keras_ci2p.codec import ImageCodec
from keras_ci2p.convert import from_compressai, to_compressai


def main(architectures, dtype, directory):
    """Of each architecture, in a directory of its name: writes a file of a photo, and reads those that are there."""
    for architecture in architectures.split():
        write_and_read(architecture, dtype, Path(directory) / architecture)


def write_and_read(architecture, dtype, directory):
    golden = from_compressai(
        hyperprior_state_dict(to_compressai(Compressor(architecture, quality=None, channels=(8, 12))))
    )
    compressor = Compressor.from_config({**golden.get_config(), "dtype": dtype})
    compressor.set_weights(golden.get_weights())
    codec, backend = ImageCodec(compressor), keras.backend.backend()
    directory.mkdir(exist_ok=True)
    (directory / f"{backend}.ci2p").write_bytes(codec.compress(data.astronaut()[:200, :300]))
    for path in directory.glob("*.ci2p"):
        np.save(directory / f"{path.stem}-{backend}.npy", codec.latents(path.read_bytes()))
