"""CI2P-ViT (arXiv 2502.10120) for Keras 3: compressed images as patches of a Vision Transformer.

Everything is imported when it is first used. `keras.models.load_model` finds classes that are imported: all are, where
Keras is imported before this package; else import `keras_ci2p.models` and `keras_ci2p.layers` first.
"""

import sys

from keras_ci2p.utils import lazy_imports
from keras_ci2p.version import __version__

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
    modules=["compare", "convert", "data", "export", "flops", "hub", "layers", "models", "presets", "training"],
)
__all__ += ["__version__"]
_WITHOUT_KERAS = ("list_presets", "presets")


def __getattr__(name):
    if name in __all__ and name not in _WITHOUT_KERAS:
        check_backend()
    return _getattr(name)


def check_backend():
    """Raises ImportError with what to do unless Keras finds its backend."""
    try:
        import keras  # noqa: F401
    except (ModuleNotFoundError, ValueError) as error:
        raise ImportError(
            f"Keras cannot start: {error}. Install a backend and name it, for example: "
            "pip install 'keras_ci2p[jax]' and set KERAS_BACKEND=jax (or torch, tensorflow)"
        ) from error


def _register():
    """Imports what Keras's files can name, which registers it."""
    import keras_ci2p.layers.batch_augmentation
    import keras_ci2p.models
    import keras_ci2p.training.distillation
    import keras_ci2p.training.optim

    for name in keras_ci2p.models.__all__:
        getattr(keras_ci2p.models, name)


if "keras" in sys.modules:
    _register()
