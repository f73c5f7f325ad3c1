# %% [markdown]
# # Look inside
#
# What the compressor keeps of a photo, where the transformer looks, and which parts of the photo its answer hangs on.
# `pip install 'keras_ci2p[jax,train]' scikit-image`.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or torch, tensorflow

import keras
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data

import keras_ci2p

model = keras_ci2p.CI2PViT.from_preset("animals10")
photo = keras_ci2p.data.center_crop(Image.fromarray(data.chelsea()), model.image_shape[:2])
batch = photo[None]


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def show(pictures, **settings):
    _, axes = plt.subplots(1, len(pictures), figsize=(2.6 * len(pictures), 2.9))
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(picture, **settings)
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    plt.tight_layout()


# %% [markdown]
# ## What the compressor keeps
#
# The latents, 8 x 8 x 192 numbers, are what the classifier sees. Rounded to integers and decoded by the compressor that they come from:

# %%
compressor = keras_ci2p.Compressor.from_preset("bmshj2018-factorized-mse-5-photos")
latents = compressor.encode(batch)
decoded = to_numpy(compressor.decode(keras.ops.round(latents)))[0].clip(0, 255).astype("uint8")
bits = float(compressor.bits_per_pixel(batch))
show({"photo, 24 bits a pixel": photo, f"latents decoded, {bits:.2f} bits a pixel": decoded})

# %% [markdown]
# The latent channels that vary most over this photo:

# %%
maps = to_numpy(latents)[0]
strongest = maps.std(axis=(0, 1)).argsort()[::-1][:5]
show({f"channel {i}": maps[:, :, i] for i in strongest}, cmap="gray")

# %% [markdown]
# ## Where the transformer looks
#
# Attention of all layers multiplied up (attention rollout): how much each of the 16 tokens counts in the mean that is classified, 1 on average.

# %%
rollout = keras_ci2p.layers.attention_rollout(model.attention_maps(batch))[0].mean(axis=0)
rollout = rollout.reshape(model.grid_size) * rollout.size
plt.figure(figsize=(3.4, 2.9))
plt.imshow(photo, extent=(0, 4, 4, 0))
plt.imshow(rollout, extent=(0, 4, 4, 0), alpha=0.6, cmap="inferno", interpolation="bicubic")
plt.axis("off")
plt.colorbar()
plt.show()
# %% [markdown]
# ## What each class hangs on
#
# Cover a square of the photo with grey and see how far the logit of a class falls. This asks the whole model, not its attention alone.

# %%
side, step = 32, 16
places = [(top, left) for top in range(0, 128 - side + 1, step) for left in range(0, 128 - side + 1, step)]
covered = np.repeat(batch, len(places), axis=0)
for picture, (top, left) in zip(covered, places, strict=True):
    picture[top : top + side, left : left + side] = 128
before = model.predict(batch, verbose=0)[0]
after = model.predict(covered, verbose=0)

rows = int(len(places) ** 0.5)
falls = {}
for label in before.argsort()[::-1][:4]:
    falls[f"{model.class_names[label]} ({before[label]:+.1f})"] = (before[label] - after[:, label]).reshape(rows, rows)
largest = max(abs(fall).max() for fall in falls.values())
show(falls, cmap="RdBu_r", vmin=-largest, vmax=largest)

# %% [markdown]
# Red: covering this part takes the logit away, so the class hangs on it. Blue: covering it speaks for the class.
