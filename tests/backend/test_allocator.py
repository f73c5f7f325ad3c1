"""Freed memory stays with the process, or goes back."""

import os
import platform
import subprocess
import sys

import keras
import numpy as np
import pytest

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's memory")
not_on_jax = pytest.mark.skipif(keras.backend.backend() == "jax", reason="left alone under JAX")

MEMORY = """
import ctypes, resource, threading
from keras_ci2p.backend import keep_freed_memory, lean_start, release_freed_memory
with lean_start():
    import keras

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
kept = keep_freed_memory()

def use():
    blocks = [ctypes.c_void_p(library.malloc(100_000_000)) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, 100_000_000)
        library.free(block)

def use_in_thread():
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

def address_of_the_end():
    library.sbrk.restype = ctypes.c_void_p
    return library.sbrk(0)

# Not written to, so that it takes no memory.
block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(2**31 + 2**28)))
end = address_of_the_end()
library.free(block)
print("shrinks" if address_of_the_end() < end else "stays")

for action in (use, use_in_thread):
    action()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = []
for _ in range(200):
    blocks.append(ctypes.c_void_p(library.malloc(1_000_000)))
    ctypes.memset(blocks[-1], 1, 1_000_000)
    # Stays, between the large ones.
    library.malloc(100)
for block in blocks:
    library.free(block)
before = resident()
release_freed_memory()
print(before - resident())
"""


def run(**variables):
    """Measures in a process of its own.

    Whether the heap shrinks below 2 GiB; `[(kept, page faults)]` of 200 MB used again, in two threads; and how many
    bytes go back to the system of 200 MB freed with gaps between them.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    process = subprocess.run(
        [sys.executable, "-c", MEMORY], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    heap, *uses, released = process.stdout.splitlines()[-4:]
    return heap, [(kept == "True", int(faults)) for kept, faults in map(str.split, uses)], int(released)


@needs_glibc
@not_on_jax
def test_memory_is_used_again_and_gaps_are_released():
    heap, uses, released = run()
    assert heap == "stays" and released > 150_000_000
    for kept, faults in uses:
        assert kept and faults < 2000, "200 MB are 48,828 pages"


@needs_glibc
@pytest.mark.once
@pytest.mark.parametrize("variables", [{"GLIBC_TUNABLES": ""}, {"MALLOC_ARENA_MAX": "0"}])
def test_what_the_user_has_set_stays(variables):
    for kept, faults in run(**variables)[1]:
        assert not kept and faults > 40_000


@needs_glibc
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX alone")
def test_under_jax_nothing_is_done():
    for kept, faults in run()[1]:
        assert not kept and faults > 40_000


def test_elsewhere_nothing_is_done(monkeypatch):
    from keras_ci2p.training import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


def test_training_releases_them(monkeypatch):
    from keras_ci2p import backend
    from keras_ci2p.training.callbacks import MemoryCallback

    released = []
    monkeypatch.setattr(backend, "release_freed_memory", lambda: released.append(1))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = MemoryCallback()
    callback.every = 4
    # Counted on from epoch to epoch.
    model.fit(np.zeros((3, 2)), np.zeros((3, 1)), batch_size=1, epochs=3, callbacks=[callback], verbose=0)
    assert len(released) == (2 if keras.backend.backend() == "torch" else 0)
