import sys

from keras_ci2p.cli.main import main

sys.exit(main())
