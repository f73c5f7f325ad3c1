"""Every public function, and every public method of this package, has the types of its parameters and its result."""

import functools
import importlib
import inspect
import types
from pathlib import Path

import pytest
import stubs
from test_docstrings import FOLDERS, FURTHER

import keras_ci2p

# The same on every backend.
pytestmark = pytest.mark.once
PACKAGE = Path(keras_ci2p.__file__).parent
_CALLED = ("__init__", "__call__", "__len__")


def functions_of(value):
    """The functions behind what stands in a class: of a property those that get and set it."""
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value.__func__ if isinstance(value, classmethod | staticmethod) else value]


def public_functions():
    """All of them, `(name, function)`; of a class also those of its bases in this package."""
    names = {folder: importlib.import_module(f"keras_ci2p{folder}").__all__ for folder in FOLDERS} | FURTHER
    for folder, public in names.items():
        for name in public:
            value = getattr(importlib.import_module(f"keras_ci2p{folder}"), name)
            if isinstance(value, types.FunctionType):
                yield name, inspect.unwrap(value)
            for owner in inspect.getmro(value) if isinstance(value, type) else ():
                for method, attribute in vars(owner).items():
                    if not method.startswith("_") or method in _CALLED:
                        for function in functions_of(attribute):
                            yield f"{owner.__name__}.{method}", inspect.unwrap(function) if function else None


def unannotated(function):
    """Names of the parameters without a type, and "return" where the result has none."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    missing = [p.name for p in parameters if p.annotation is p.empty]
    return missing + (["return"] if signature.return_annotation is signature.empty else [])


def is_ours(function):
    """Whether its text stands in this package: dataclasses make some of their own."""
    return isinstance(function, types.FunctionType) and PACKAGE in Path(function.__code__.co_filename).parents


def test_public_functions():
    functions = {name: function for name, function in public_functions() if is_ours(function)}
    assert len(functions) > 300
    assert {name: unannotated(f) for name, f in functions.items() if unannotated(f)} == {}


def test_what_is_missing_is_found():
    def function(self, given: int, missing, *more): ...

    assert unannotated(function) == ["missing", "more", "return"]


def test_stubs_are_those_of_the_tables():
    found = dict(stubs.stubs(PACKAGE))
    assert len(found) == 9 and set(found) == set(PACKAGE.rglob("*.pyi"))
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text, "python tools/stubs.py"


def test_stubs_name_all_that_is_public():
    for folder in FOLDERS:
        module = importlib.import_module(f"keras_ci2p{folder}")
        stub = PACKAGE.joinpath(*filter(None, folder.split(".")), "__init__.pyi")
        if folder != ".presets":
            named = {line.split()[-1] for line in stub.read_text(encoding="utf-8").splitlines() if " as " in line}
            assert set(module.__all__) <= named, folder


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
