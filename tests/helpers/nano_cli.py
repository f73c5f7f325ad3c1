"""The command line with a variant small enough for tests.

`python tests/helpers/nano_cli.py train ... --variant nano`
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import NANO

from keras_ci2p.cli import main
from keras_ci2p.models.variants import DUAL_SCALE_VARIANTS, VARIANTS

VARIANTS["nano"] = NANO
DUAL_SCALE_VARIANTS["nano"] = {**NANO, "early_dim": 16, "merge_at": 1}

if __name__ == "__main__":
    sys.exit(main())
