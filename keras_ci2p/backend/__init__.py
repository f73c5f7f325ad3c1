"""What depends on Keras's backend or on the machine: kernels, devices, memory, versions, processes.

Layers and optimizers call `backend.linear(x, kernel, bias)` and do not know whose kernel that is. The names of
`_OF_THE_BACKEND` come from the module of Keras's backend, which alone imports its framework, or else from `common`, as
all of them do under numpy. Keras is imported when the first of them is used.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from keras_ci2p.utils import PathLike, cache_directory, num_cpus, user_path

# Precisions of float32 products.
MATMUL_PRECISIONS = ("float32", "tensorfloat32", "bfloat16")

_MODULES = ("torch", "jax", "tensorflow")
_OF_THE_BACKEND = (
    "Devices",
    "accelerator",
    "adamw_step",
    "adamw_takes_all_weights",
    "attention",
    "batch_norm",
    "compiles",
    "conv2d",
    "depthwise_conv2d",
    "draw_normal",
    "draw_uniform",
    "drawn_once",
    "draws_anew",
    "fragments_memory",
    "is_recomputing",
    "is_traced",
    "layer_norm",
    "linear",
    "make_deterministic",
    "no_grad",
    "peak_device_memory",
    "pointwise_conv2d",
    "safe_step",
    "stored_value",
    "untraced",
    "watched",
)
__all__ = [
    *_OF_THE_BACKEND,
    "MATMUL_PRECISIONS",
    "arithmetic",
    "environment",
    "hardware",
    "keep_compiled_code",
    "keep_freed_memory",
    "lean_start",
    "open_devices",
    "peak_memory",
    "release_freed_memory",
    "run_in_process",
    "set_matmul_precision",
    "set_random_seed",
]


def __getattr__(name):
    if name not in _OF_THE_BACKEND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _of_the_backend(name)
    globals()[name] = value
    return value


def __dir__():
    return __all__


def _of_the_backend(name):
    common, module = _modules()
    return getattr(module, name, None) or getattr(common, name)


@functools.cache
def _modules():
    """`common` and the module of Keras's backend, which are one for the backends without a module."""
    common = importlib.import_module("keras_ci2p.backend.common")
    name = _backend_name()
    return common, importlib.import_module(f"keras_ci2p.backend.{name}") if name in _MODULES else common


def _backend_name():
    import keras

    return keras.backend.backend()


def set_random_seed(seed: int) -> None:
    """Seeds Python's, NumPy's and the backend's generators: initial weights and layers' random numbers follow.

    As `keras.utils.set_random_seed`, which on other backends imports TensorFlow too where it is installed: two seconds
    and 490 MB for nothing. There Keras's generator for calls of `keras.random` without a seed is left alone.

    Args:
        seed: Integer in 0..2**32 - 1.
    """
    _of_the_backend("set_random_seed")(seed)


def set_matmul_precision(precision):
    """Lets products of float32 matrices be computed with fewer bits, where the processor is faster so.

    Weights, activations and sums stay float32. "bfloat16" is for torch on a CPU with AMX too; TensorFlow knows
    "tensorfloat32" alone, for GPUs.

    Args:
        precision: One of `MATMUL_PRECISIONS`.

    Raises:
        ValueError: The backend cannot do it.
    """
    _of_the_backend("set_matmul_precision")(precision)


def open_devices(devices=None):
    """Opens the devices to train on. To be called before anything is computed, since several processes meet here.

    On torch each device has a process, which `torchrun` has started. With JAX there can be several hosts, a process
    on each, that find each other by `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `KERAS_DISTRIBUTION_NUM_PROCESSES` and
    `KERAS_DISTRIBUTION_PROCESS_ID` (`keras.distribution.initialize`); they train on all devices of all.

    Args:
        devices: "all", the number of devices, or None for a single one.

    Returns:
        `Devices`.

    Raises:
        ValueError: Another value, more devices than there are, or processes that were started for another number; a
            backend that does not train.
    """
    if _backend_name() not in _MODULES:
        raise ValueError(f"Keras does not train on {_backend_name()}: set KERAS_BACKEND=torch, jax or tensorflow.")
    is_number = isinstance(devices, int) and not isinstance(devices, bool)
    if not (devices in (None, "all") or is_number and devices > 0):
        raise ValueError(f"`devices` must be 'all', a positive number or None. Received: devices={devices!r}")
    return _of_the_backend("open_devices")(devices)


# === Facts for records ===


def environment():
    """Returns backend, versions, processor and device, for the record of a run."""
    backend = _backend_name()
    packages = ("keras_ci2p", "keras", backend, "numpy", "pillow", "grain")
    return {
        "backend": backend,
        **hardware(),
        "versions": {package: _version(package) for package in packages},
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware():
    """Returns a dict of `cores` (those this process may use), `cpu` and `device`, what Keras computes on, by name."""
    cpu = _cpu()
    return {"cores": num_cpus(), "cpu": cpu, "device": _of_the_backend("accelerator")() or cpu}


def cpu_flags():
    """Returns the names that Linux has for what the processor can do, a set; empty on other systems."""
    return set(_cpu_entries().get("flags", "").split())


_CPU_FILE = Path("/proc/cpuinfo")
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}


def _cpu():
    entries = _cpu_entries()
    name = entries.get("model name") or platform.processor() or platform.machine()
    flags = entries.get("flags", "").split()
    # Virtual machines give processors of very different speed one name.
    widest = next((words for flag, words in _VECTORS.items() if flag in flags), None)
    return f"{name}, {widest}" if widest else name


def _cpu_entries():
    """What Linux tells of the first processor."""
    entries = {}
    if _CPU_FILE.is_file():
        for line in _CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip(), value.strip())
    return entries


def _cpu_flags():
    """What tells processors apart for which code is compiled differently."""
    entries = _cpu_entries()
    told = [entries.get(key, "") for key in ("cpu family", "model", "flags", "Features")]
    return " ".join([platform.machine(), platform.processor(), *told])


def arithmetic():
    """Returns a dict of `threads`, of one operation on the CPU, and `float32_products`, in the backend's words."""
    return _of_the_backend("arithmetic")()


# === Memory ===

_STATUS = Path("/proc/self/status")
_peak_told = 0


def peak_memory():
    """Returns the most bytes that this process has held so far; None where the system does not tell."""
    global _peak_told
    # Not `ru_maxrss` on Linux: a new process inherits its parent's.
    if _STATUS.is_file():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        # The kernel adds up counters of several processors that lag by some pages, so that a later sum may be less.
        _peak_told = max(_peak_told, 1024 * int(lines["VmHWM"].split()[0]))
        return _peak_told
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# As the largest unsigned number; one of 31 bits is reached by the steps of larger models.
_NEVER = -1
_AHEAD = 64 * 2**20


def keep_freed_memory() -> bool:
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

    Examples:
        >>> keras_ci2p.training.keep_freed_memory()  # doctest: +SKIP
        True
    """
    if not _of_the_backend("gains_by_kept_memory"):
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


def release_freed_memory() -> None:
    """Returns what is freed of the heap to the system, gaps between what is in use too; with glibc on Linux alone."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


# === Compiled code ===


def keep_compiled_code(directory: PathLike | None = None) -> Path | None:
    """Keeps what JAX compiles on disk, so that the next process on this machine need not compile it again.

    This is JAX's persistent compilation cache, with small programs in it too. It holds for the whole process, which is
    why `import keras_ci2p` does not do it; the command line does. Whoever can write to the directory can have this
    user's processes run code of theirs.

    Args:
        directory: Where to; None for `compiled` in $KERAS_CI2P_CACHE, else in `~/.cache/keras_ci2p`. In it each kind of
            processor has a directory of its own: code for one may not run on another.

    Returns:
        The directory; None where nothing was changed: under other backends, where the user has chosen a directory or
        no cache (`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE` or `jax.config`), and where the directory
        cannot be written to.

    Examples:
        >>> directory = keras_ci2p.training.keep_compiled_code("compiled")  # None but under JAX
    """
    directory = user_path(directory or cache_directory() / "compiled")
    return _of_the_backend("keep_compiled_code")(directory / hashlib.sha256(_cpu_flags().encode()).hexdigest()[:8])


# === Processes of this package's own ===

# What Keras imports at its start where it is installed, for wrappers and a gallery that are not used here.
_UNUSED = ("sklearn", "matplotlib.pyplot")


@contextlib.contextmanager
def lean_start():
    """A context in which Keras is imported by a process that is this package's own: in about half the time.

    Without the packages that nothing here uses, a third of its seconds, and without looks for garbage among all that
    is imported, a fifth of the rest.
    """
    # A callback's JAX; without a name here, JAX may be the framework that Keras's own file names.
    unused = (*_UNUSED, "jax") if os.environ.get("KERAS_BACKEND") in ("torch", "tensorflow") else _UNUSED
    hidden = [name for name in unused if name not in sys.modules]
    # None in place of a module: it cannot be found.
    sys.modules.update(dict.fromkeys(hidden))
    looked_for_garbage = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looked_for_garbage:
            # Makes all of it old at once, which would else be looked through on its way there.
            gc.freeze()
            gc.unfreeze()
            gc.enable()
        for name in hidden:
            if sys.modules.get(name, ...) is None:
                del sys.modules[name]


def run_in_process(backend, module, job, timeout, on_cpu=False):
    """Calls `module.main(*job)` in a process of its own whose Keras has another backend, and waits for its end.

    What the process prints is kept from the terminal. It ends with this one: on Ctrl-C, and when its time is over.

    Args:
        backend: A backend of Keras.
        module: Name of the module, such as "keras_ci2p.compare".
        job: Arguments of `main`, which gets them as strings: names of files with the task and for the result.
        timeout: Seconds.
        on_cpu: Whether to keep the process from GPUs, whose memory this process may hold.

    Raises:
        RuntimeError: The process failed or took too long; the message is the last line of what it said, or how it
            ended.
    """
    packages = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    code = "import sys; from keras_ci2p.backend import lean_start\n"
    code += f"with lean_start(): from {module} import main\nmain(*sys.argv[1:])"
    try:
        process = subprocess.run(
            [sys.executable, "-c", code, *map(str, job)],
            env={
                "TF_CPP_MIN_LOG_LEVEL": "3",
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join(packages),
                **({"CUDA_VISIBLE_DEVICES": "-1"} if on_cpu else {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{module} on {backend} was not done after {timeout:g} s, and was ended") from error
    if process.returncode:
        raise RuntimeError(_reason(process))


def _reason(process):
    """Why a process failed, in one line."""
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"ended by {name}" + (", as the system does for want of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit code {process.returncode}"
