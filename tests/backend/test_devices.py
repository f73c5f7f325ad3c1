"""Two devices take the same step as one on the same batch."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import two_devices

from keras_ci2p.backend import open_devices
from keras_ci2p.backend.common import Devices

BACKEND = keras.backend.backend()
DRIVER = str(Path(__file__).parents[1] / "helpers" / "two_devices.py")
RUNS = ["one/sgd", "two/sgd", "one/adamw", "two/adamw", "one/batch_norm", "two/batch_norm", "two/drop_path"]
# Compiles in a third of the time.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

only_jax = pytest.mark.skipif(BACKEND != "jax", reason="several hosts: JAX")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="several processes: torch")
only_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="what TensorFlow cannot")
not_on_jax = pytest.mark.skipif(BACKEND == "jax", reason="on JAX one generator serves all devices")


def start(out, *runs, **environment):
    """The driver, on two devices of this CPU."""
    launcher = [sys.executable]
    if BACKEND == "torch":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment.setdefault("XLA_FLAGS", f"{XLA_FLAGS} --xla_force_host_platform_device_count=2")
    return subprocess.Popen(
        [*launcher, DRIVER, str(out), *runs],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process has written, a list of dicts."""
    out = tmp_path_factory.mktemp("two") / "result"
    finish(start(out, *(RUNS[:-1] if BACKEND == "jax" else RUNS)))
    return [dict(np.load(f"{out}.{i}.npz")) for i in range(2 if BACKEND == "torch" else 1)]


def distance(weights, others):
    return np.sqrt(sum(np.square(a.astype("float64") - b).sum() for a, b in zip(weights, others, strict=True)))


def check_same_step(one, two, case):
    """`two` has taken the steps of `one`, to 1e-5 of their length."""
    start, end, start_2, end_2 = (
        [results[key] for key in (f"{name}/{case}/{when}/{i}" for i in range(len(results))) if key in results]
        for results, name in ((one, "one"), (two, "two"))
        for when in ("before", "after")
    )
    length = distance(end, start)
    assert length > 1e-3
    assert distance(start_2, start) == 0
    assert distance(end_2, end) < 1e-5 * length, distance(end_2, end) / length
    logs = [key for key in one if key.startswith(f"one/{case}/log/")]
    for key in logs:
        np.testing.assert_allclose(two[key.replace("one/", "two/")], one[key], rtol=1e-5, err_msg=key)
    return {key.split("/")[-1] for key in logs}


def check_processes(result, count):
    assert result["count"] == 2 and result["processes"] == count
    assert ("differ in their numbers" in str(result["disagreement"])) == (count > 1)


@pytest.mark.parametrize("case", ["sgd", "adamw"])
def test_same_steps_as_one_device(results, case):
    for process in results:
        check_processes(process, len(results))
        logs = check_same_step(process, process, case)
        assert logs == {"loss", "top1"} | ({"val_loss", "val_top1"} if case == "adamw" else set())


def test_batch_normalization(results):
    """JAX and TensorFlow: of the whole batch. torch: each device of its part, then the mean over the devices."""
    pattern = re.compile("one/batch_norm/((mean|variance)/[0-9]+)")
    whole = {match[1]: results[0][match[0]] for match in map(pattern.fullmatch, results[0]) if match}
    assert len(whole) == 12
    if BACKEND == "torch":
        parts = [two_devices.run("batch_norm", Part(i)) for i in range(2)]
        expected = {key: (parts[0][key] + parts[1][key]) / 2 for key in whole}
        assert max(np.abs(expected[key] - whole[key]).max() for key in whole) > 1e-3, "statistics of the whole batch"
    else:
        check_same_step(results[0], results[0], "batch_norm")
        expected = whole
    for process in results:
        for key, value in expected.items():
            actual = process[f"two/batch_norm/{key}"]
            np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-6, err_msg=key)


class Part(Devices):
    """A single device that trains on one of two parts of each batch."""

    def __init__(self, index):
        self.shard = (index, 2)


@not_on_jax
def test_each_device_drops_other_paths(results):
    states = np.concatenate([process["two/drop_path/states/0"] for process in results])
    seed, _ = results[0]["two/drop_path/seed/0"]
    assert states[:, 0].tolist() == [seed, seed + 1]
    assert states[0, 1] == states[1, 1] > 0, "they were drawn from"


@only_jax
def test_several_hosts(results, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*listener.getsockname())
    hosts = [
        start(
            tmp_path / "result",
            "two/adamw",
            XLA_FLAGS=XLA_FLAGS,
            KERAS_DISTRIBUTION_JOB_ADDRESSES=address,
            KERAS_DISTRIBUTION_NUM_PROCESSES="2",
            KERAS_DISTRIBUTION_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    for i, host in enumerate(hosts):
        finish(host)
        process = dict(np.load(tmp_path / f"result.{i}.npz"))
        check_processes(process, 2)
        check_same_step(results[0], process, "adamw")


@only_torch
def test_a_crash_of_one_process_ends_all(tmp_path):
    process = start(tmp_path / "result", "crash")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "one process crashes" in output
    assert not list(tmp_path.iterdir())


def test_one_device():
    devices = open_devices()
    assert devices.count == 1 and devices.shard == (0, 1) and devices.is_main_process
    assert type(open_devices(1)) is type(devices)
    assert devices.describe() == {"count": 1, "processes": 1}
    devices.check_batch_size(7)
    devices.assert_equal("anything", {"a": 1})
    assert devices.all_reduce_mean({"loss": 0.5}) == {"loss": 0.5}


@pytest.mark.parametrize("wanted", ["gpu", 0, -1, True, 1.5])
def test_no_number_of_devices(wanted):
    with pytest.raises(ValueError, match="'all', a positive number or None"):
        open_devices(wanted)


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    message = "torchrun --nproc_per_node=64 -m" if BACKEND == "torch" else "There (is|are) [0-9]+ devices? .*, not 64"
    with pytest.raises(ValueError, match=message):
        open_devices(64)


def test_a_batch_that_cannot_be_shared_out():
    devices = Devices()
    devices.count = 3
    devices.check_batch_size(6)
    with pytest.raises(ValueError, match=re.escape("A batch of 32 examples cannot be shared out evenly among 3")):
        devices.check_batch_size(32)


@only_torch
@pytest.mark.parametrize("wanted", [None, 3])
def test_another_number_than_torchrun_has_started(monkeypatch, wanted):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started 2 processes"):
        open_devices(wanted)


@only_jax
def test_several_hosts_must_be_asked_for(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="devices='all'"):
        open_devices()


@only_tensorflow
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    ],
)
def test_what_keras_gets_wrong_is_refused(make_optimizer):
    from keras_ci2p.backend.tensorflow import TensorFlowDevices

    model = two_devices.vit()
    model.compile(make_optimizer(), "mse")
    with pytest.raises(ValueError, match="several devices of TensorFlow"):
        TensorFlowDevices(["CPU:0"]).prepare(model)
