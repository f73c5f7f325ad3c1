"""Small disks, mounted where the tests run as root."""

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def mounted(directory, *options):
    """Mounts something on `directory`, which is made; `options` are those of `mount`, a tmpfs where there are none."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    directory.mkdir(exist_ok=True)
    options = options or ("-t", "tmpfs", "-o", "size=8M", "tmpfs")
    done = subprocess.run(["mount", *map(str, options), str(directory)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory, leave):
    """Fills a disk but for `leave` bytes; returns the file that takes the room."""
    free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    filler = directory / "filler"
    filler.write_bytes(b"x" * (free - leave))
    return filler
