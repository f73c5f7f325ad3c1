"""Optional dependencies, imported when they are needed."""

import importlib


def require(module, extra):
    """Imports `module`, or raises an ImportError that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"This needs the package {package}, which is not installed: pip install 'keras_ci2p[{extra}]'"
        ) from error
