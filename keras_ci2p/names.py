"""Names of packages and modules: imported when they are first used, or found under those that they had before."""

import functools
import importlib
import sys
import types
import warnings


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
