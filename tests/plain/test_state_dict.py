"""Checkpoints as people have them: found in whatever holds them, and read without running anything."""

import argparse
import collections
import datetime
import enum
import functools
import gzip
import io
import pathlib
import pickle
import random
import struct
import sys
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch
from fuzz import fuzz

from keras_ci2p.convert import CheckpointError, from_compressai
from keras_ci2p.convert.state_dict import read_state_dict

LAYOUT = {"nets": r"first\.weight"}
FORMATS = {
    "zip": {},
    "before 1.6": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
}


def weights(seed=0):
    values = np.random.default_rng(seed).standard_normal(6).astype("float32")
    return {"first.weight": torch.tensor(values[:4].reshape(2, 2)), "last.bias": torch.tensor(values[4:])}


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def assert_same(found, state):
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value.detach().float().numpy())


def test_mutated_checkpoints(tmp_path):
    outcomes = fuzz(300, seed=1, directory=tmp_path)
    assert sum(n for (_, outcome), n in outcomes.items() if outcome == "refused") > 200


def test_zip_bomb(tmp_path):
    path = tmp_path / "bomb.pth.tar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))
    with pytest.raises(CheckpointError, match="compressed"):
        from_compressai(path)


PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.")
OUTER = ("", "model", "model_ema", "state_dict", "state_dict_ema", "net", "model_state_dict", "teacher", "a.b.c")


class TestWrappings:
    @pytest.mark.parametrize(
        "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]
    )
    @pytest.mark.parametrize(
        "outer",
        ["", "model", "model_ema", "state_dict", "state_dict_ema", "net", "model_state_dict", "teacher", "a.b.c"],
    )
    def test_keys_and_prefixes(self, outer, prefix, tmp_path):
        stored = prefixed(prefix, weights())
        for key in reversed(outer.split(".")) if outer else ():
            stored = {key: stored, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
        torch.save(stored, tmp_path / "file.pth")
        for source in (stored, tmp_path / "file.pth", str(tmp_path / "file.pth")):
            found = read_state_dict(source, LAYOUT)
            assert_same(found, weights())
            assert found.where == ".".join(filter(None, (outer, prefix.rstrip(".")))) and found.layout == "nets"

    def test_what_stands_beside_the_prefix_is_left_out_and_named(self):
        stored = {**prefixed("model.", weights()), "loss.weight": torch.ones(2), "metric.count": torch.tensor(3)}
        found = read_state_dict({"state_dict": stored}, LAYOUT)
        assert_same(found, weights())
        assert found.beside == ["loss.weight", "metric.count"]

    def test_records_among_the_weights(self):
        stored = {**weights(), "epoch": 3, "name": "x", "_extra_state": None, "options": {"lr": 0.1}, "accuracy": 0.9}
        assert_same(read_state_dict(stored, LAYOUT), weights())
        with pytest.raises(CheckpointError, match="last.bias is not an array of numbers: list"):
            read_state_dict({**weights(), "last.bias": [0.0, 1.0]}, LAYOUT)

    @pytest.mark.parametrize(
        ("best", "others"),
        [
            ("model", ["model_ema", "teacher"]),
            ("state_dict", ["state_dict_ema"]),
            ("teacher", ["student"]),
            ("teacher", ["ema", "student"]),
            ("state_dict.net", ["state_dict.ema_net"]),
            ("ema_model", ["student"]),
        ],
    )
    def test_of_several_the_best_or_the_one_asked_for(self, best, others):
        stored = {}
        for seed, where in enumerate([best, *others]):
            *outer, last = where.split(".")
            inner = stored.setdefault(outer[0], {}) if outer else stored
            state = prefixed("module.", weights(seed))
            inner.update(prefixed(f"{last}.", state) if outer else {last: state})
        found = read_state_dict(stored, LAYOUT)
        assert_same(found, weights())
        assert found.where == f"{best}.module" and sorted(found.others) == sorted(f"{name}.module" for name in others)
        for seed, where in enumerate([best, *others]):
            for key in (where, f"{where}.module", f"{where}."):
                assert_same(read_state_dict(stored, LAYOUT, key), weights(seed))

    def test_several_that_are_as_good_are_listed(self):
        stored = {"net": weights(), "target_net": weights(1), "net_ema": weights(2), "epoch": 3}
        with pytest.raises(CheckpointError, match="several sets of weights: net, target_net, net_ema. Give its `key`"):
            read_state_dict(stored, LAYOUT)
        assert_same(read_state_dict(stored, LAYOUT, "target_net"), weights(1))
        with pytest.raises(CheckpointError, match="under 'other': it has net, target_net, net_ema"):
            read_state_dict(stored, LAYOUT, "other")

    def test_nothing_that_fits(self):
        with pytest.raises(CheckpointError, match="no weights of nets: it begins with epoch, layer.weight"):
            read_state_dict({"layer.weight": np.zeros(3), "epoch": 3}, LAYOUT)
        endless = {"epoch": 3}
        endless["self"] = endless
        with pytest.raises(CheckpointError, match="no weights of nets"):
            read_state_dict(endless, LAYOUT)

    def test_class_names(self):
        for meta in ({"dataset_meta": {"classes": ("ant", "bee")}}, {"CLASSES": ["ant", "bee"]}):
            assert read_state_dict({"state_dict": weights(), "meta": meta}, LAYOUT).class_names == ["ant", "bee"]
        for meta in ({}, {"CLASSES": None}, {"CLASSES": [1, 2]}, {"dataset_meta": None}, 3, {"dataset_meta": {}}):
            assert read_state_dict({"state_dict": weights(), "meta": meta}, LAYOUT).class_names is None


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.rest = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False)])
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_whole_modules(options, tmp_path):
    net = Net()
    expected = net.state_dict()
    for stored, where in ((net, ""), ({"model": net, "epoch": 1}, "model"), (torch.nn.DataParallel(net), "module")):
        torch.save(stored, tmp_path / "net.pt", **options)
        for source in (stored, tmp_path / "net.pt"):
            found = read_state_dict(source, LAYOUT)
            assert_same(found, expected)
            assert found.where == where


class Colour(enum.Enum):
    RED = 1


class Settings(dict):
    """As mmengine's and other libraries' dicts with attributes."""

    def __getattr__(self, name):
        return self[name]


class Entries(list):
    pass


Point = collections.namedtuple("Point", "x y")
BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/1")),
    "path": pathlib.Path("photos"),
    "windows path": pathlib.PureWindowsPath("C:/photos"),
    "date": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(hours=1),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2]),
    "ordered": collections.OrderedDict(a=1),
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "NumPy scalars": [np.float32(0.1), np.float64(0.1), np.int64(3), np.bool_(True), np.str_("x")],
    "NumPy arrays": [np.ones(3, kind) for kind in ("uint8", "uint16", "uint32", "uint64", "float16", "int8", "?")],
    "other arrays": [np.array(["a"]), np.array([None]), np.zeros(2, "complex64"), np.zeros(2, "f4,i4")],
    "random state": np.random.RandomState(0).get_state(),
    "generator": np.random.default_rng(0),
    "Python's random state": random.getstate(),
    "torch's random state": torch.get_rng_state(),
    "enum": Colour.RED,
    "dict's subclass": Settings(lr=0.1, inner=Settings(a=1)),
    "list's subclass": Entries([1, 2]),
    "named tuple": Point(1, 2),
    "partial": functools.partial(np.mean, axis=0),
    "function": np.mean,
    "class": Net,
    "size, type, device": [torch.Size([1, 2]), torch.float32, torch.device("cpu"), torch.float8_e4m3fn],
    "simple namespace": types.SimpleNamespace(a=1),
    "uuid": uuid.UUID(int=1),
    "module": torch.nn.Linear(2, 2),
    "optimizer": torch.optim.AdamW(Net().parameters()).state_dict(),
    "large number": 10**30,
    "bytes": b"\x00\xff",
    "slice, range, complex": [slice(1), range(3), 1j],
    "quantised tensor": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    "complex tensor": torch.ones(2, dtype=torch.complex64),
    "sparse tensor": torch.eye(2).to_sparse(),
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_what_training_checkpoints_hold_beside_the_weights(options, tmp_path):
    path = tmp_path / "epoch_3.pth"
    for name, value in BESIDE.items():
        if name in ("quantised tensor", "complex tensor") and options == FORMATS["before 1.6"]:
            # The storages follow one another there, and these have no known size.
            continue
        torch.save({"state_dict": weights(), "meta": {"it": value}, "it": value}, path, **options)
        outcome, events = listen(path)
        assert not isinstance(outcome, CheckpointError) and not events, (name, outcome, events)
        assert_same(outcome, weights())


def test_objects_of_packages_that_are_not_installed(tmp_path, monkeypatch):
    """As mmengine's HistoryBuffer."""
    name = "mmengine.logging.history_buffer"
    module = types.ModuleType(name)

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.array([1.0, 2.0])
            self._statistics_methods = {"max": np.float64(2.0)}

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patched:
        for part in ("mmengine", "mmengine.logging"):
            patched.setitem(sys.modules, part, types.ModuleType(part))
        patched.setitem(sys.modules, name, module)
        torch.save({"state_dict": weights(), "message_hub": {"loss": HistoryBuffer()}}, tmp_path / "epoch_3.pth")
    assert_same(read_state_dict(tmp_path / "epoch_3.pth", LAYOUT), weights())


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_tensors_of_each_kind(options, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "first.weight": torch.nn.Parameter(base),
        "shared": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "no axes": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "bfloat16": base.bfloat16() / 3,
        "double": base.double() / 3,
        **{
            str(kind): base.to(kind)
            for kind in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
        },
        **{str(kind): base.to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64)},
    }
    torch.save(state, tmp_path / "file.pth", **options)
    for source in (state, tmp_path / "file.pth"):
        found = read_state_dict(source, LAYOUT)
        for key, value in state.items():
            value = value.detach()
            expected = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
            np.testing.assert_array_equal(found[key], expected)
            assert found[key].dtype == expected.dtype, key


def test_arrays_of_numpy_in_files(tmp_path):
    state = {key: value.numpy() for key, value in weights().items()}
    state |= {"columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">f4")}
    for protocol in range(2, 6):
        torch.save({"model": state}, tmp_path / "file.pth", pickle_protocol=protocol)
        # As detectron2 writes them.
        (tmp_path / "file.pkl").write_bytes(pickle.dumps({"model": state}, protocol))
        for name in ("file.pth", "file.pkl"):
            found = read_state_dict(tmp_path / name, LAYOUT)
            for key, value in state.items():
                np.testing.assert_array_equal(found[key], value)


def test_safetensors_of_each_kind(tmp_path):
    from safetensors.torch import save_file

    state = {
        **weights(),
        "half": torch.arange(3).half(),
        "bfloat16": torch.arange(3).bfloat16() / 3,
        "n": torch.arange(3),
    }
    # Told by its content, whatever its name.
    for name in ("file.safetensors", "file.bin"):
        save_file(state, tmp_path / name)
        assert_same(read_state_dict(tmp_path / name, LAYOUT), state)


class TestOtherFiles:
    @pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
                "pointer of Git LFS.*git lfs pull",
            ),
            (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
            (b"\xef\xbb\xbf\n <HTML>", "a web page"),
            (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
            (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
            (gzip.compress(bytes(100), mtime=0), "gzip: unpack it"),
            (b"not a checkpoint", "no PyTorch checkpoint|not a readable safetensors"),
            (b"", "is empty"),
        ],
    )
    def test_are_named(self, name, content, message, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as raised:
            read_state_dict(tmp_path / name, LAYOUT)
        assert "add_safe_globals" not in str(raised.value) and "weights_only" not in str(raised.value)

    def test_archives(self, tmp_path):
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
        np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
            archive.writestr("config.json", "{}")
        for name, message in (("script.pt", "TorchScript"), ("arrays.npz", "something else"), ("model.keras", "Keras")):
            with pytest.raises(CheckpointError, match=message):
                read_state_dict(tmp_path / name, LAYOUT)

    def test_no_file(self, tmp_path):
        with pytest.raises(CheckpointError, match="is a directory"):
            read_state_dict(tmp_path, LAYOUT)
        with pytest.raises(CheckpointError, match="There is no checkpoint"):
            read_state_dict(tmp_path / "absent.pth", LAYOUT)
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(CheckpointError, match="holds no state dict"):
            read_state_dict(tmp_path / "list.pth", LAYOUT)


_watching = []


def _watch(event, arguments):
    """Audit hooks stay for the life of a process; this one hears only while it is asked to."""
    is_reading = event == "open" and arguments[1] in ("r", "rb")
    if _watching and not is_reading and event not in ("builtins.id", "object.__getattr__"):
        _watching[-1].append((event, arguments))


sys.addaudithook(_watch)


def listen(path):
    """What happens while a file is read, beside the reading: the outcome, and the events."""
    events = []
    _watching.append(events)
    try:
        outcome = read_state_dict(path, LAYOUT)
    except CheckpointError as error:
        outcome = error
    finally:
        _watching.pop()
    return outcome, events


def attack(function, *arguments):
    class Attack:
        def __reduce__(self):
            return function, arguments

    return Attack()


def global_(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw_pickle(code, protocol=2):
    """A pickle of `{"state_dict": ...}`, whose value is what `code` makes."""
    return b"\x80" + bytes([protocol]) + b"}" + text("state_dict") + code + b"s."


def in_zip(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return file.getvalue()


def in_legacy(content):
    start = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*start, content, pickle.dumps([], 2)])


# Opcodes: R calls, o and i make objects, \x81 calls `__new__`, b sets the state, \x93 is a global of protocol 4, \x82
# an extension, Q a persistent object.
def attacks(witness):
    command = f"touch {witness}"
    opening = f"open({str(witness)!r}, 'w')"
    call = b"(" + text(command) + b"tR"
    yield "a function of os", raw_pickle(global_("os", "system") + call), True
    yield "under its own name", raw_pickle(global_("posix", "system") + call), True
    yield "Python 2's name", raw_pickle(global_("__builtin__", "eval") + b"(" + text(opening) + b"tR"), True
    for function in ("eval", "exec", "__import__", "open", "compile"):
        yield function, raw_pickle(global_("builtins", function) + b"(" + text(opening) + b"tR"), True
    yield "subprocess", raw_pickle(global_("subprocess", "Popen") + call), True
    yield "an object by i", raw_pickle(b"(" + text(command) + b"ios\nsystem\n"), True
    yield "an object by o", raw_pickle(b"(" + global_("os", "system") + text(command) + b"o"), True
    yield "protocol 4", raw_pickle(text("os") + text("system") + b"\x93" + call, 4), True
    yield (
        "a dotted name",
        raw_pickle(text("torch") + text("os.system") + b"\x93" + b"(" + text(command) + b"tR", 4),
        False,
    )
    yield "a module's module", raw_pickle(global_("torch.serialization", "os.system") + call), False
    yield "importlib", raw_pickle(global_("importlib", "import_module") + b"(" + text("this") + b"tR"), True
    yield "runpy", raw_pickle(global_("runpy", "run_path") + b"(" + text(str(witness)) + b"tR"), True
    yield "marshal", raw_pickle(global_("marshal", "loads") + b"(" + text("x") + b"tR"), True
    yield "torch.load", raw_pickle(global_("torch", "load") + b"(" + text(str(witness)) + b"tR"), False
    yield "torch's compiler", raw_pickle(global_("torch.utils.cpp_extension", "load") + call), False
    yield "NumPy's eval", raw_pickle(global_("numpy.testing._private.utils", "runstring") + call), False
    yield "this package", raw_pickle(global_("keras_ci2p.utils", "write_text") + call), False
    getattr_ = global_("builtins", "getattr") + b"(" + global_("collections", "OrderedDict") + text("__init__") + b"tR"
    yield "getattr", raw_pickle(getattr_ + b"(" + text("__globals__") + b"tR"), False
    yield "__new__", raw_pickle(global_("collections", "OrderedDict") + b"(t\x81"), False
    # Setting the state of what the reader itself is made of.
    for name in ("torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "numpy\ndtype", "torch\nSize", "a\nB"):
        at = b"c" + name.encode() + b"\n"
        state = b"}" + text("__class__") + global_("os", "system") + b"s"
        yield f"state of {name}", raw_pickle(at + state + b"b"), False
        harmless = b"}" + text("_call") + text("x") + b"s"
        yield f"attributes of {name}", raw_pickle(at + b"N" + harmless + b"\x86b"), False
    yield "state of a type", raw_pickle(global_("torch", "float32") + b"}" + text("a") + text("b") + b"sb"), False
    yield "extension", raw_pickle(b"\x82\x01"), False
    yield "persistent object", raw_pickle(text("os.system") + b"Q"), False
    yield (
        "another persistent object",
        raw_pickle(b"(" + text("module") + text("os") + text("a") + text("b") + b"K\x01tQ"),
        False,
    )
    yield "a huge memo", raw_pickle(b"}r\xff\xff\xff\x7f"), False
    yield "a huge array", raw_pickle(global_("builtins", "bytearray") + b"\x8a\x05\x00\x00\x00\x00\x10\x85R"), False


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "pickle"])
def test_nothing_runs(kind, tmp_path):
    witness = tmp_path / "witness"
    good = tmp_path / "good.pth"
    torch.save(weights(), good)
    # The module of this codec, of names in ZIP archives, is imported at its first use.
    b"x".decode("cp437")
    names = []
    for name, content, is_refused in attacks(witness):
        names.append(name)
        content = {"zip": in_zip, "before 1.6": in_legacy, "pickle": bytes}[kind](content)
        (tmp_path / "attack.pth").write_bytes(content)
        outcome, events = listen(tmp_path / "attack.pth")
        assert not events, (name, events)
        assert not witness.exists(), name
        # No attack has weights.
        assert isinstance(outcome, CheckpointError), name
        if is_refused:
            assert "is code and no weights: do not trust it. Nothing in it was executed" in str(outcome), (
                name,
                outcome,
            )
        # Nor is anything of the reader changed.
        assert_same(read_state_dict(good, LAYOUT), weights())
    assert len(names) == len(set(names)) > 30


def test_the_watch_hears(tmp_path):
    """That what `test_nothing_runs` does not hear is there to be heard."""
    witness = tmp_path / "witness"
    for content in (raw_pickle(global_("posix", "system") + b"(" + text(f"touch {witness}") + b"tR"),):
        events = []
        _watching.append(events)
        try:
            pickle.loads(content)
        finally:
            _watching.pop()
        assert "os.system" in {event for event, _ in events}
    assert witness.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "subprocess.Popen", "shutil.rmtree"])
@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_weights_do_not_hide_an_attack(tmp_path, name, options):
    module, function = name.rsplit(".", 1)
    witness = tmp_path / "witness"
    bad = attack(getattr(__import__(module), function), f"touch {witness}")
    torch.save({"state_dict": weights(), "message_hub": bad}, tmp_path / "attack.pth", **options)
    with pytest.raises(CheckpointError, match="Nothing in it was executed"):
        read_state_dict(tmp_path / "attack.pth", LAYOUT)
    assert not witness.exists()


def test_mutated_pickles(tmp_path):
    """The files of PyTorch before 1.6 have no checksums: whatever they hold ends in weights or in a clean error."""
    file = io.BytesIO()
    stored = {"state_dict": weights(), "meta": {"args": argparse.Namespace(a=np.arange(3)), "net": Net()}}
    torch.save(stored, file, _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(0)
    path = tmp_path / "file.pth"
    refused = 0
    for _ in range(500):
        content = bytearray(file.getvalue())
        # Most of the pickle, which is what an attacker writes.
        for at in rng.integers(len(content), size=int(rng.integers(1, 4))):
            content[at] = int(rng.integers(256))
        path.write_bytes(content)
        outcome, events = listen(path)
        refused += isinstance(outcome, CheckpointError)
        assert not events
    assert refused > 100
