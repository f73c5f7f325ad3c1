"""Commands on a disk that is full: one sentence, exit code 2, the last good state whole, and the next attempt works."""

import importlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import NANO
from disks import fill, mounted

from keras_ci2p import ViT
from keras_ci2p.cli import main
from keras_ci2p.export import FORMATS
from keras_ci2p.export.formats import writing_backend
from keras_ci2p.names import VARIANTS
from keras_ci2p.presets import open_preset
from keras_ci2p.utils import DiskFullError

pytestmark = pytest.mark.once


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def preset(nano, tmp_path):
    ViT((32, 32, 3), num_classes=3, class_names=["bird", "cat", "dog"], **nano).save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def refuse(arguments, capsys, path):
    """The command says in one sentence that the disk has no room for `path`."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    line, *further = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert not further, further
    assert line.startswith(f"keras-ci2p: error: The disk is full: {path}") and "needs" in line and "MB" in line


def snapshot(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "filler"
    }


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import keras
from disks import fill
from keras_ci2p import ViT
from keras_ci2p.presets import open_preset
from keras_ci2p.utils import DiskFullError
disk = Path(sys.argv[2])
model = ViT((32, 32, 3), num_classes=3, hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=48)
model.save_to_preset(disk / "preset")
size = sum(path.stat().st_size for path in (disk / "preset").iterdir())
for storage in ("float32", "int8"):
    for leave in range(0, size, size // 12):
        filler = fill(disk, leave)
        try:
            model.save_to_preset(disk / "preset", storage=storage)
        except DiskFullError as error:
            print(error)
        filler.unlink()
        open_preset(disk / "preset")
print("end")
"""


def test_saving_never_ends_the_process(disk, request):
    """HDF5 does at its exit, once a disk had no room for what it was to write."""
    helpers = request.config.rootpath / "tests" / "helpers"
    command = [sys.executable, "-c", SAVER, str(helpers), str(disk)]
    # Which starts fastest; files are written alike.
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and not done.stderr, done
    *sentences, end = done.stdout.splitlines()
    assert end == "end" and len(sentences) > 15
    assert all(line.startswith(f"The disk is full: {disk / 'preset'} needs 0.") for line in sentences)


# What `train` writes first, between, and last in its first epoch.
@pytest.mark.parametrize("leave, path", [(0, ""), (20_000, "best"), (300_000, "checkpoints/epoch-0001")])
def test_train(disk, photos, capsys, leave, path):
    command = ["train", photos, "--out", disk / "run", "--variant", "nano", "--model", "vit", "--image-size", "32"]
    command += ["--epochs", "1", "--batch-size", "8", "--tensorboard"]
    filler = fill(disk, leave)
    refuse(command, capsys, disk / "run" / path)
    # What was written takes room of the next attempt's, which ends earlier.
    refuse([*command, "--resume"], capsys, disk / "run")
    filler.unlink()
    if (disk / "run").exists():
        command.append("--resume")
    assert main([*map(str, command)]) == 0
    for name in ("best", "last"):
        open_preset(disk / "run" / name)
    assert not list(disk.rglob("*.partial-*"))


def test_train_later(disk, photos, capsys):
    """After a first epoch; the run goes on from it."""
    command = ["train", photos, "--out", disk / "run", "--variant", "nano", "--model", "vit", "--image-size", "32"]
    command += ["--epochs", "2", "--batch-size", "8"]
    recorder = importlib.import_module("keras_ci2p.training.callbacks").Recorder
    save, fillers = recorder.on_epoch_end, []

    def fill_after(self, epoch, logs=None):
        save(self, epoch, logs)
        if not fillers:
            fillers.append(fill(disk, 1000))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "on_epoch_end", fill_after)
        refuse(command, capsys, disk / "run")
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["epoch-0001"]
    open_preset(disk / "run" / "best")
    fillers[0].unlink()
    assert main([*map(str, command), "--resume"]) == 0
    assert (disk / "run" / "history.csv").read_text().count("\n") == 3


@pytest.mark.parametrize("leave, is_foreseen", [(1000, True), (0, False), (60_000, False), (120_000, False)])
def test_cache(disk, photos, nano_compressor, capsys, monkeypatch, leave, is_foreseen):
    command = ["cache", photos, disk / "cache", "--compressor", nano_compressor, "--image-size", "64", "--views", "40"]
    command += ["--threads", "1", "--batch-size", "40", "--shard-records", "200"]
    filler = fill(disk, leave)
    with monkeypatch.context() as patch:
        if not is_foreseen:
            module = importlib.import_module("keras_ci2p.training.cache_latents")
            patch.setattr(module, "_check_space", lambda *arguments: None)
        refuse(command, capsys, disk / "cache")
        refuse([*command, "--resume"], capsys, disk / "cache")
    filler.unlink()
    assert main([*map(str, command), "--resume"]) == 0
    assert not list(disk.rglob("*.partial-*"))


@pytest.mark.parametrize(
    "name, leave",
    [
        ("publish", 0),
        *((name, 30_000) for name in ("publish", "convert", "convert to mmpretrain", "onnx", "openvino", "torch")),
        # Their weights alone fit. Others than torch's start a process for each attempt.
        *((name, None) for name in FORMATS),
    ],
)
def test_others_leave_what_was_there(disk, preset, photos, capsys, name, leave):
    suffix = FORMATS[name].suffix if name in FORMATS else {"convert to mmpretrain": ".pth"}.get(name)
    dest = disk / f"dest{suffix or ''}"
    if name == "publish":
        command = ["publish", preset, dest, "--data", photos]
        shutil.copytree(preset, dest)
    elif name == "convert":
        command = ["convert", preset, dest]
    elif name == "convert to mmpretrain":
        command = ["convert", preset, dest, "--to", "mmpretrain"]
    else:
        writing_backend(name)
        command = ["export", preset, dest, "--format", name]
    before = snapshot(disk)
    filler = fill(disk, 4 * ViT.from_preset(preset).count_params() + 1000 if leave is None else leave)
    refuse(command, capsys, dest)
    assert snapshot(disk) == before
    # The next attempt of each kind; once more it would only take long.
    if leave is not None:
        filler.unlink()
        assert main([*map(str, command)]) == 0


def test_a_preset_that_is_written_by_python(disk, nano):
    model = ViT((32, 32, 3), **nano)
    model.save_to_preset(disk / "it")
    before = snapshot(disk)
    fill(disk, 10_000)
    for storage in ("float32", "float16"):
        with pytest.raises(DiskFullError, match=f"{disk / 'it'} needs 0"):
            model.save_to_preset(disk / "it", storage=storage)
    assert snapshot(disk) == before
