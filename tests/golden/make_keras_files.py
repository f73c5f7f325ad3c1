"""Wrote `keras_files/`, with keras_ci2p at commit 6cfd498, before the modules of the layers were merged."""

from pathlib import Path

import keras
import numpy as np

from keras_ci2p import CI2PViTDualScale, layers

OUT = Path(__file__).parent / "keras_files"
COMPRESSOR = {"num_filters": 4, "latent_channels": 6, "origin": {"name": "x"}}

keras.utils.set_random_seed(0)
inputs = keras.Input((64, 64, 3))
tokens = layers.CI2PPatchEmbedding(16, COMPRESSOR)(inputs)
tokens = layers.PositionEmbedding((2, 2))(tokens)
tokens = layers.TransformerBlock(2, 16)(tokens)
tokens = layers.LeFFBlock(2, 16, (2, 2))(tokens)
tokens = layers.PatchMerging(16, (2, 2))(tokens)
dual = CI2PViTDualScale(
    (64, 64, 3),
    num_classes=2,
    class_names=["a", "b"],
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=16,
    early_dim=8,
    merge_at=1,
    compressor=COMPRESSOR,
)
images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("float32")
outputs = {}
for name, model in (("layers", keras.Model(inputs, tokens)), ("dual", dual)):
    model.save(OUT / f"{name}.keras")
    outputs[name] = keras.ops.convert_to_numpy(model(images))
np.savez(OUT / "expected.npz", images=images.astype("uint8"), **outputs)
