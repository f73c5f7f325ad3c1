"""Names: of what packages import when it is first used, of the models and their sizes, of compressors, of operations.

Imports no Keras, nor anything else of this package.
"""

import functools
import importlib
import sys
import types
import warnings
from collections.abc import Iterator


class _LazyPackage(types.ModuleType):
    """A package of which a name wins over the module of the same name that defines it, as `train` in `train.py`."""

    def __setattr__(self, name, value):
        # Importing a module binds it in its package.
        if isinstance(value, types.ModuleType) and name in self._module_of:
            value = getattr(value, name)
        super().__setattr__(name, value)


def lazy_imports(package, names, modules=(), renamed=None):
    """Returns what the `__init__` of a package needs to import its names when they are first used (PEP 562).

    Args:
        package: `__name__` of the package.
        names: dict of modules of the package, each with a list of the names that it defines. A leading "." stands for
            the package's parent, as in relative imports.
        modules: Modules that are public themselves.
        renamed: dict of former names, each with the new one, for which it still stands with a DeprecationWarning. The
            new one is public, or "module.name" as in `names`.

    Returns:
        `__all__`, `__getattr__` and `__dir__` of the package, without the former names.
    """
    module_of = {name: module for module, some in names.items() for name in some}
    public = sorted({*module_of, *modules})
    renamed = renamed or {}
    this = sys.modules[package]
    this._module_of = module_of
    this.__class__ = _LazyPackage

    def get(name):
        if name in renamed:
            return _renamed(package, name, renamed[name])
        if name in module_of:
            value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
        elif name in modules:
            value = importlib.import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(this, name, value)
        return value

    return public, get, lambda: public


def renamed_names(module, renamed):
    """Returns the `__getattr__` of a module some of whose names have others now, as `renamed` of `lazy_imports`."""

    def get(name):
        if name in renamed:
            return _renamed(module, name, renamed[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return get


def _renamed(package, old, new):
    module, _, name = new.rpartition(".")
    where = importlib.import_module(f".{module}", package) if module else sys.modules[package]
    # Not kept in the package, so that each use warns. 3: the user's line.
    warnings.warn(f"{package}.{old} is now called {name}.", DeprecationWarning, stacklevel=3)
    return getattr(where, name)


def renamed_arguments(**renamed):
    """Returns a decorator of functions that also takes arguments by their former names, with a warning.

    Args:
        **renamed: Former names and today's: `pictures="num_images"`.
    """

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            for old in renamed.keys() & kwargs.keys():
                new = renamed[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got `{new}` and `{old}`, its former name.")
                warnings.warn(f"`{old}` is now called `{new}`.", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


# === Models ===
# Of the command line's `--model`; the classes are `keras_ci2p.models.CLASSIFIERS`.
MODELS = ("ci2p", "ci2p_dual", "vit")

VARIANTS = {
    "tiny": {"hidden_dim": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "small": {"hidden_dim": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "base": {"hidden_dim": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "large": {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    # mmpretrain's "small", with which the paper's FLOPs table was also made.
    "base_8": {"hidden_dim": 768, "num_layers": 8, "num_heads": 8, "mlp_dim": 2304},
}

# CI2P-ViT-ds, with "base" as in the paper: half of the blocks come before the merge, a quarter as wide as the others,
# rounded up to whole heads.
DUAL_SCALE_VARIANTS = {
    "tiny": {**VARIANTS["tiny"], "early_dim": 64, "merge_at": 6},
    "small": {**VARIANTS["small"], "early_dim": 128, "merge_at": 6},
    "base": {**VARIANTS["base"], "early_dim": 192, "merge_at": 6},
    "large": {**VARIANTS["large"], "early_dim": 256, "merge_at": 12},
    "base_8": {**VARIANTS["base_8"], "early_dim": 192, "merge_at": 4},
}

# Activations of heads that give probabilities.
PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid", "sparse_sigmoid", "sparsemax")

# Teachers that this package makes.
TEACHERS = ("efficientnet-lite2",)


# === Compressors ===
# CompressAI's architectures whose prior is the entropy bottleneck alone; and those with a hyperprior that is decoded
# at once, without a loop over pixels.
FACTORIZED = ("bmshj2018-factorized", "bmshj2018-factorized-relu")
HYPERPRIORS = ("bmshj2018-hyperprior", "mbt2018-mean")
# Those with both transforms and their prior: they can be trained, and code.
WHOLE = FACTORIZED + HYPERPRIORS
QUALITIES = range(1, 9)
# What compressors are trained for beside few bits.
METRICS = ("mse", "ms-ssim")
# CompressAI's `examples/train.py`.
AUXILIARY_LEARNING_RATE = 1e-3
CLIP_NORM = 1.0

# Stands in the place of a compressor's name for none.
NO_COMPRESSOR = "none"
# By what a compressor codes: by tables made from its weights, or by those that its checkpoint holds.
TABLE_CHOICES = ("weights", "checkpoint")

# File stem, and the first eight digits of the SHA-256 of qualities 1, 2, ...; source: CompressAI 1.2.8, `zoo/image.py`.
ZOO_FILES = {
    ("bmshj2018-factorized", "mse"): (
        "bmshj2018-factorized-prior",
        "446d5c7f 87279a02 5c6f152b 1ed4405a 866ba797 9b02ea3a 6dfd6734 5232faa3",
    ),
    ("bmshj2018-factorized", "ms-ssim"): (
        "bmshj2018-factorized-ms-ssim",
        "9781d705 4a584386 5352f123 4f91b847 b3a88897 ee028763 8c265a29 8811bd14",
    ),
    ("bmshj2018-hyperprior", "mse"): (
        "bmshj2018-hyperprior",
        "7eb97409 93677231 6d87be32 de1b779c f8b614e1 1ab9c41e 3804dcbd a583f0cf",
    ),
    ("bmshj2018-hyperprior", "ms-ssim"): (
        "bmshj2018-hyperprior-ms-ssim",
        "5cf249be 1ff60d1f 92dd7878 4377354e c34afc8d 3a6d8229 8747d3bc cc15b5f3",
    ),
    ("mbt2018-mean", "mse"): (
        "mbt2018-mean",
        "e522738d e54a039d 723404a8 6dba02a3 d504e8eb a19628ab d5d441d1 8089ae3e",
    ),
    ("mbt2018-mean", "ms-ssim"): (
        "mbt2018-mean-ms-ssim",
        "5bf9c0b6 e2a1bf3f 640ce819 12626c13 1be7f059 b83bf379 ddf9644c 0cc7b94f",
    ),
    ("mbt2018", "mse"): (
        "mbt2018",
        "3f36cd77 43b70cdd 22901978 456e2af9 b4a046dd 7052e5ea 8ba2bf82 dd0097aa",
    ),
    ("mbt2018", "ms-ssim"): (
        "mbt2018-ms-ssim",
        "2878436b c41cb208 d0dd64e8 a120e037 9b30e3b7 f8b3626f 16e6ff50 0cb49d43",
    ),
    ("cheng2020-anchor", "mse"): (
        "cheng2020-anchor",
        "dad2ebff a29008eb e49be189 98b0b468 23852949 4c052b1a",
    ),
    ("cheng2020-anchor", "ms-ssim"): (
        "cheng2020_anchor-ms-ssim",
        "20f521db c7ff5812 c23e22d5 0e658304 c0a95e77 f2dc1913",
    ),
    ("cheng2020-attn", "mse"): (
        "cheng2020_attn-mse",
        "465f2b64 e0805385 2d07bbdf f7b0ccf2 26c8920e 730501f2",
    ),
    ("cheng2020-attn", "ms-ssim"): (
        "cheng2020_attn-ms-ssim",
        "c5381d91 5dad201d 5c9be841 8b2f647e 5ca1f34c 216423ec",
    ),
}


def published_compressors() -> Iterator[tuple[str, str, int, str, str]]:
    """Each published compressor: `(name, architecture, quality, file name, first digits of its SHA-256)`."""
    for (architecture, metric), (stem, digits) in ZOO_FILES.items():
        for quality, digest in enumerate(digits.split(), start=1):
            yield (
                f"{architecture}-{metric}-{quality}",
                architecture,
                quality,
                f"{stem}-{quality}-{digest}.pth.tar",
                digest,
            )


def zoo_names() -> list[str]:
    """Names that `Compressor.from_preset` can download, such as "bmshj2018-factorized-mse-5".

    Examples:
        >>> keras_ci2p.convert.zoo_names()[:2]
        ['bmshj2018-factorized-mse-1', 'bmshj2018-factorized-mse-2']
    """
    return [name for name, *_ in published_compressors()]


def zoo_families() -> str:
    """The names that `zoo_names()` gives, in a short sentence."""
    qualities = ((f"{'-'.join(kind)}-", len(digits.split())) for kind, (_, digits) in ZOO_FILES.items())
    return ", ".join(f"{family}1 to {last}" for family, last in qualities)


# === Images, in layers and on the host ===
# RGB, 0..255: mmpretrain's `data_preprocessor` for ImageNet, as the paper configures it.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

# The mean, rounded: fills what a geometric operation has moved the image away from.
FILL = (124, 116, 104)

# Values below it are made brighter by `solarize_add` (AutoAugment).
SOLARIZE_ADD_THRESHOLD = 128

# The RandAugment operations on colours by their index in a batch's parameters. "none" stands for an operation that is
# not carried out and for a geometric one, which the batch's affine matrices carry out.
COLOR_OPERATIONS = (
    "none",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
