"""The command line `keras-ci2p`."""

from keras_ci2p.cli.main import main

__all__ = ["main"]
