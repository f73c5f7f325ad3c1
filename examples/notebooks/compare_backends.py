# %% [markdown]
# # One model, three frameworks
#
# The same weights and the same images in a process for each backend: how far apart are the results, and how fast is each?
# `pip install 'keras_ci2p[torch,jax,tensorflow,train]'`; backends that are not installed are left out.

# %%
import importlib.util
import tempfile
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt

from keras_ci2p.compare import CompareConfig, compare, table

installed = tuple(name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name))
installed

# %%
out = Path(tempfile.mkdtemp())
settings = CompareConfig(backends=installed, variant="tiny", image_size=64, batch_size=4, steps=4)
report = compare(settings, out, verbose=0)
print(table(report))

# %%
plt.figure(figsize=(10, 4))
plt.imshow(matplotlib.image.imread(out / "comparison.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# On the command line, with photos of your own: `keras-ci2p compare --backends torch jax tensorflow --variant tiny --data photos`.
#
# A file that was trained on one backend is read by the others: weights do not know which framework made them.
