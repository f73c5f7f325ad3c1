import sys

from keras_ci2p.cli import main

sys.exit(main())
