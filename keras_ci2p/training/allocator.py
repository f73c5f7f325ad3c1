"""How the process gets memory for activations on a CPU."""

import ctypes
import os
import sys

import keras

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# As the largest unsigned number; one of 31 bits is reached by the steps of larger models.
_NEVER = -1
_AHEAD = 64 * 2**20


def keep_freed_memory():
    """Keeps the memory of one training step for the next, where the C library would return it to the system.

    glibc gives each large block pages of its own and returns them when it is freed, so that each step of training has
    the pages of all its activations cleared and mapped anew; `benchmarks/optimizations.py` measures what that costs.
    Afterwards large blocks come from one heap that does not shrink. Call it before the first computation. It holds for
    the whole process, which is why `import keras_ci2p` does not do it; the command line does.

    Not under JAX: it takes the memory of a step as one block, which soon no longer fits between the others, so that
    the heap grows to twice the size. There `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment makes new pages
    cheap.

    Returns:
        Whether it was done: on Linux with glibc, under PyTorch or TensorFlow, unless the environment sets
        `MALLOC_...` or `GLIBC_TUNABLES`.
    """
    if keras.backend.backend() == "jax":
        return False
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    # Other C libraries have no mallopt; musl is one.
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Heaps other than the first cannot hold large blocks.
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _AHEAD, _ARENA_MAX: 1}
    accepted = [library.mallopt(key, value) for key, value in options.items()]
    return all(accepted)
