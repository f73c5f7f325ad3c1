"""Python with another backend, in a process of its own; what a backend lacks comes from Keras."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ci2p import backend

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(autouse=True)
def find_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))


def test_how_it_is_started(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for on_cpu, devices in ((False, ""), (True, "-1")):
        backend.run_in_process("numpy", "process_jobs", ["tell", tmp_path / "told.npz"], timeout=60, on_cpu=on_cpu)
        told = dict(np.load(tmp_path / "told.npz"))
        assert told["KERAS_BACKEND"] == "numpy" and told["CUDA_VISIBLE_DEVICES"] == devices
        assert str(told["PYTHONPATH"]).split(os.pathsep) == [str(HELPERS.parents[1]), str(HELPERS)]
        # While Keras is imported, and afterwards.
        assert told["imported"].tolist() == [True, False] and told["running"].tolist() == [False, True]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("job", "reason"), [("fail", "^ValueError: no such thing$"), ("leave", "^ended with exit code 3$")]
)
def test_failures_have_reasons(job, reason):
    with pytest.raises(RuntimeError, match=reason):
        backend.run_in_process("numpy", "process_jobs", [job], timeout=60)


def test_why_a_process_has_ended():
    def ended(code, text=""):
        return backend._reason(subprocess.CompletedProcess([], code, stderr=text))

    assert ended(1, "Traceback\n  ...\nRuntimeError: no device\n\n") == "RuntimeError: no device"
    assert ended(-signal.SIGKILL) == "ended by SIGKILL, as the system does for want of memory"
    assert ended(3) == "ended with exit code 3"


def wait_until(is_true):
    for _ in range(600):
        if is_true():
            return True
        time.sleep(0.1)
    return False


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_ends_when_its_time_is_over(tmp_path):
    path = tmp_path / "pid"
    with pytest.raises(RuntimeError, match="process_jobs on numpy was not done after 5 s, and was ended"):
        backend.run_in_process("numpy", "process_jobs", ["sleep", path], timeout=5)
    assert not path.exists() or is_gone(int(path.read_text()))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_it_ends_with_the_one_that_waits(tmp_path):
    path = tmp_path / "pid"
    job = ("numpy", "process_jobs", ["sleep", str(path)], 300)
    # Where the tests run in the background, the signal is ignored from the start.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from keras_ci2p.backend import run_in_process; run_in_process(*{job!r})"
    path_of_package = os.pathsep.join([str(HELPERS.parents[1]), str(HELPERS)])
    waiting = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path_of_package}, stderr=subprocess.PIPE
    )
    try:
        assert wait_until(path.exists)
        # Ctrl-C of a notebook or a debugger: not to the whole group.
        waiting.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in waiting.communicate(timeout=60)[1]
        assert wait_until(lambda: is_gone(int(path.read_text())))
    finally:
        waiting.kill()


def test_deterministic_gpus(tmp_path, monkeypatch):
    """What GPUs need is in the environment before they are used; what was there stays."""
    current = keras.backend.backend()
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    backend.run_in_process(current, "process_jobs", ["deterministic", tmp_path / "set.npz"], timeout=300)
    found = dict(np.load(tmp_path / "set.npz"))
    flags = ["--xla_backend_optimization_level=0", *["--xla_gpu_deterministic_ops=true"] * (current == "jax")]
    assert str(found["XLA_FLAGS"]).split() == flags
    assert found["CUBLAS_WORKSPACE_CONFIG"] == (":4096:8" if current == "torch" else "")
    # Nor has JAX refused its flags.
    np.testing.assert_array_equal(found["product"], 2)


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """Path of images and weights, and what this backend makes of them."""
    import process_jobs as jobs

    path = tmp_path_factory.mktemp("job") / "job.npz"
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 64, 3)).astype("float32")
    weights = jobs.make_model(images.shape[1:]).get_weights()
    np.savez(path, images=images, **{f"weight_{i}": weight for i, weight in enumerate(weights)})
    jobs.predict(path, path.with_name("here.npz"))
    return path, dict(np.load(path.with_name("here.npz")))


def test_a_backend_imports_no_other(sent):
    assert sent[1]["loaded"].tolist() == [keras.backend.backend()]


@pytest.mark.once
def test_numpy_has_keras_s_own_kernels(sent, tmp_path):
    """And loads no framework of another backend."""
    path, here = sent
    backend.run_in_process("numpy", "process_jobs", ["predict", path, tmp_path / "there.npz"], timeout=600)
    there = dict(np.load(tmp_path / "there.npz"))
    for key in ("logits", "trained"):
        assert np.abs(here[key]).max() > 0.05
        np.testing.assert_allclose(there[key], here[key], atol=1e-4)
    assert there["macs"] == here["macs"] > 0
    assert there["loaded"].tolist() == []


def test_every_backend_has_all():
    from keras_ci2p.backend import common

    assert all(hasattr(common, name) for name in backend._OF_THE_BACKEND)
    for name in backend.__all__:
        assert getattr(backend, name) is not None or name == "adamw_step"
    with pytest.raises(AttributeError, match="no attribute 'sparse'"):
        backend.sparse  # noqa: B018


def test_compiled_code_is_kept(tmp_path):
    """By JAX, where the user has not chosen; for other backends there is nothing to keep."""
    if keras.backend.backend() != "jax":
        assert backend.keep_compiled_code(tmp_path / "cache") is None and not (tmp_path / "cache").exists()
        return
    code = """
import os, pathlib, sys
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
import jax
from keras_ci2p.training import keep_compiled_code
cache, file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
jax.config.update("jax_enable_compilation_cache", False)
assert keep_compiled_code() is None
jax.config.update("jax_enable_compilation_cache", True)
assert keep_compiled_code(file) is None
# JAX has found by now that there is no cache.
jax.jit(lambda x: x + 1)(1.0)
directory = keep_compiled_code()
assert directory.parent == cache / "compiled" and not list(directory.iterdir())
jax.jit(lambda x: x + 2)(1.0)
assert list(directory.iterdir())
assert keep_compiled_code(cache / "another") is None and jax.config.jax_compilation_cache_dir == str(directory)
# As another process may have begun to do, which makes room.
next(directory.glob("*-atime")).unlink()
assert jax.jit(lambda x: x + 3)(1.0) == 4
"""
    (tmp_path / "file").touch()
    env = {**os.environ, "KERAS_CI2P_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "file")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "compilation cache" not in done.stderr, done.stderr[-2000:]
