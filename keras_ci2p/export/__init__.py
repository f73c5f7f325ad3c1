"""Getting models out: files for other runtimes, checked against the model before they are called done."""

from keras_ci2p.names import lazy_imports

__all__, __getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "export": ["ExportError", "ExportReport", "export"],
        "demo.build": ["DemoError", "write_demo"],
        "inference": ["fold_batch_norm"],
        "int8": ["Int8Report", "export_int8"],
        "formats": ["FORMATS", "Network", "open_exported", "open_network"],
    },
)
