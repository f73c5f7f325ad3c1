import importlib
import os
import subprocess
import sys
import threading
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


def write(path, text, then=None):
    with utils.atomic_directory(path) as temporary:
        (temporary / "file").write_text(text)
        if then:
            then()


@pytest.fixture(params=["exchange", "aside"])
def way(request, monkeypatch):
    """Both ways to replace a directory: by exchanging names, and where a system cannot."""
    if request.param == "aside":
        monkeypatch.setattr(utils, "_exchange", lambda one, other: False)
    return request.param


def test_a_directory_is_replaced_and_nothing_else_is_left(tmp_path, way):
    for text in ("one", "two", "three"):
        write(tmp_path / "it", text)
        assert (tmp_path / "it" / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_a_failure_leaves_the_directory_that_was_there(tmp_path, way, monkeypatch):
    write(tmp_path / "it", "one")

    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "it", "two", fail)
    monkeypatch.setattr(utils, "_exchange", lambda one, other: False)
    original = os.rename

    def fail_into_place(source, target):
        if utils._PARTIAL in str(source):
            raise OSError("no")
        original(source, target)

    monkeypatch.setattr(os, "rename", fail_into_place)
    with pytest.raises(OSError, match="no"):
        write(tmp_path / "it", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it" / "file").read_text() == "one"


def test_a_file_in_the_way_is_an_error(tmp_path, way):
    (tmp_path / "it").write_text("mine")
    with pytest.raises(OSError):
        write(tmp_path / "it", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["it"] and (tmp_path / "it").read_text() == "mine"


def test_without_replacing_the_first_stays(tmp_path):
    (tmp_path / "it").mkdir()
    for text in ("one", "two"):
        with utils.atomic_directory(tmp_path / "it", replace=False) as temporary:
            (temporary / "file").write_text(text)
    assert (tmp_path / "it" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_writers_of_one_directory_do_not_collide(tmp_path, way):
    """Each of many writers succeeds; where names can be exchanged, a reader finds a whole directory at any time."""
    path, failures, missing = tmp_path / "it", [], 0
    write(path, "0")
    done = threading.Event()

    def work(number):
        try:
            for _ in range(100):
                write(path, str(number))
        except OSError as error:
            failures.append(error)

    writers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    threading.Thread(target=lambda: ([writer.join() for writer in writers], done.set())).start()
    while not done.is_set():
        missing += not path.is_dir()
    assert not failures
    if way == "exchange" and sys.platform == "linux":
        assert missing == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["it"]


SLEEPER = """
import sys, time
from keras_ci2p import utils
with utils.atomic_directory(sys.argv[1] + "/directory") as one, utils.atomic_file(sys.argv[1] + "/file.txt") as two:
    one.joinpath("part").write_text("half")
    two.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_clean_up_leaves_living_writers_alone_and_removes_killed_ones(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        # This process too.
        with utils.atomic_directory(tmp_path / "mine") as mine, utils.atomic_file(tmp_path / "mine.txt") as text:
            text.write_text("mine")
            utils.clean_up(tmp_path)
            assert mine.is_dir() and text.is_file()
            assert len(list(tmp_path.iterdir())) == 4
    finally:
        process.kill()
        process.wait()
    assert len(list(tmp_path.glob("*.partial-*"))) == 2
    utils.clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.txt"]


def test_clean_up_waits_a_day_for_other_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "_MACHINE", "abcdef")
    names = [f"{name}{utils._PARTIAL}{utils._mark()}" for name in ("old", "new")]
    monkeypatch.undo()
    for name in names:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / names[0], (0, 0))
    utils.clean_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == names[1:]


def test_clean_up_knows_the_names_of_earlier_versions_and_of_another_process_with_this_number(tmp_path, monkeypatch):
    (tmp_path / "it.partial-1a2b3c4d").mkdir()
    (tmp_path / "it.partial-1a2b3c4d.npz").write_text("half")
    (tmp_path / "one.replaced-1a2b3c4d").mkdir()
    monkeypatch.setattr(utils, "_PROCESS", "abcdef")
    mark = utils._mark()
    monkeypatch.undo()
    (tmp_path / f"it.partial-{mark}").mkdir()
    utils.clean_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_several_clean_up_at_once(tmp_path):
    failures = []

    def work():
        try:
            utils.clean_up(tmp_path)
        except OSError as error:
            failures.append(error)

    for round_ in range(20):
        for number in range(10):
            (tmp_path / f"{round_}-{number}.partial-00000000").mkdir()
            (tmp_path / f"{round_}-{number}.replaced-00000000").mkdir()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures and len(list(tmp_path.iterdir())) == 200
