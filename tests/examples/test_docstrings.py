"""Every public function and class has an example in its docstring, and the examples run as they are written."""

import doctest
import importlib
import types

import keras
import numpy as np
import pytest

import keras_ci2p

FOLDERS = ("", ".codec", ".convert", ".data", ".export", ".hub", ".layers", ".models", ".presets", ".training")
# Modules whose other names are not for users.
FURTHER = {".compare": ("CompareConfig", "compare")}
# Examples with a line that is not run, each with the reason.
SKIPPED = {
    "compare": "it starts a process for each backend",
    "export_int8": "it takes photos of the model's classes",
    "keep_freed_memory": "it holds for the whole process, and not on every system",
    "make_teacher": "it converts a network, which takes a minute",
    "prepare_tfds": "it takes the archive of Animals-10",
    "write_demo": "npm fetches the runtime",
}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Checker(doctest.OutputChecker):
    """Takes torch's way to print a shape for that of the other backends."""

    def check_output(self, want, got, optionflags):
        return super().check_output(want, got.replace("torch.Size([", "(").replace("])", ")"), optionflags)


def documented():
    """The doctest of each public function and class, by its name; those of `hub` are other classes of the same name."""
    finder, found = doctest.DocTestFinder(recurse=False, exclude_empty=False), {}
    names = {folder: importlib.import_module(f"keras_ci2p{folder}").__all__ for folder in FOLDERS} | FURTHER
    for folder, public in names.items():
        module = importlib.import_module(f"keras_ci2p{folder}")
        for name in public:
            value = getattr(module, name)
            if isinstance(value, type | types.FunctionType):
                name = f"hub.{name}" if folder == ".hub" else name
                (found[name],) = finder.find(value, name, globs={})
    return found


EXAMPLES = documented()


def test_every_public_name_has_an_example():
    assert len(EXAMPLES) > 110
    assert [name for name, test in EXAMPLES.items() if not test.examples] == []
    skipped = [name for name, test in EXAMPLES.items() if any(doctest.SKIP in e.options for e in test.examples)]
    assert sorted(skipped) == sorted(SKIPPED)


@pytest.mark.once
@pytest.mark.parametrize("test", [pytest.param(test, id=name) for name, test in EXAMPLES.items()])
def test_example(test, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test.globs.update(keras=keras, keras_ci2p=keras_ci2p, np=np)
    said = []
    failed, _ = doctest.DocTestRunner(Checker(), optionflags=OPTIONS).run(test, out=said.append)
    assert not failed, "".join(said)
