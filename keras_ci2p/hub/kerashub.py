"""KerasHub, and how our classes are registered beside its own."""

import keras

from keras_ci2p.extras import require
from keras_ci2p.presets.kerashub import HUB

keras_hub = require("keras_hub", extra="hub")

# `keras_ci2p.models` has registered classes of the same names.
register = keras.saving.register_keras_serializable(package=HUB)
