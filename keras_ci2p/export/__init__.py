"""Getting models out: files for other runtimes, checked against the model before they are called done."""

from keras_ci2p.export.batch_norm import fold_batch_norm
from keras_ci2p.export.exporter import ExportError, ExportReport, export
from keras_ci2p.export.formats import FORMATS
from keras_ci2p.export.runtimes import Network, open_exported, open_network

__all__ = [
    "FORMATS",
    "ExportError",
    "ExportReport",
    "Network",
    "export",
    "fold_batch_norm",
    "open_exported",
    "open_network",
]
