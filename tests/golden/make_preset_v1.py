"""Writes `preset_v1/` and `preset_v1.npz`: a small preset of format version 1, which every later version must read.

KERAS_BACKEND=jax python tests/golden/make_preset_v1.py
"""

from pathlib import Path

import keras
import numpy as np

from keras_ci2p import CI2PViT

here = Path(__file__).parent
keras.utils.set_random_seed(1)
model = CI2PViT(
    (64, 32, 3),
    num_classes=3,
    class_names=["cat", "dog", "owl"],
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=24,
    compressor={"num_filters": 4, "latent_channels": 6},
)
# Every kind of weight away from its initial value.
rng = np.random.default_rng(1)
for weight in model.weights:
    value = keras.ops.convert_to_numpy(weight)
    weight.assign(np.abs(value + 0.1 * rng.standard_normal(value.shape)) if "variance" in weight.path else value + 0.02)
model.save_to_preset(here / "preset_v1")
images = rng.integers(0, 256, (2, 64, 32, 3)).astype("uint8")
np.savez_compressed(here / "preset_v1.npz", images=images, logits=keras.ops.convert_to_numpy(model(images)))
