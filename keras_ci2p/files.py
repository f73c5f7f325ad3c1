"""Writing files and directories so that an interruption leaves the old or the new, never half of one."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

_PARTIAL = ".partial-"
_REPLACED = ".replaced-"


def sha256(path):
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_file(path):
    """Yields a temporary path beside `path`, of its suffix; on success it becomes `path`, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}{_PARTIAL}{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path, content):
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_directory(path):
    """Yields a temporary directory beside `path`; on success it becomes `path`, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary = path.with_name(f"{path.name}{_PARTIAL}{mark}")
    replaced = path.with_name(f"{path.name}{_REPLACED}{mark}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not path.exists() and replaced.exists():
            os.rename(replaced, path)
        shutil.rmtree(replaced, ignore_errors=True)


def clean_up(directory):
    """Deletes what killed writers left in `directory`, and puts back what one had moved aside."""
    for leftover in Path(directory).glob(f"*{_REPLACED}*"):
        original = leftover.with_name(leftover.name.split(_REPLACED)[0])
        if not original.exists():
            os.rename(leftover, original)
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in Path(directory).glob(f"*{_PARTIAL}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _flush(path):
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
