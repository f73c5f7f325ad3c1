"""The directory of a run: lock, records, checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from keras_ci2p.training.run_dir import Checkpoints, RunError, check_same, previous_run, read_record, run_lock

HOLD = """
import sys, time
from pathlib import Path
from keras_ci2p.training.run_dir import run_lock
with run_lock(Path(sys.argv[1])):
    Path(sys.argv[1], "held").touch()
    time.sleep(600)
"""


def test_one_process_has_a_run(tmp_path):
    """Another one is refused with the first one's number; when the first is killed, the run is free."""
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)])
    try:
        deadline = time.monotonic() + 300
        while not (run / "held").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(RunError, match=f"in use by process {process.pid} on "), run_lock(run):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (run / "run.lock").exists(), "it was left behind"
    with run_lock(run):
        pass
    assert {path.name for path in run.iterdir()} == {"held"}


def test_a_lock_within_a_process(tmp_path):
    run = tmp_path / "run"
    with run_lock(run):
        assert previous_run(run, resume=False) is None, "others of the same run see none"
        with pytest.raises(RunError, match=f"process {os.getpid()}"), run_lock(run):
            pass
        with run_lock(run, is_main=False):
            pass
        assert (run / "run.lock").exists()
    assert not run.exists(), "nothing was written"
    (tmp_path / "mine").mkdir()
    with run_lock(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()


def test_the_newest_checkpoint_by_its_number(tmp_path):
    for epoch in (999, 9999, 10000):
        (tmp_path / f"epoch-{epoch:04d}").mkdir()
    assert [path.name for path in Checkpoints(tmp_path)._all()] == ["epoch-0999", "epoch-9999", "epoch-10000"]


def test_only_the_process_that_writes_cleans_up(tmp_path):
    (tmp_path / "epoch-0001.partial-1a2b3c4d").mkdir()
    assert Checkpoints(tmp_path, is_main=False).restore(None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001.partial-1a2b3c4d"]
    assert Checkpoints(tmp_path).restore(None) is None
    assert not list(tmp_path.iterdir())


LATENTS = {"image_size": [64, 64], "views": 2, "augmentation": {"flip": 0.25}}


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_records_of_both_names(tmp_path, name):
    """config.json is what 0.1.0 wrote, with the image size of the recipe where that of the latents counts."""
    recipe = {"image_size": 512, "augmentation": {"flip": 0.5}, "epochs": 3}
    record = {"settings": {"data": "x", "recipe": recipe}, "data": {"sha256": "ab", "latents": LATENTS}}
    (tmp_path / name).write_text(json.dumps(record))
    (tmp_path / "history.csv").write_text("epoch,seconds\n1,1800\n")
    (tmp_path / "curves.png").touch()
    with pytest.raises(RunError, match="exists already"):
        previous_run(tmp_path, resume=False)
    for found in (previous_run(tmp_path, resume=True), read_record(tmp_path)):
        assert found["settings"]["recipe"] == {"image_size": 64, "augmentation": {"flip": 0.25}, "epochs": 3}
    check_same("data", {"sha256": "ab"}, previous_run(tmp_path, resume=True))
    assert read_record(tmp_path)["hours"] == 0.5
    (tmp_path / name).write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        previous_run(tmp_path, resume=True)
