"""The directory of a run: lock, records, checkpoints."""

import json
import os
import signal
import sys
import time

import forks
import keras
import numpy as np
import pytest

from keras_ci2p import ViT
from keras_ci2p.training.run_dir import (
    CheckpointCorrupt,
    Checkpoints,
    RunError,
    check_same,
    previous_run,
    read_record,
    run_lock,
)

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

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
    (tmp_path / "hold.py").write_text(HOLD)
    process = forks.Fork([sys.executable, str(tmp_path / "hold.py"), str(run)])
    try:
        deadline = time.monotonic() + 300
        while not (run / "held").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(RunError, match=f"in use by process {process.pid} on "), run_lock(run):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=120)
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


@pytest.fixture
def make(nano, rng):
    images = rng.uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    labels = np.arange(8) % 2

    def build(fit=False, **kwargs):
        model = ViT((32, 32, 3), num_classes=2, drop_path_rate=0.5, **{**nano, **kwargs})
        model.compile(keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if fit:
            model.fit(images, labels, verbose=0)
        return model

    return build


def state(model):
    metrics = {id(v) for v in model.metrics_variables}
    variables = [v for v in model.variables if id(v) not in metrics] + list(model.optimizer.variables)
    return {f"{i} {v.name}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}


@pytest.mark.every_backend
def test_everything_comes_back(make, tmp_path):
    model = make(fit=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(model) is None
    checkpoints.save(3, model, {"history": [{"loss": 1.5}]})
    other = make()
    assert checkpoints.restore(other) == {"history": [{"loss": 1.5}]}
    expected, actual = state(model), state(other)
    assert any("seed" in path for path in expected), "random states are part of it"
    assert any("momentum" in path or "velocity" in path for path in expected), "and the optimizer's"
    for path, value in expected.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


def test_only_the_newest_is_kept(make, tmp_path):
    model = make(fit=True)
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 10):
        checkpoints.save(epoch, model, epoch)
        assert [path.name for path in tmp_path.iterdir()] == [f"epoch-{epoch:04d}"]
    assert checkpoints.restore(make()) == 10


def test_half_written_ones_do_not_count(make, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(fit=True), "first")
    (tmp_path / "epoch-0002.partial-1a2b3c4d").mkdir()
    assert checkpoints.restore(make()) == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_damage_and_another_model_are_refused(make, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make(fit=True), None)
    with pytest.raises(CheckpointCorrupt, match="another model"):
        checkpoints.restore(make(num_layers=1))
    path = tmp_path / "epoch-0001" / "state.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    model = make()
    before = state(model)
    with pytest.raises(CheckpointCorrupt, match="checksum"):
        checkpoints.restore(model)
    for name, value in state(model).items():
        if name in before:
            np.testing.assert_array_equal(value, before[name])
    (tmp_path / "epoch-0001" / "record.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointCorrupt):
        checkpoints.restore(make())


def test_no_code_is_loaded(make, tmp_path):
    """A state file with a pickled object in it is refused, not executed."""
    from keras_ci2p.utils import file_sha256 as sha256

    checkpoints = Checkpoints(tmp_path)
    model = make(fit=True)
    checkpoints.save(1, model, None)
    path = tmp_path / "epoch-0001" / "state.npz"
    arrays = dict(np.load(path))
    arrays["00000"] = np.array([print], dtype=object)
    np.savez(path, **arrays)
    record = json.loads((path.parent / "record.json").read_text())
    (path.parent / "record.json").write_text(json.dumps({**record, "sha256": sha256(path)}))
    with pytest.raises(CheckpointCorrupt, match="pickle"):
        checkpoints.restore(make())
