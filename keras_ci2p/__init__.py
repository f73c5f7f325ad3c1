"""CI2P-ViT (arXiv 2502.10120) for Keras 3: compressed images as patches of a Vision Transformer."""

from keras_ci2p.version import __version__

try:
    import keras  # noqa: F401
except (ModuleNotFoundError, ValueError) as error:
    # Keras's backend is missing. Reported when something is used, so that the command line can say it in one sentence.
    _failure = error
else:
    _failure = None

    from keras_ci2p import convert, data, export, flops, layers, models, presets, training
    from keras_ci2p.flops import count_macs
    from keras_ci2p.models import (
        CI2PViT,
        CI2PViTBackbone,
        CI2PViTDualScale,
        CI2PViTDualScaleBackbone,
        Compressor,
        ViT,
        ViTBackbone,
    )
    from keras_ci2p.presets import list_presets

__all__ = [
    "CI2PViT",
    "CI2PViTBackbone",
    "CI2PViTDualScale",
    "CI2PViTDualScaleBackbone",
    "Compressor",
    "ViT",
    "ViTBackbone",
    "__version__",
    "convert",
    "count_macs",
    "data",
    "export",
    "flops",
    "layers",
    "list_presets",
    "models",
    "presets",
    "training",
]


def check_backend():
    """Raises ImportError with what to do unless Keras found its backend."""
    if _failure is not None:
        raise ImportError(
            f"Keras cannot start: {_failure}. Install a backend and name it, for example: "
            "pip install 'keras_ci2p[jax]' and set KERAS_BACKEND=jax (or torch, tensorflow)"
        ) from _failure


def __getattr__(name):
    if name in __all__:
        check_backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
