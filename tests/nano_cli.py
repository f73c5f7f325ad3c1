"""The command line with a variant small enough for tests: `python tests/nano_cli.py train ... --variant nano`."""

import sys

from conftest import NANO

from keras_ci2p.cli import main
from keras_ci2p.models.variants import VARIANTS

VARIANTS["nano"] = NANO

if __name__ == "__main__":
    sys.exit(main())
