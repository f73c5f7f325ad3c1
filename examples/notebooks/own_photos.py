# %% [markdown]
# # Your own photos
#
# From a folder of photos to a model that is saved, in a few minutes on a laptop. `pip install 'keras_ci2p[jax,train]' scikit-image`.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or torch, tensorflow

import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from skimage import data as samples

import keras_ci2p

# %% [markdown]
# The folder has one subfolder for each class. Put your own here; to have something to begin with, these are pieces of four of
# scikit-image's pictures.

# %%
folder = Path(tempfile.mkdtemp()) / "photos"
rng = np.random.default_rng(0)
for name in ("astronaut", "chelsea", "coffee", "rocket"):
    picture = Image.fromarray(getattr(samples, name)())
    (folder / name).mkdir(parents=True)
    for i in range(40):
        side = int(rng.integers(96, 160))
        left, top = (int(rng.integers(0, size - side)) for size in picture.size)
        picture.crop((left, top, left + side, top + side)).save(folder / name / f"{i:02d}.jpg")

# %% [markdown]
# A fifth of each class is kept for validation, chosen by the photos' contents. Images come out augmented, RGB in 0..255, with one-hot labels.

# %%
data = keras_ci2p.data.open_data(folder)
train = keras_ci2p.data.image_folder(data, image_size=64, batch_size=16, split="train")
val = keras_ci2p.data.image_folder(data, image_size=64, batch_size=16, split="val")

images, labels = next(iter(train))
_, axes = plt.subplots(2, 6, figsize=(9, 3.4))
for ax, image, label in zip(axes.flat, images, labels, strict=False):
    ax.imshow(np.asarray(image).astype("uint8"))
    ax.set_title(train.class_names[int(np.argmax(label))], fontsize=9)
    ax.axis("off")
plt.tight_layout()

# %% [markdown]
# ## Fine-tune
#
# The shipped model with a head for these classes. The compressor stays frozen; the rest learns, at a small rate.

# %%
model = keras_ci2p.CI2PViT.from_preset(
    "animals10", image_shape=(64, 64, 3), num_classes=len(train.class_names), class_names=train.class_names
)
model.compile(
    keras.optimizers.AdamW(3e-4, weight_decay=0.05),
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    metrics=["accuracy"],
)
history = model.fit(
    train.repeat(),
    steps_per_epoch=train.steps_per_epoch,
    validation_data=val.repeat(),
    validation_steps=val.steps_per_epoch,
    epochs=6,
    verbose=0,
)
plt.plot(history.history["accuracy"], label="training")
plt.plot(history.history["val_accuracy"], label="validation")
plt.xlabel("epoch")
plt.ylabel("top-1")
plt.legend()
plt.show()
# %% [markdown]
# ## Keep it and use it

# %%
preset = folder.parent / "my_photos"
model.save_to_preset(preset)
model = keras_ci2p.CI2PViT.from_preset(preset)

photo = keras_ci2p.data.center_crop(Image.fromarray(samples.coffee()), model.image_shape[:2])
model.class_names[int(np.argmax(model.predict(photo[None], verbose=0)))]

# %% [markdown]
# The same on the command line, resumable and with a recipe of its own:
#
#     keras-ci2p train photos --init animals10 --recipe finetune --image-size 64 --epochs 6 --out run
#     keras-ci2p evaluate run photos
#
# With few photos and no preset of the like, `--teacher efficientnet-lite2` helps most.
