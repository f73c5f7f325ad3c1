"""The command line before a command runs: what needs no Keras, and what is refused."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
import types
import warnings

import pytest

from keras_ci2p import cli
from keras_ci2p.cli import main
from keras_ci2p.data.manifest import index_path
from keras_ci2p.utils import write_bytes

COMMANDS = (
    "data train-compressor cache train evaluate predict compress decompress publish quantize export demo info flops "
    "compare convert"
)


def test_no_keras_for_help_version_and_wrong_arguments(tmp_path):
    code = f"""
import sys
import types
from keras_ci2p.cli import main
tried = [["--help"], ["--version"], ["nothing"], [], *([name, "--help"] for name in {COMMANDS.split()!r})]
tried += [
    ["train"], ["train", "x", "--epochs", "many"], ["train", "x", "--out", "r", "--seed", "-1"],
    ["train", "x", "--out", "r", "--model", "vit", "--freeze-compressor"], ["train", "x", "--out", "r", "--set", "a"],
    ["train", "x", "--out", "r", "--recipe", "fast"], ["train", "x"], ["train", "--show-recipe"],
    ["train-compressor", "x", "--out", "r", "--lr", "-1"], ["train-compressor", "x"],
    ["cache", "x", "y", "--views", "0"],
    ["compare", "--steps", "1"], ["evaluate", "x"], ["evaluate", "x", "y", "--worst", "-1"], ["predict", "x"],
    ["info", "x", "--num-classes", "3"], ["flops", "x", "--model", "vit"], ["export", "x", "y", "--format", "z"],
    ["publish", "x", "y"], ["convert", "x", "y", "--quality", "0"],
    ["predict", "absent", "."], ["predict", "animals10", "absent.jpg"], ["predict", "animals10", "absent/*.jpg"],
    ["predict", "animals10", "empty"], ["predict", "animals10", "-"], ["predict", "animals10", ".", "--json", "--csv"],
    ["evaluate", "absent", "."], ["evaluate", "animals10", "absent"], ["train", "absent", "--out", "r"],
    ["train", ".", "--out", "r", "--init", "absent"], ["train", ".", "--out", "r", "--compressor", "absent"],
    ["cache", "absent", "y"], ["train-compressor", "absent", "--out", "r"],
    ["publish", "absent", "y", "--data", "."], ["publish", "animals10", "y", "--data", "absent"],
    ["export", "absent", "y", "--format", "onnx"], ["quantize", "absent", "y"], ["info", "absent"], ["flops", "absent"],
]
for argv in tried:
    try:
        code = main(argv)
    except SystemExit as ended:
        code = ended.code
    expected = 0 if argv in (["--version"], ["train", "--show-recipe"]) or "--help" in argv else 2
    assert code == expected, (argv, code)
    loaded = {{"keras", "torch", "jax", "tensorflow", "grain", "matplotlib"}} & set(sys.modules)
    assert not loaded, (argv, loaded)
"""
    (tmp_path / "empty").mkdir()
    # No backend that could be started: it is not asked for.
    environment = {**os.environ, "KERAS_BACKEND": "absent"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, input=""
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "batch_size = 32" in done.stdout


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.findall(r"^    ([\w-]+)", capsys.readouterr().out, re.MULTILINE) == COMMANDS.split()
    for name in COMMANDS.split():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text = capsys.readouterr().out.lower().replace("photos.npz", "").replace("mse-5-photos", "")
        assert "photo" not in text and "--pictures" not in text, name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("info animals10 --num-classes 5", "--num-classes is for a VARIANT"),
        ("info animals10 --model vit", "--model is for a VARIANT"),
        ("info animals10 --model ci2p", "animals10 is a model that has its own"),
        ("flops animals10 --model vit", "--model is for a VARIANT"),
        ("train x --out r --model vit --freeze-compressor", "has not. Received: freeze_compressor=True"),
        (
            "train x --out r --model vit --no-freeze-compressor",
            "has not. Received: freeze_compressor=False",
        ),
        (
            "train x --out r --model vit --compressor none --compressor y",
            "has not. Received: compressor='y'",
        ),
        ("train x --out r --in-memory", "in_memory goes with augment='device'"),
        ("train x --out r --teacher-size 3", "teacher_size goes with a teacher"),
        ("train x --out r --minutes 3 --epochs 4", "--minutes chooses the epochs"),
        ("train x --out r --minutes 3 --set warmup_epochs=4", "--minutes chooses the epochs"),
        ("cache x y --teacher-size 64", "--teacher-size goes with a teacher"),
        ("cache x y --more-views 2 --store rounded", "Received also: --store"),
        ("cache x y --more-views 2 --views 4", "Received also: --views"),
        ("cache x y --verify --seed 0", "Received also: --seed"),
        ("cache x y --verify --resume", "Received also: --resume"),
        ("cache x y --verify --teacher t", "Received also: --teacher"),
        ("train x --out r --ema-warmup", "ema_warmup goes with an average"),
    ],
)
def test_options_that_do_not_apply(argv, message, capsys):
    assert main(argv.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ("evaluate x y --split vall", ". Did you mean 'val'?"),
        ("evaluat x y", ". Did you mean 'evaluate'?"),
        ("export x y --format Onxn", ". Did you mean 'onnx'?"),
        ("train x --out r --model vits", ". Did you mean 'vit'?"),
        ("evaluate x y --split holdout", "(choose from "),
    ],
)
def test_choices_that_are_nearly_meant(argv, hint, capsys):
    with pytest.raises(SystemExit):
        main(argv.split())
    message = capsys.readouterr().err
    assert hint in message and message.count("Did you mean") == hint.count("Did you mean")


@pytest.mark.parametrize(
    "argv",
    [
        "train x --out r --epochs many",
        "train x --out r --devices -2",
        "train x --out r --class-weights cat=heavy",
        "train x --out r --class-weights cat=-1",
        "train-compressor x --out r --steps 1.5",
        "cache x y --threads 0",
        "cache x y --more-views 0",
        "evaluate x y --batch-size 0",
        "evaluate x y --worst -1",
        "evaluate x y --pictures 0",
        "evaluate x y --size -16",
        "predict x y --top 0",
        "info tiny --num-classes 0",
        "flops --image-size -32",
        "export x y --format onnx --image-size 0",
        "publish x y --data z --batch-size -1",
        "convert x y --image-size 0",
    ],
)
def test_wrong_numbers(argv, capsys):
    """Told with the usage, and the option's name."""
    with pytest.raises(SystemExit) as ended:
        main(argv.split())
    option = [word for word in argv.split() if word.startswith("--")][-1]
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"argument {option}: must be" in said or f"argument {option}: expected one argument" in said, said


@pytest.mark.parametrize("argv", ["--out r x --model vit", "x --out r --model vit", "--model vit x --out r"])
def test_data_anywhere_among_the_options(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    args = cli.make_parser().parse_args(["train", *argv.split()])
    args.prepare(args)
    assert args.config.data == "x" and args.config.model == "vit" and args.out == "r"


def test_rescan_forgets_the_index_of_a_folder(tmp_path, monkeypatch, capsys):
    """Of each command with DATA, before it runs."""
    index = index_path(tmp_path)
    for argv in ("evaluate animals10 {}", "train {} --out r", "cache {} y", "train-compressor {} --out r"):
        write_bytes(index, b"")
        monkeypatch.setattr(cli.keras_ci2p, "check_backend", lambda: exec("raise ImportError"))
        assert main([*argv.format(tmp_path).split()]) == 2 and index.is_file()
        assert main([*argv.format(tmp_path).split(), "--rescan"]) == 2 and not index.is_file()
    assert main(["evaluate", "animals10", "tfds:mnist", "--rescan"]) == 2
    assert "Only a folder can be read again" in capsys.readouterr().err


def test_older_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    args = cli.make_parser().parse_args(["train-compressor", "x", "--out", "r", "--val-pictures", "7"])
    args.prepare(args)
    assert args.config.val_images == 7
    assert cli.make_parser().parse_args(["evaluate", "x", "y", "--pictures", "7"]).images == 7


def test_home_directories_that_no_shell_has_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a/metadata.json", "run/metadata.json", "1.jpg", "~/2.jpg"):
        write_bytes(tmp_path / name, b"")
    found = []
    for module, name in (("train_commands", "run_train"), ("predict_command", "predict")):
        monkeypatch.setattr(importlib.import_module(f"keras_ci2p.cli.{module}"), name, found.append)
    assert main(["train", "~/photos", "--out=~/run", "--init", "~/a", "--class-weights", "~cat=2"]) == 0
    assert main(["predict", "~/run", "~/1.jpg", "./~/2.jpg"]) == 0
    config = found[0].config
    assert (config.data, config.init, found[0].out) == tuple(f"{tmp_path}/{name}" for name in ("photos", "a", "run"))
    assert config.class_weights == {"~cat": 2}
    assert found[1].images == [f"{tmp_path}/1.jpg", "./~/2.jpg"]


@pytest.mark.parametrize(
    "argv", [f"predict {{}} {__file__}", "info {}", "flops {}", "export {} x --format onnx", "quantize {} x"]
)
def test_a_compressor_is_no_classifier(argv, capsys):
    assert main(argv.format("bmshj2018-factorized-mse-5-photos").split()) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "is a compressor; this takes a classifier" in told


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_while_packages_are_imported(tmp_path):
    """Some of them make an error of their own of KeyboardInterrupt, or drop it."""
    (tmp_path / "keras.py").write_text(
        "import pathlib, time\n"
        "try:\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise RuntimeError('half imported')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_ci2p", "info", "tiny"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and said.endswith("\nInterrupted.\n") and "Traceback" not in said, said


@pytest.fixture
def failing(monkeypatch):
    """The command `info`, which fails in a way of its own."""

    def make(fail):
        monkeypatch.setattr(importlib.import_module("keras_ci2p.cli.evaluate_commands"), "info", lambda args: fail())

    return make


def of_another_package():
    importlib.import_module("json").loads("{")


def of_an_operation():
    return int("x")


@pytest.mark.parametrize("fail", [of_another_package, of_an_operation])
def test_internal_errors(fail, failing, capsys):
    failing(fail)
    assert main(["info", "tiny"]) == 2
    told, hint = capsys.readouterr().err.splitlines()
    assert told.startswith("keras-ci2p: error: ") and "--debug shows where" in hint
    assert main(["info", "tiny", "--debug"]) == 2
    said = capsys.readouterr().err
    assert f"in {fail.__name__}" in said and said.splitlines()[-1] == told


def test_errors_of_its_own_need_no_hint(capsys):
    assert main(["info", "absent"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "Unknown preset" in told
    assert main(["info", "absent", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def interrupted():
    # Not by `exec`, after which CPython ends with 130, whoever has caught it.
    raise KeyboardInterrupt


@pytest.mark.parametrize("fail", [lambda: None, lambda: int("x"), interrupted, "system"])
def test_warnings_are_shown_as_before_afterwards(fail, failing, capsys):
    """However a command ends."""
    shown = warnings.showwarning

    def warn():
        warnings.warn("careful", UserWarning, stacklevel=1)
        if fail == "system":
            raise RuntimeError
        fail()

    failing(warn)
    try:
        main(["info", "tiny"])
    except RuntimeError:
        assert fail == "system"
    assert warnings.showwarning is shown
    assert "keras-ci2p: warning: careful\n" in capsys.readouterr().err


def test_a_shell_that_asks_for_completions(monkeypatch):
    """As `register-python-argcomplete` asks; without argcomplete, and without such a question, nothing happens."""
    asked = []

    def answer(parser):
        asked.append(parser.prog)
        raise SystemExit(0)

    monkeypatch.setitem(sys.modules, "argcomplete", types.SimpleNamespace(autocomplete=answer))
    for environment, expected in (({}, []), ({"_ARGCOMPLETE": "1"}, ["keras-ci2p"])):
        monkeypatch.delenv("_ARGCOMPLETE", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            main(["--version"])
        assert asked == expected
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    with pytest.raises(SystemExit):
        main(["--version"])
