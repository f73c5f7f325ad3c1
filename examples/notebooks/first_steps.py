# %% [markdown]
# # First steps
#
# CI2P-ViT lets a learned image compressor make the patches of a Vision Transformer. Here a trained one, which comes with the package, tells
# what is on a photo; then the same photo is followed through the model.
#
# `pip install 'keras_ci2p[jax,train]' scikit-image`, or another backend: `KERAS_BACKEND` chooses it before the first import.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or torch, tensorflow

import keras
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data

import keras_ci2p

keras_ci2p.list_presets()

# %%
model = keras_ci2p.CI2PViT.from_preset("animals10")
model.class_names

# %% [markdown]
# Any photo will do: a path, a `PIL.Image` or an array, RGB in 0..255, of any size. `classify` cuts it as the model was evaluated.

# %%
names, probabilities = zip(*model.classify(data.chelsea(), top=10), strict=True)
photo = keras_ci2p.data.center_crop(Image.fromarray(data.chelsea()), model.image_shape[:2])

_, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.imshow(photo)
left.axis("off")
right.barh(names[::-1], [100 * probability for probability in probabilities[::-1]])
right.set_xlabel("%")
plt.tight_layout()

# %% [markdown]
# ## Through the model
#
# The compressor encodes each 16 x 16 pixels into 192 numbers. The patch generator makes one token of four of these. The transformer has no
# position embedding and no class token: the mean of its tokens is classified.

# %%
shapes = {"image": photo[None].shape}
x = np.asarray(photo[None], "float32")
for name in ("compressor", "patch_generator", "block_0", "block_11", "norm"):
    stage = keras.Model(model.input, model.get_layer(name).output)
    shapes[name] = tuple(stage(x).shape)
shapes["head"] = tuple(model(x).shape)
shapes

# %% [markdown]
# Where the multiply-accumulates are:

# %%
count = keras_ci2p.count_macs(model)
{name: f"{part.macs / 1e6:.0f} million" for name, part in count.parts.items()}

# %% [markdown]
# ## Your own classes
#
# The same weights with a new head for three classes, ready for `fit`; the notebook *Your own photos* trains one.

# %%
mine = keras_ci2p.CI2PViT.from_preset("animals10", num_classes=3, class_names=["ant", "bee", "wasp"])
tuple(mine(x).shape)
