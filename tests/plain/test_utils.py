import importlib
import os
import sys
import types
import warnings

import pytest

from keras_ci2p import utils


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A lazy package `lazy_one` with the module `things`, which defines `New` and `_Hidden`."""
    root = tmp_path / "lazy_one"
    root.mkdir()
    (root / "things.py").write_text("class New: pass\nclass _Hidden: pass\n")
    (root / "__init__.py").write_text(
        "from keras_ci2p.utils import lazy_imports\n"
        '__all__, __getattr__, __dir__ = lazy_imports(__name__, {"things": ["New"]}, '
        'renamed={"Old": "New", "Older": "things._Hidden"})\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("lazy_one")
    for name in ("lazy_one", "lazy_one.things"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("old, new", [("Old", "New"), ("Older", "_Hidden")])
def test_a_former_name_is_the_new_object_and_warns_each_time_at_the_users_line(package, old, new):
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match=f"lazy_one.{old} is now called {new}") as caught:
            value = getattr(package, old)
        assert caught[0].filename == __file__
    assert value is getattr(package.things, new)
    with pytest.warns(DeprecationWarning):
        exec(f"from lazy_one import {old}", {})


def test_former_names_are_not_advertised(package):
    assert package.__all__ == ["New"] and "Old" not in dir(package)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert package.New.__name__ == "New"
        exec("from lazy_one import *", {})
    with pytest.raises(AttributeError, match="'Nobody'"):
        _ = package.Nobody


def test_a_module_too_can_have_former_names(monkeypatch):
    module = types.ModuleType("plain_one")
    module.new = object()
    module.__getattr__ = utils.renamed_names("plain_one", {"old": "new"})
    monkeypatch.setitem(sys.modules, "plain_one", module)
    with pytest.warns(DeprecationWarning, match="plain_one.old is now called new"):
        assert module.old is module.new
    with pytest.raises(AttributeError, match="'nobody'"):
        _ = module.nobody


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_num_cpus_is_what_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert utils.num_cpus() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert utils.num_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
