# %% [markdown]
# # The compressor on your images
#
# A learned image compressor is the first half of CI2P-ViT. It was trained on photos of animals; is it good for *your* images? And how is one
# trained? `pip install 'keras_ci2p[jax,train]' scikit-image`.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or torch, tensorflow

import keras
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data

import keras_ci2p

compressor = keras_ci2p.Compressor.from_preset("bmshj2018-factorized-mse-5-photos")

# %% [markdown]
# ## Bits and decibels
#
# Pictures of quite different kinds: animals, people, a galaxy, tissue under the microscope, a page of print.

# %%
pictures = {
    "chelsea": data.chelsea(),
    "astronaut": data.astronaut(),
    "galaxies": data.hubble_deep_field(),
    "tissue": data.immunohistochemistry(),
    "page": np.repeat(data.page()[:, :, None], 3, axis=2),
}
_, axes = plt.subplots(2, len(pictures), figsize=(12, 5.2))
for (name, picture), (above, below) in zip(pictures.items(), axes.T, strict=True):
    crop = keras_ci2p.data.center_crop(Image.fromarray(picture), (192, 192))
    latents = keras.ops.round(compressor.encode(crop[None]))
    decoded = keras.ops.convert_to_numpy(compressor.decode(latents))[0].clip(0, 255)
    error = np.mean((decoded - crop) ** 2)
    bits = float(compressor.bits_per_pixel(crop[None]))
    above.imshow(crop)
    above.set_title(name)
    below.imshow(decoded.astype("uint8"))
    below.set_title(f"{10 * np.log10(255**2 / error):.1f} dB, {bits:.2f} bits a pixel", fontsize=9)
for ax in axes.flat:
    ax.axis("off")
plt.tight_layout()

# %% [markdown]
# ## Train one
#
# By CompressAI's objective, rate plus distortion, with Keras's own `fit`; here a narrow one, on pieces of one picture, for a minute. For a real one:
# `keras-ci2p train-compressor FOLDER --quality 5 --steps 20000 --out compressor`.

# %%
source = data.immunohistochemistry()
rng = np.random.default_rng(0)
corners = rng.integers(0, 512 - 64, (128, 2))
pieces = np.stack([source[top : top + 64, left : left + 64] for top, left in corners])

small = keras_ci2p.Compressor("bmshj2018-factorized", quality=None, channels=(24, 32))
small.compile(lmbda=0.025)
history = small.fit(pieces, batch_size=8, epochs=12, verbose=0)
plt.plot(history.history["loss"])
plt.yscale("log")
plt.xlabel("epoch")
plt.ylabel("rate + distortion")
plt.show()

# %% [markdown]
# `keras_ci2p.CI2PViT(compressor=small)` puts it into a classifier, and `keras_ci2p.convert.to_compressai(small)` into CompressAI.
