"""What several benchmarks need."""

import os
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from keras_ci2p.training import keep_freed_memory
from keras_ci2p.utils import num_cpus

# As the command line does; others' models gain from it too.
KEEPS_FREED_MEMORY = keep_freed_memory()
MEMORY_SETTINGS = {
    "keeps_freed_memory": KEEPS_FREED_MEMORY,
    "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
}


def add_data_argument(parser):
    """`--data`: photos for benchmarks, and where they are looked for unless it is given."""
    default = Path(__file__).parents[2] / "shared/data/animals10"
    parser.add_argument("--data", type=Path, default=default, help="folder of photos as `train` takes it")


def settings_of(args):
    """The command line as a result file records it: of paths only the last part, without where results go."""
    hidden = ("out", "memory_of", "case")
    return {key: _recorded(value) for key, value in vars(args).items() if key not in hidden}


def _recorded(value):
    is_path = isinstance(value, Path) or (isinstance(value, str) and os.sep in value)
    return Path(value).name if is_path else value


def noise_photos(root):
    """A folder of two classes of ten pictures of noise."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (80, 80, 3), "uint8")).save(root / name / f"{i}.png")
    return root


# On one core all threads share it, so that their seconds add up to those of the clock; and other processes at work on
# it do not count.
clock = time.process_time if num_cpus() == 1 else time.perf_counter


def timed(action):
    """Seconds that it takes."""
    began = clock()
    action()
    return clock() - began


class Stopwatch(keras.callbacks.Callback):
    """Seconds of an epoch, until its loss is known: without what `fit` does before and after.

    Args:
        untimed: How many steps to leave out at the beginning, where `fit` sets up its pipeline.
    """

    def __init__(self, untimed=0):
        super().__init__()
        self._untimed = untimed

    def on_epoch_begin(self, epoch, logs=None):
        self._began = clock()

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self._untimed:
            float(logs["loss"])
            self._began = clock()

    def on_epoch_end(self, epoch, logs=None):
        float(logs["loss"])
        self.seconds = clock() - self._began
