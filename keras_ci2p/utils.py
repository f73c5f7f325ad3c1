"""Small tools without a place of their own: types, optional packages, files that are whole or not there, progress."""

import contextlib
import csv
import ctypes
import difflib
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
import signal
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, TypeAlias

# Types that several signatures name. Keras has no annotations of its own, so what is Keras's is checked by nobody.

# A tensor of Keras's backend, a `keras.KerasTensor` while a model is built, or an array that Keras takes for one.
Tensor: TypeAlias = Any
# Integers, and None for what may be of any size.
Shape: TypeAlias = tuple[Any, ...]
PathLike: TypeAlias = str | os.PathLike[str]
# The base of what is mixed into classes of Keras: a type checker takes their attributes for its own.
Mixin: Any = object


def cache_directory():
    """Where downloads, indexes of folders and compiled code are kept: $KERAS_CI2P_CACHE, else ~/.cache/keras_ci2p."""
    return user_path(os.environ.get("KERAS_CI2P_CACHE") or "~/.cache/keras_ci2p")


def did_you_mean(name, known):
    """Returns " Did you mean ...?" with the known name that `name` is nearly, or an empty text."""
    by_lower = {str(one).lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.7)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def wrong_choice(name, value, known):
    """Returns the message of an argument that has none of its known values."""
    return f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}.{did_you_mean(value, known)}"


def user_path(path):
    """Returns a `Path`; a leading "~" is the home directory, as shells have it, though not in `--out=~/run`."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def on_interrupt(handler):
    """Calls `handler(signum, frame)` at Ctrl-C while it lasts: in the main thread, unless another handler is there."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def num_cpus():
    """Returns the number of processors that this process may use, which `os.cpu_count` does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(module, extra):
    """Imports `module`, or raises an ImportError that names the extra which installs it."""
    package = module.split(".")[0]
    try:
        if package == "grain":
            _expect_no_jax_profiler()
        return importlib.import_module(module)
    except Exception as error:  # A package that is damaged, or does not fit another, raises what it likes.
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "is not installed" if is_absent else f"cannot be imported ({first_line(error)})"
        raise ImportError(
            f"This needs the package {package}, which {state}: pip install 'keras_ci2p[{extra}]'"
        ) from error


def _expect_no_jax_profiler():
    """Silences grain's warning that JAX's profiler is not there, which nobody with another backend misses."""
    from absl import logging

    logging.get_absl_logger().addFilter(_is_wanted)


def _is_wanted(record):
    return not str(record.msg).startswith("Failed to load jax profiler")


def first_line(error):
    """The first line that an error's message has, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
    with open(user_path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path, digest):
    """Whether a file has this SHA-256, a JSON file with any line ends: Git changes them on Windows."""
    if file_sha256(path) == digest:
        return True
    if path.suffix != ".json":
        return False
    text = path.read_bytes().replace(b"\r\n", b"\n")
    return digest in (hashlib.sha256(content).hexdigest() for content in (text, text.replace(b"\n", b"\r\n")))


def misplaced_file(path):
    """What lies at `path` in the place of the file that was to be downloaded, in words; None for anything else."""
    with open(path, "rb") as file:
        start = file.read(200)
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS to the file: fetch that by `git lfs pull`"
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head)", start, re.IGNORECASE):
        return "a web page: download the file itself, by its direct address"
    return None


def _mark():
    return f"{_MACHINE}-{os.getpid()}-{_PROCESS}-{uuid.uuid4().hex[:8]}"


def listed(names, most=10):
    """The first names in words: "ant, bee and 3 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more


def megabytes(count):
    """Bytes in words: "1,234.5 MB", and to a thousandth what is less than ten."""
    return f"{count / 1e6:,.{1 if count >= 1e7 else 3}f} MB"


class DiskFullError(OSError):
    """A disk that is too full for what was to be written.

    Args:
        path: What was to be written.
        needed: Its size in bytes, 0 where it is not known.
        free: Bytes that there were for it.
    """

    def __init__(self, path, needed, free):
        needs = f"{megabytes(needed)}, and {megabytes(free)} are free" if needed else f"more than {megabytes(free)}"
        super().__init__(f"The disk is full: {path} needs {needs}. Make room there, then do the same again.")
        self.errno, self.path, self.needed = errno.ENOSPC, path, needed


# Less room than this is none, whatever a writer says of its failure.
_NO_ROOM = 2**16
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of the system, and of HDF5.
_FULL_IN_WORDS = re.compile("|".join([*map(os.strerror, _FULL), *(rf"errno = {number}\b" for number in _FULL)]))


@contextlib.contextmanager
def room_for(path, temporary, needed=0):
    """Turns what a full disk makes any writer raise into a DiskFullError.

    Args:
        path: What is to be written, for the message.
        temporary: Where it is written; it need not exist yet.
        needed: Its size in bytes as far as it is known, which must be free at the beginning.
    """
    temporary = Path(temporary)
    absolute = temporary.absolute()
    directory = next(place for place in (absolute, *absolute.parents) if place.is_dir())
    free = _free(directory)
    if needed > free:
        raise DiskFullError(path, needed, free)
    try:
        yield
    except Exception as error:
        # Not of another disk.
        file = getattr(error, "path", None) or getattr(error, "filename", None)
        is_here = not isinstance(file, str | Path) or Path(file).is_relative_to(temporary)
        if not (is_here and is_of_full_disk(error, directory, needed)):
            raise
        written = _size(temporary)
        of_part = getattr(error, "needed", 0)
        needed = max(needed, of_part and of_part + written)
        free = _free(directory) + written
        raise DiskFullError(path, needed if needed > free else 0, free) from error


def is_of_full_disk(error, directory, needed=0):
    """Whether an error says that a disk is full: that of `directory`, or in words that tell so.

    What says nothing of its reason, as C++ does, is taken for it where less than `needed` bytes are free by now.
    """
    # Libraries have errors of their own for it, some of which say nothing of the reason.
    could_be = isinstance(error, OSError | RuntimeError)
    while error is not None:
        if getattr(error, "errno", None) in _FULL or _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return could_be and _free(directory) < max(_NO_ROOM, needed)


def _free(directory):
    usage = shutil.disk_usage(directory)
    # Some network file systems do not tell.
    return usage.free if usage.total else sys.maxsize


def _size(path):
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


@contextlib.contextmanager
def atomic_file(path, needed=0):
    """Yields a temporary path beside `path`, of its suffix; on success it becomes `path`, on failure it goes.

    A symbolic link stays one: what it points to is written. What cannot be replaced, being mounted, a device, or in a
    directory that cannot be written to, is overwritten once all is there.

    Args:
        path: The file.
        needed: Its size in bytes, as far as it is known.

    Raises:
        DiskFullError: There is not enough room. What was at `path` is still there.
    """
    path = user_path(path)
    real = Path(os.path.realpath(path))
    real.parent.mkdir(parents=True, exist_ok=True)
    # Of a pipe the real path is no name of it.
    target = real if real.exists() or not path.exists() else path
    is_special = target.exists() and not target.is_file() and not target.is_dir()
    with contextlib.ExitStack() as stack:
        directory = target.parent
        if is_special or (target.is_file() and not os.access(directory, os.W_OK)):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        temporary = directory / f"{target.stem}{_PARTIAL}{_mark()}{target.suffix}"
        stack.callback(temporary.unlink, missing_ok=True)
        stack.enter_context(room_for(path, temporary, needed))
        yield temporary
        _flush(temporary)
        if directory != target.parent or not _replaced(temporary, target):
            _overwrite(temporary, target)


def _replaced(temporary, target):
    """Gives `temporary` the name `target`; False where something is mounted there."""
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _overwrite(temporary, target):
    if target.is_file():
        more = temporary.stat().st_size - target.stat().st_size
        if more > _free(target):
            raise DiskFullError(target, more, _free(target))
    with open(temporary, "rb") as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)
    _flush(target)


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    # With the same line ends on all systems, and in spite of names that are no UTF-8.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path, content):
    """Writes a file, whole or not at all."""
    with atomic_file(path, needed=len(content)) as temporary:
        temporary.write_bytes(content)


def written_bytes(write):
    """The bytes that `write` writes to the file object that it is given.

    In memory, since what writes files in C++ may end the process where a disk fills: HDF5 and torch do.
    """
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def write_json(path, value):
    """Writes a JSON file, whole or not at all; numbers and arrays of NumPy as Python's."""
    write_bytes(path, json_bytes(value))


def json_bytes(value):
    """A JSON file's content. Half a surrogate pair, which names that are no UTF-8 have, is escaped."""
    text = json.dumps(without_arrays(value), indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")


def without_arrays(value):
    """Returns a value, dicts and sequences within it too, with numbers and arrays as Python's; a list as a tuple.

    So Keras's layers take it, JSON, and a comparison.
    """
    if hasattr(value, "tolist"):
        # NumPy's and the frameworks'.
        value = value.tolist()
    if isinstance(value, dict):
        return {without_arrays(key): without_arrays(entry) for key, entry in value.items()}
    return tuple(map(without_arrays, value)) if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def atomic_directory(path, replace=True, needed=0, stale=()):
    """Yields a temporary directory beside `path`; on success it becomes `path`, on failure it goes.

    A directory that is at `path` stays there until the new one takes its place in one step, where the system can
    exchange two names (Linux). Of several writers the last to end wins. A symbolic link stays one.

    What cannot be moved is filled instead, file by file once all is there: the current directory or one that it is in,
    a mount point, a directory whose parent cannot be written to. What else is in it stays.

    Args:
        path: The directory.
        replace: Whether to replace a directory that is not empty; else it stays, and what was written goes.
        needed: Size of the files in bytes, as far as it is known.
        stale: Names of files that do not stay in a directory that is filled, unless they are written again.

    Raises:
        DiskFullError: There is not enough room. What was at `path` is still there.
    """
    path = user_path(path)
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    is_fixed = _is_fixed(target)
    temporary = (target if is_fixed else target.parent) / f"{target.name}{_PARTIAL}{_mark()}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        stack.enter_context(room_for(path, temporary, needed))
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        if not is_fixed:
            try:
                return _move_into_place(temporary, target, replace)
            except OSError as error:
                # Mounted from the same disk, which only renaming tells.
                if error.errno != errno.EBUSY:
                    raise
        if replace or is_empty(target):
            _fill(target, temporary, stale)


def _is_fixed(directory):
    """Whether a directory is there and cannot give its place to another one."""
    here = Path(os.path.realpath(os.curdir))
    return directory.is_dir() and (
        directory in (here, *here.parents) or os.path.ismount(directory) or not os.access(directory.parent, os.W_OK)
    )


def _fill(directory, temporary, stale):
    """Moves what is in `temporary` into the directory, and deletes there what is stale."""
    if temporary.parent != directory:
        inner = directory / temporary.name
        try:
            shutil.copytree(temporary, inner)
            return _fill(directory, inner, stale)
        finally:
            shutil.rmtree(inner, ignore_errors=True)
    written = list(temporary.iterdir())
    for entry in written:
        if entry.is_dir():
            _move_into_place(entry, directory / entry.name, replace=True)
        else:
            os.replace(entry, directory / entry.name)
    for name in set(stale).difference(entry.name for entry in written):
        (directory / name).unlink(missing_ok=True)
    return None


def is_empty(directory, besides=()):
    """Whether a directory has no entries but those `besides`, what a new disk has, and what killed writers left."""
    names = (path.name for path in Path(directory).iterdir())
    return all(name.split(_REPLACED)[0] in ("lost+found", *besides) or _PARTIAL in name for name in names)


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
