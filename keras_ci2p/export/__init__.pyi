# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.

from keras_ci2p.export.demo.build import DemoError as DemoError
from keras_ci2p.export.demo.build import write_demo as write_demo
from keras_ci2p.export.export import ExportError as ExportError
from keras_ci2p.export.export import ExportReport as ExportReport
from keras_ci2p.export.export import export as export
from keras_ci2p.export.formats import FORMATS as FORMATS
from keras_ci2p.export.formats import Network as Network
from keras_ci2p.export.formats import open_exported as open_exported
from keras_ci2p.export.formats import open_network as open_network
from keras_ci2p.export.inference import fold_batch_norm as fold_batch_norm
from keras_ci2p.export.int8 import Int8Report as Int8Report
from keras_ci2p.export.int8 import export_int8 as export_int8
