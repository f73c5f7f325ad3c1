"""The index of a folder: what each of its files was found to be, so that an unchanged one need not be read again.

A file is unchanged while its size and the times of its last change (mtime and ctime, in nanoseconds) are. As in git's
index, one that was changed a moment before it was read is not relied on: a later change could bear the same times.
"""

import hashlib
import json
import os
import time
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from keras_ci2p.data.manifest import in_threads
from keras_ci2p.data.transforms import register_heic
from keras_ci2p.utils import atomic_file, cache_directory, clean_up, progress
from keras_ci2p.version import __version__

# To be raised where the same file is told of in another way.
_FORMAT = 3
# Nanoseconds within which two changes may bear the same time: 2 s on FAT, 10 ms on most others.
_GRANULARITY = 2 * 10**9
# Seconds after which a check that goes on keeps what it has found.
_KEEP_EVERY = 60
# Days after which an index that nobody uses is deleted.
_UNUSED = 180
# State of a file that cannot be looked at.
_ABSENT = (-1, 0, 0)
_LAST = 2**63 - 1


def check_files(root, names, check, unreadable):
    """Checks those files of a folder that have changed since they were last checked; of the others its index tells.

    The index is a file in `folders` in $KERAS_CI2P_CACHE, else in `~/.cache/keras_ci2p`. It is written whole or not at
    all, by the last of several processes; a damaged one, or one of other versions of Pillow or of this package, counts
    as none. What was found before an interruption is kept. A folder that was moved has no index in its new place.

    Args:
        root: The folder.
        names: List of the files, relative to `root`, with "/".
        check: Function of the name and the bytes of a file, called in threads; returns a tuple of a hexadecimal
            SHA-256, or None, and of what JSON can hold, mostly None.
        unreadable: Function of the OSError with which a file could not be read; returns such a tuple, which no index
            keeps.

    Returns:
        List of what `check` tells, or told, of each file.
    """
    prefix, path = os.path.join(root, ""), index_path(root)
    index = _read(path)
    states = np.array([_state(prefix + name) for name in names], "int64").reshape(-1, 3)
    rows = np.fromiter((index.row_of.get(name, -1) for name in names), "int64", len(names))
    is_known = rows >= 0
    is_known[is_known] = (index.states[rows[is_known]] == states[is_known]).all(axis=1)
    results = [None] * len(names)
    for i, result in zip(np.flatnonzero(is_known).tolist(), index.results(rows[is_known]), strict=True):
        results[i] = result
    changed = np.flatnonzero(~is_known).tolist()

    def look(i):
        file, now = prefix + names[i], time.time_ns()
        states[i] = before = _state(file)
        try:
            with open(file, "rb") as opened:
                result = check(names[i], opened.read())
        except OSError as error:
            return unreadable(error), False
        return result, before == _state(file) and now - max(before[1:]) > _GRANULARITY

    kept, new = time.monotonic(), 0
    try:
        looked_at = progress(in_threads(look, changed), len(changed), f"Reading {root}")
        for i, (result, is_final) in zip(changed, looked_at, strict=True):
            results[i], is_known[i] = result, is_final
            new += is_final
            if new and time.monotonic() - kept > _KEEP_EVERY:
                _write(path, prefix, index, names, states, results, is_known)
                kept, new = time.monotonic(), 0
    finally:
        if new:
            _write(path, prefix, index, names, states, results, is_known)
    return results


def index_path(root):
    """Where the index of a folder is, whether or not there is one."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return cache_directory() / "folders" / f"{name}.npz"


def _state(file):
    try:
        found = os.stat(file)
    except OSError:
        return _ABSENT
    return found.st_size, min(found.st_mtime_ns, _LAST), min(found.st_ctime_ns, _LAST)


class _Index(NamedTuple):
    """What is known of a folder's files.

    Attributes:
        row_of: Dict of names to rows.
        states: int64 `(files, 3)`: size, mtime, ctime.
        hashes: uint8 `(files, 32)`.
        width: Length of the tuples.
        others: Dict of rows to the tuples that hold something else than a hash.
    """

    row_of: dict
    states: np.ndarray
    hashes: np.ndarray
    width: int
    others: dict

    def results(self, rows):
        """Yields the tuples of these rows."""
        rest = (None,) * (self.width - 1)
        digits = self.hashes[rows].tobytes().hex()
        for i, row in enumerate(rows.tolist()):
            yield self.others.get(row) or (digits[64 * i : 64 * i + 64], *rest)


_NOTHING = _Index({}, np.empty((0, 3), "int64"), np.empty((0, 32), "uint8"), 1, {})


def _read(path):
    try:
        # Each array has a checksum, which is compared.
        with np.load(path, allow_pickle=False) as stored:
            told = json.loads(stored["texts"].tobytes())
            names = os.fsdecode(stored["names"].tobytes()).split("\0") if stored["names"].size else []
            states, hashes = stored["states"], stored["hashes"]
        if told["made_by"] != _made_by() or not len(names) == len(states) == len(hashes):
            return _NOTHING
        if os.access(path, os.W_OK):
            # When it was last used.
            os.utime(path)
        others = {row: tuple(result) for row, result in told["others"]}
        return _Index({name: row for row, name in enumerate(names)}, states, hashes, told["width"], others)
    except Exception:
        # Whatever is wrong with it, the files themselves can be read.
        return _NOTHING


def _write(path, prefix, index, names, states, results, is_known):
    """Writes what is known of `names`, and of other files of the folder that are still there."""
    chosen = np.flatnonzero(is_known).tolist()
    listed = set(names)
    others = [name for name in index.row_of if name not in listed and os.path.lexists(prefix + name)]
    rows = np.array([index.row_of[name] for name in others], "int64")
    found = [results[i] for i in chosen] + list(index.results(rows))
    unusual = [[row, result] for row, result in enumerate(found) if result[0] is None or any(result[1:])]
    hashes = bytes.fromhex("".join(result[0] or "0" * 64 for result in found))
    told = {"made_by": _made_by(), "width": max(map(len, found)), "others": unusual}
    try:
        with atomic_file(path) as temporary:
            np.savez(
                temporary,
                texts=np.frombuffer(json.dumps(told).encode(), "uint8"),
                names=np.frombuffer(os.fsencode("\0".join([*(names[i] for i in chosen), *others])), "uint8"),
                states=np.concatenate([states[chosen], index.states[rows]]),
                hashes=np.frombuffer(hashes, "uint8").reshape(-1, 32),
            )
        clean_up(path.parent)
        for other in path.parent.glob("*.npz"):
            if time.time() - other.stat().st_mtime > 24 * 3600 * _UNUSED:
                other.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"What was found in {prefix} cannot be kept in {path.parent}; it will be read again each time: {error}",
            stacklevel=2,
        )


def _made_by():
    """What a file is told of depends on, besides the file."""
    Image.init()
    register_heic()
    return [_FORMAT, __version__, Image.__version__, Image.MAX_IMAGE_PIXELS, sorted(Image.OPEN)]
