"""The command line before a command runs: what needs no Keras, and what is refused."""

import importlib
import os
import re
import subprocess
import sys
import warnings

import pytest

from keras_ci2p import cli
from keras_ci2p.cli import main

COMMANDS = "data train-compressor cache train evaluate predict publish quantize export info flops compare convert"


def test_no_keras_for_help_version_and_wrong_arguments(tmp_path):
    code = f"""
import sys
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
    # No backend that could be started: it is not asked for.
    environment = {**os.environ, "KERAS_BACKEND": "absent"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
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
    ],
)
def test_options_that_do_not_apply(argv, message, capsys):
    assert main(argv.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


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
def test_data_anywhere_among_the_options(argv):
    args = cli.make_parser().parse_args(["train", *argv.split()])
    args.prepare(args)
    assert args.config.data == "x" and args.config.model == "vit" and args.out == "r"


def test_older_flags():
    args = cli.make_parser().parse_args(["train-compressor", "x", "--out", "r", "--val-pictures", "7"])
    args.prepare(args)
    assert args.config.val_images == 7
    assert cli.make_parser().parse_args(["evaluate", "x", "y", "--pictures", "7"]).images == 7


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


@pytest.mark.parametrize("fail", [lambda: None, lambda: int("x"), lambda: exec("raise KeyboardInterrupt"), "system"])
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
