"""Getting models out: files for other runtimes, checked against the model before they are called done."""

from keras_ci2p.utils import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "export": ["ExportError", "ExportReport", "export"],
        "fold_batch_norm": ["fold_batch_norm"],
        "formats": ["FORMATS", "Network", "open_exported", "open_network"],
    },
)
