import os
import signal
import sys
import time
from importlib.util import find_spec

import forks
import keras
import numpy as np
import pytest
from conftest import NANO
from test_cli import failed

from keras_ci2p import CI2PViT, Compressor, ViT
from keras_ci2p.cli import main
from keras_ci2p.data import Augmentation
from keras_ci2p.data.latent_cache import open_cache
from keras_ci2p.data.latent_loader import LatentRecords
from keras_ci2p.layers import AnalysisTransform

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

OPTIONS = ["--image-size", "32", "--batch-size", "8"]


@pytest.fixture
def preset(tmp_path):
    """A tiny compressor."""
    Compressor("bmshj2018-factorized", quality=None, channels=(4, 6)).save_to_preset(tmp_path / "preset")
    return str(tmp_path / "preset")


def command(photos, out, preset, *more):
    return ["cache", str(photos), str(out), "--compressor", preset, *OPTIONS, *more]


@pytest.mark.every_backend
def test_cache(photos, preset, tmp_path, capsys):
    out = tmp_path / "cache"
    more = ["--views", "3", "--store", "rounded", "--recipe", "paper", "--set", "augmentation.flip=0.25", "--seed", "7"]
    assert main(command(photos, out, preset, *more)) == 0
    printed = capsys.readouterr().out
    assert "72 latents of 24 training images, 6 of validation" in printed and "bytes each" in printed
    settings = open_cache(out).manifest["settings"]
    assert settings["views"] == 3 and settings["store"] == "rounded" and settings["seed"] == 7
    assert Augmentation(**settings["augmentation"]) == Augmentation(flip=0.25)
    assert "--resume" in failed(capsys, *command(photos, out, preset))
    assert "views 3, now 4" in failed(capsys, *command(photos, out, preset, "--resume"))
    assert main(command(photos, out, preset, *more, "--resume")) == 0


def test_verify(photos, preset, tmp_path, capsys):
    """Of a complete cache every byte, and whether it was made of these images; nothing is made."""
    out = tmp_path / "cache"
    verify = ["cache", str(photos), str(out), "--verify"]
    assert "is no latent cache" in failed(capsys, *verify) and not out.exists()
    assert main(command(photos, out, preset, "--views", "1")) == 0
    capsys.readouterr()
    assert main(verify) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 files, ") and f"all are as they were written. Cache: {out}" in said
    for flag in ("--resume", "--views=2", f"--compressor={preset}", "--teacher=x", "--threads=1", "--more-views=1"):
        assert f"Received also: {flag.partition('=')[0]}" in failed(capsys, *verify, flag)
    (photos / "cat" / "000.png").unlink()
    assert "made of other images" in failed(capsys, *verify)
    path = sorted(out.glob("*.arrayrecord"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"1 of 2 files of the latent cache {out} are damaged" in failed(capsys, *verify)


def test_the_compressor_of_a_classifier(photos, tmp_path, capsys):
    config = {"num_filters": 4, "latent_channels": 6}
    model = CI2PViT((32, 32, 3), num_classes=3, compressor=AnalysisTransform(**config), **NANO)
    model.save_to_preset(tmp_path / "classifier")
    assert main(command(photos, tmp_path / "cache", str(tmp_path / "classifier"), "--views", "1")) == 0
    open_cache(tmp_path / "cache").check_compressor(model.compressor)
    ViT((32, 32, 3), num_classes=3, **NANO).save_to_preset(tmp_path / "vit")
    message = failed(capsys, *command(photos, tmp_path / "other", str(tmp_path / "vit")))
    assert "has no compressor" in message


def test_errors(photos, preset, tmp_path, capsys):
    out = tmp_path / "cache"
    with pytest.raises(SystemExit):
        main(command(photos, out, preset, "--image-size", "40"))
    assert "multiples of 32" in capsys.readouterr().err
    assert "views" in failed(capsys, *command(photos, out, preset, "--views", "0"))
    assert "no folder" in failed(capsys, *command(tmp_path / "absent", out, preset))
    assert "Unknown preset" in failed(capsys, *command(photos, out, "absent"))
    assert "choose another directory" in failed(capsys, *command(photos, photos, preset))
    assert not out.exists()


def stop(arguments, shard, sent):
    """Runs a command until the file `shard` is there, sends it a signal and returns its code and errors."""
    process = forks.Fork([sys.executable, find_spec("keras_ci2p.__main__").origin, *arguments])
    try:
        deadline = time.monotonic() + 300
        while not shard.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, sent)
        return process.wait(timeout=120), process.stderr
    finally:
        process.kill()


def test_stopped_and_resumed(photos, preset, tmp_path):
    """A cache that was stopped by Ctrl-C and then killed is, in the end, the one that was not."""
    out = tmp_path / "stopped"
    # So many that they take longer than the way of a signal.
    arguments = command(photos, out, preset, "--views", "24", "--shard-records", "24")
    code, errors = stop(arguments, out / "train-00001.arrayrecord", signal.SIGINT)
    assert code == 130 and "the same command with --resume goes on" in errors and "Traceback" not in errors
    assert not list(out.glob("*.partial-*"))
    first = (out / "train-00000.arrayrecord").stat().st_mtime_ns
    assert not (out / "train-00012.arrayrecord").exists(), "it was stopped on its way"

    code, _ = stop([*arguments, "--resume"], out / "train-00012.arrayrecord", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert not (out / "val-00000.arrayrecord").exists(), "it was killed on its way"
    with pytest.raises(ValueError, match="--resume"):
        open_cache(out)

    assert main([*arguments, "--resume"]) == 0
    assert (out / "train-00000.arrayrecord").stat().st_mtime_ns == first
    whole = tmp_path / "whole"
    assert main(command(photos, whole, preset, "--views", "24", "--shard-records", "24")) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    stopped, whole = open_cache(out), open_cache(whole)
    stopped.verify()
    for split in ("train", "val"):
        assert_same(stopped, whole, split)


def test_parts_of_which_one_is_killed(photos, preset, tmp_path, capsys):
    out, whole = tmp_path / "parts", tmp_path / "whole"
    options = ["--views", "12", "--shard-records", "12"]
    arguments = command(photos, out, preset, *options)
    code, _ = stop([*arguments, "--part", "1/2"], out / "train-00002.arrayrecord", signal.SIGKILL)
    assert code == -signal.SIGKILL and not (out / "train-00022.arrayrecord").exists(), "it was killed on its way"
    assert main([*arguments, "--part", "2/2"]) == 0
    assert "Part 2/2 is made. Not yet: 1/2." in capsys.readouterr().out
    finish = ["cache", str(photos), str(out), "--finish"]
    assert "that --part 1/2 makes" in failed(capsys, *finish)
    assert main([*arguments, "--part", "1/2"]) == 0
    assert "288 latents of 24 training images" in capsys.readouterr().out
    assert main(finish) == 0
    assert main(command(photos, whole, preset, *options)) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    for split in ("train", "val"):
        assert_same(open_cache(out), open_cache(whole), split)
    assert "Received also: --part" in failed(capsys, *finish, "--part", "1/2")
    with pytest.raises(SystemExit):
        main([*arguments, "--part", "3/2"])
    assert "K/N with K from 1 to N, such as 2/8" in capsys.readouterr().err


def assert_same(one, other, split):
    """Bit for bit; TensorFlow leaves rounding errors."""
    if keras.backend.backend() != "tensorflow":
        assert one.shards(split) == other.shards(split)
    for left, right in zip(LatentRecords(one, split), LatentRecords(other, split), strict=True):
        # 16-bit floats of values that differ by 1e-4 at most.
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=2e-4)
