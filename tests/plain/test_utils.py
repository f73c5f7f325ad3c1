import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import pytest
from PIL import Image

from keras_ci2p import data, names, setting, utils
from keras_ci2p.convert import state_dict
from keras_ci2p.data import animals10, layouts, tfds
from keras_ci2p.export import formats
from keras_ci2p.training import recipes


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A lazy package `lazy_one` with the module `things`, which defines `New` and `_Hidden`."""
    root = tmp_path / "lazy_one"
    root.mkdir()
    (root / "things.py").write_text("class New: pass\nclass _Hidden: pass\n")
    (root / "__init__.py").write_text(
        "from keras_ci2p.names import lazy_imports\n"
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
    module.__getattr__ = names.renamed_names("plain_one", {"old": "new"})
    monkeypatch.setitem(sys.modules, "plain_one", module)
    with pytest.warns(DeprecationWarning, match="plain_one.old is now called new"):
        assert module.old is module.new
    with pytest.raises(AttributeError, match="'nobody'"):
        _ = module.nobody


def test_did_you_mean():
    assert utils.did_you_mean("Tinny", ["tiny", "base"]) == " Did you mean 'tiny'?"
    assert utils.did_you_mean("TINY", ["tiny"]) == " Did you mean 'tiny'?" and utils.did_you_mean("x", []) == ""
    assert utils.wrong_choice("split", "vall", ("train", "val")) == (
        "`split` must be one of train, val. Received: split='vall'. Did you mean 'val'?"
    )
    assert utils.wrong_choice("split", None, ("train", "val")).endswith("Received: split=None.")


def test_files_are_written_to_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    utils.write_text("~/some/file.txt", "text")
    write("~/directory", "text")
    assert (tmp_path / "some" / "file.txt").is_file() and (tmp_path / "directory" / "file").is_file()
    assert not (tmp_path / "~").exists()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory; the current directory is another one, which stays empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    yield tmp_path
    assert not list(here.iterdir())


def test_what_is_read_may_lie_in_the_home_directory(home):
    """Whatever takes a path, without Keras."""
    for number, name in enumerate(("cat", "dog")):
        (home / "photos" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 100 * number, 9)).save(home / "photos" / name / f"{i}.png")
    for scan in (data.open_data, data.scan_folder):
        assert list(scan("~/photos").class_names) == ["cat", "dog"]
    assert len(data.scan_images("~/photos")) == len(list(layouts.visible_files("~/photos"))) == 12
    assert data.load_image("~/photos/cat/0.png").size == (8, 8)
    (home / "recipe.toml").write_text("base = 'quick'\nepochs = 3\n")
    assert recipes.read_recipe("~/recipe.toml").epochs == 3
    (home / "pairs.txt").write_text("gatto=cat\ncane=dog\n")
    assert setting.name_pairs("~/pairs.txt") == {"gatto": "cat", "cane": "dog"}
    assert utils.file_sha256("~/pairs.txt") == utils.file_sha256(home / "pairs.txt")
    with pytest.raises(data.DataError, match=f"no file or folder {home}/absent"):
        animals10.find_class_folders("~/absent")
    with pytest.raises(data.DataError, match=f"{home}/photos is not Animals-10"):
        animals10.find_class_folders("~/photos")
    with pytest.raises(FileExistsError, match=f"{home}/photos exists and is not empty"):
        animals10.lay_out(None, "~/photos")
    with pytest.raises(data.DataError, match=f"{home}/photos is no latent cache"):
        data.open_cache("~/photos")
    with pytest.raises(state_dict.CheckpointError, match=f"{home}/absent.pth"):
        state_dict.read_state_dict("~/absent.pth", {})
    for read in (formats.open_network, recipes.read_recipe):
        with pytest.raises((OSError, ValueError), match=f"{home}/absent"):
            read("~/absent.toml")


def test_caches_may_lie_in_the_home_directory(home, monkeypatch):
    """Also where no shell has read the variable, as in the file of a container."""
    monkeypatch.setenv("KERAS_CI2P_CACHE", "~/cache")
    assert utils.cache_directory() == home / "cache"
    monkeypatch.delenv("KERAS_CI2P_CACHE")
    assert utils.cache_directory() == home / ".cache" / "keras_ci2p"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert tfds._data_dir(None) == str(home / "sets") and tfds._data_dir("gs://bucket") == "gs://bucket"


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


def test_json_of_numpy(tmp_path):
    """Numbers and arrays, as keys too, however deep."""
    value = {"a": np.float32(0.5), np.int64(1): [np.arange(2), (np.bool_(True), None, "x")], "b": {"c": np.array(3)}}
    utils.write_json(tmp_path / "file.json", value)
    written = json.loads((tmp_path / "file.json").read_text())
    assert written == {"a": 0.5, "1": [[0, 1], [True, None, "x"]], "b": {"c": 3}}
    assert utils.without_arrays([np.int8(1), [2]]) == (1, (2,))


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (None, "is not installed"),
        ("raise OSError('no libthing.so\\nat all')", r"cannot be imported \(no libthing.so\)"),
    ],
)
def test_packages_that_are_absent_or_damaged(content, state, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / "optional_package.py").write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=rf"package optional_package, which {state}: pip install 'keras_ci2p\[hub\]'"):
        utils.require("optional_package", extra="hub")


def test_renamed_arguments():
    @names.renamed_arguments(pictures="num_images")
    def measure(data, num_images=100):
        return data, num_images

    with pytest.warns(DeprecationWarning, match="`pictures` is now called `num_images`"):
        assert measure("photos", pictures=3) == ("photos", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure("photos", num_images=3) == measure("photos", 3) == ("photos", 3)
    with pytest.raises(TypeError, match="got `num_images` and `pictures`"):
        measure("photos", num_images=3, pictures=3)
    assert list(inspect.signature(measure).parameters) == ["data", "num_images"]
