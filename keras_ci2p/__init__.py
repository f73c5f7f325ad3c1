"""CI2P-ViT (arXiv 2502.10120) for Keras 3: compressed images as patches of a Vision Transformer.

Everything is imported when it is first used, so that the command line answers without Keras. Files name classes that
Keras finds only where they are imported: so they are, with the later of this package and Keras.
"""

import importlib.abc
import importlib.util
import sys

from keras_ci2p.names import lazy_imports
from keras_ci2p.utils import first_line
from keras_ci2p.version import __version__

_MODULES = ["codec", "compare", "convert", "data", "export", "flops", "hub", "layers", "models", "presets", "training"]

__all__, _getattr, __dir__ = lazy_imports(
    __name__,
    {
        "flops": ["count_macs"],
        "models": [
            "CI2PViT",
            "CI2PViTBackbone",
            "CI2PViTDualScale",
            "CI2PViTDualScaleBackbone",
            "Compressor",
            "ViT",
            "ViTBackbone",
            "load_preset",
        ],
        "presets": ["list_presets"],
    },
    modules=_MODULES,
)
__all__ += ["__version__"]
_WITHOUT_KERAS = ("list_presets", "presets")


def __getattr__(name):
    if name in __all__ and name not in _WITHOUT_KERAS:
        check_backend()
    value = _getattr(name)
    if name not in _MODULES and (name not in _WITHOUT_KERAS or "keras" in sys.modules):
        # Modules of this package may ask for one another before they are whole.
        _register_classes()
    return value


def check_backend() -> None:
    """Raises ImportError with what to do unless Keras and its backend can be imported."""
    try:
        import keras  # noqa: F401
    except Exception as error:  # A framework that is damaged, or does not fit another, raises what it likes.
        raise ImportError(
            f"Keras cannot start: {first_line(error)}. Install a backend and name it, for example: "
            "pip install 'keras_ci2p[jax]' and set KERAS_BACKEND=jax (or torch, tensorflow)"
        ) from error


def _register_classes():
    """Imports the modules whose classes a file of Keras can name, which registers them."""
    import keras_ci2p.layers.batch_augmentation
    import keras_ci2p.models.augmented_classifier
    import keras_ci2p.models.ci2p_vit
    import keras_ci2p.training.distillation
    import keras_ci2p.training.optim  # noqa: F401


class _RegisterAfterKeras(importlib.abc.MetaPathFinder):
    """Registers our classes when Keras is imported after this package, and not by it."""

    def __init__(self):
        self._searching = False

    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            import_keras = spec.loader.exec_module

            def exec_module(module):
                import_keras(module)
                # A module of ours that imports Keras is not whole yet, so neither are those that need it.
                ours = {name for name in sys.modules if name.startswith("keras_ci2p.")}
                if ours <= {"keras_ci2p.names", "keras_ci2p.utils", "keras_ci2p.version"}:
                    _register_classes()

            spec.loader.exec_module = exec_module
        return spec


if "keras" in sys.modules:
    _register_classes()
else:
    sys.meta_path.insert(0, _RegisterAfterKeras())
