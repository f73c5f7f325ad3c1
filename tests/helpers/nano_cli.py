"""The command line with a variant small enough for tests.

`python tests/helpers/nano_cli.py train ... --variant nano`

With `WAITING_RUN` in the environment a run waits for its end in the second batch of the second epoch, so that a test
that stops it there is never too late.
"""

import importlib
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import NANO

from keras_ci2p.cli import main
from keras_ci2p.names import DUAL_SCALE_VARIANTS, VARIANTS

VARIANTS["nano"] = NANO
DUAL_SCALE_VARIANTS["nano"] = {**NANO, "early_dim": 16, "merge_at": 1}


def wait_in_second_epoch():
    from keras_ci2p.training.callbacks import InterruptCallback

    class WaitingCallback(InterruptCallback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
            super().on_epoch_begin(epoch, logs)

        def on_train_batch_begin(self, batch, logs=None):
            # Keras may have dropped what came before.
            super().on_train_batch_begin(batch, logs)
            if (self.epoch, batch) == (1, 1):
                time.sleep(100)

    for name in ("train", "train_compressor"):
        importlib.import_module(f"keras_ci2p.training.{name}").InterruptCallback = WaitingCallback


if __name__ == "__main__":
    if "WAITING_RUN" in os.environ:
        wait_in_second_epoch()
    sys.exit(main())
