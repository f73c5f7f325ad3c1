"""Small tools without a place of their own: optional packages, files that are whole or not there, progress."""

import contextlib
import csv
import ctypes
import errno
import hashlib
import importlib
import io
import json
import os
import platform
import random
import re
import shutil
import sys
import time
import types
import uuid
import warnings
from pathlib import Path


class _LazyPackage(types.ModuleType):
    """A package of which a name wins over the module of the same name that defines it, as `train` in `train.py`."""

    def __setattr__(self, name, value):
        # Importing a module binds it in its package.
        if isinstance(value, types.ModuleType) and name in self._module_of:
            value = getattr(value, name)
        super().__setattr__(name, value)


def lazy_imports(package, names, modules=(), renamed=None):
    """Returns what the `__init__` of a package needs to import its names when they are first used (PEP 562).

    Args:
        package: `__name__` of the package.
        names: dict of modules of the package, each with a list of the names that it defines. A leading "." stands for
            the package's parent, as in relative imports.
        modules: Modules that are public themselves.
        renamed: dict of former names, each with the new one, for which it still stands with a DeprecationWarning. The
            new one is public, or "module.name" as in `names`.

    Returns:
        `__all__`, `__getattr__` and `__dir__` of the package, without the former names.
    """
    module_of = {name: module for module, some in names.items() for name in some}
    public = sorted({*module_of, *modules})
    renamed = renamed or {}
    this = sys.modules[package]
    this._module_of = module_of
    this.__class__ = _LazyPackage

    def get(name):
        if name in renamed:
            return _renamed(package, name, renamed[name])
        if name in module_of:
            value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
        elif name in modules:
            value = importlib.import_module(f".{name}", package)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(this, name, value)
        return value

    return public, get, lambda: public


def renamed_names(module, renamed):
    """Returns the `__getattr__` of a module some of whose names have others now, as `renamed` of `lazy_imports`."""

    def get(name):
        if name in renamed:
            return _renamed(module, name, renamed[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return get


def _renamed(package, old, new):
    module, _, name = new.rpartition(".")
    where = importlib.import_module(f".{module}", package) if module else sys.modules[package]
    # Not kept in the package, so that each use warns. 3: the user's line.
    warnings.warn(f"{package}.{old} is now called {name}.", DeprecationWarning, stacklevel=3)
    return getattr(where, name)


def num_cpus():
    """Returns the number of processors that this process may use, which `os.cpu_count` does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(module, extra):
    """Imports `module`, or raises an ImportError that names the extra which installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"This needs the package {package}, which is not installed: pip install 'keras_ci2p[{extra}]'"
        ) from error


# What stands in the name of a file or directory that is being written, or was moved aside to be replaced; then a mark.
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
# Marks: machine, process number, process, writer. Numbers are given anew, so each process has a name of its own too.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_PROCESS = uuid.uuid4().hex[:6]
_MARK = re.compile(r"([0-9a-f]{6})-(\d+)-([0-9a-f]{6})-[0-9a-f]{8}")
# Seconds without a change, after which writers on other machines count as killed.
_ABANDONED = 24 * 3600


def file_sha256(path):
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mark():
    return f"{_MACHINE}-{os.getpid()}-{_PROCESS}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def atomic_file(path):
    """Yields a temporary path beside `path`, of its suffix; on success it becomes `path`, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}{_PARTIAL}{_mark()}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path, content):
    """Writes a file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path, value):
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path, replace=True):
    """Yields a temporary directory beside `path`; on success it becomes `path`, on failure it goes.

    A directory that is at `path` stays there until the new one takes its place in one step, where the system can
    exchange two names (Linux). Of several writers the last to end wins.

    Args:
        path: The directory.
        replace: Whether to replace a directory that is not empty; else it stays, and what was written goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{_PARTIAL}{_mark()}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _move_into_place(temporary, path, replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Seconds in which other writers may come between two looks, again and again.
_LONGEST_TRY = 5


def _move_into_place(temporary, path, replace):
    end = time.monotonic() + _LONGEST_TRY
    while time.monotonic() < end:
        try:
            # An empty directory is replaced, but not by Windows.
            return os.rename(temporary, path)
        except OSError as error:
            # Only what another directory in the way says is worth another try.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or path.is_file():
                raise
            last = error
        with contextlib.suppress(FileNotFoundError):
            if not replace and any(path.iterdir()):
                return None
        if _exchange(temporary, path) or _replace_aside(temporary, path):
            return None
        # Of several that try at the same rate one could lose each time.
        time.sleep(random.uniform(0, 0.01))
    raise last


def _replace_aside(temporary, path):
    """Moves `path` aside and `temporary` into its place; False where another writer came between."""
    aside = path.with_name(f"{path.name}{_REPLACED}{_mark()}")
    try:
        os.rename(path, aside)
    except OSError:
        return False
    try:
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(aside, path)
        return False
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchange(one, other):
    """Gives two paths each other's name in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        # A C library other than glibc, or an old one.
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def clean_up(directory):
    """Deletes what killed writers left in `directory`, and puts back what one had moved aside.

    What a living process writes stays, of whatever machine: there, what was changed in the last day.
    """
    for leftover in Path(directory).glob(f"*{_REPLACED}*"):
        original, mark = leftover.name.split(_REPLACED, 1)
        if not _is_being_written(leftover, mark):
            with contextlib.suppress(OSError):
                os.rename(leftover, leftover.with_name(original))
            shutil.rmtree(leftover, ignore_errors=True)
    for leftover in Path(directory).glob(f"*{_PARTIAL}*"):
        if _is_being_written(leftover, leftover.name.split(_PARTIAL, 1)[1]):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_being_written(path, mark):
    """Whether the writer of a temporary name may live."""
    match = _MARK.match(mark)
    if match is None:
        # Of version 0.1.0, whose names do not tell.
        return False
    machine, process_id, process = match.groups()
    if machine == _MACHINE and os.name == "posix":
        if int(process_id) == os.getpid():
            return process == _PROCESS
        try:
            os.kill(int(process_id), 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return True
    try:
        files = [path, *path.rglob("*")]
        return time.time() - max(file.stat().st_mtime for file in files) < _ABANDONED
    except FileNotFoundError:
        # It was just given its name, or deleted.
        return True


def _flush(path):
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


# Seconds: shorter passes show nothing; off a terminal, one line in each of these.
_BAR_AFTER = 1.0
_LINE_EVERY = 10.0


def progress(items, total, what):
    """Yields `items` and tells on standard error how many of `total` are done: a bar on a terminal, else lines."""
    return _bar(items, total, what) if sys.stderr.isatty() else _lines(items, total, what)


def _bar(items, total, what):
    try:
        # Comes with TFDS.
        from tqdm import tqdm
    except ImportError:
        return _lines(items, total, what)
    return tqdm(items, desc=what, total=total, unit=" images", delay=_BAR_AFTER, file=sys.stderr)


def _lines(items, total, what):
    told = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - told >= _LINE_EVERY:
            told = time.monotonic()
            print(f"{what}: {done:,} of {total:,} images", file=sys.stderr, flush=True)
        yield item


def write_csv(path, rows):
    """Writes the rows (dicts with equal keys, one per epoch)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
