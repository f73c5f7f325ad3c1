"""As many threads as this process has CPUs, not as the machine has."""

import os
from pathlib import Path

import pytest

import keras_ci2p
from keras_ci2p.backend import hardware
from keras_ci2p.utils import num_cpus

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")


@pytest.fixture
def one_cpu():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@needs_affinity
def test_the_affinity_counts(one_cpu):
    assert num_cpus() == 1 and hardware()["cores"] == 1


@needs_affinity
def test_loaders_have_no_more_threads(one_cpu):
    from keras_ci2p.data.manifest import in_threads

    names = set()

    def work(item):
        import threading

        names.add(threading.current_thread().name)
        return item

    assert list(in_threads(work, range(200))) == list(range(200))
    assert len(names) == 1


def test_elsewhere_all_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_cpus() == 1


def test_nothing_else_counts_them():
    package = Path(keras_ci2p.__file__).parent
    counting = [str(path.relative_to(package)) for path in package.rglob("*.py") if "cpu_count" in path.read_text()]
    assert counting == ["utils.py"]
