"""What one pass over all records of a set finds, kept beside the set."""

import functools
import json
import warnings
from typing import NamedTuple

import numpy as np

from keras_ci2p import files
from keras_ci2p.data.folder import check_picture, in_threads
from keras_ci2p.data.tfds.progress import progress

INDEX = "keras_ci2p_index.npz"
_VERSION = 1
_NO_DIGEST = "00" * 32


class Finding(NamedTuple):
    """What one record holds.

    Attributes:
        label: -1 for none, None where the record cannot be read.
        file: Name of the picture's file, or None.
        digest: Hexadecimal SHA-256 of the picture's bytes; zeros where there is a problem.
        problem: Why it is of no use, or None.
    """

    label: int | None
    file: str | None
    digest: str
    problem: str | None


def examine(records, directory, name):
    """A `Finding` of each record; read from `INDEX` in `directory` while the set's files are those it was made of."""
    state = [_VERSION, list(records.splits), _files_state(directory)]
    findings = _read(directory / INDEX, state)
    if findings is None:
        checked = in_threads(functools.partial(_check, records), range(len(records)))
        findings = list(progress(checked, len(records), f"Hashing {name}"))
        try:
            # What cannot be read today may be tomorrow.
            if all(finding.label is not None for finding in findings):
                _write(directory / INDEX, state, findings)
        except OSError as error:
            warnings.warn(
                f"The hashes of {name} cannot be kept in {directory}; each start will compute them: {error}",
                stacklevel=3,
            )
    return findings


def _check(records, position):
    try:
        content, label, file = records[position]
    except OSError as error:
        return Finding(None, None, _NO_DIGEST, str(error))
    digest, problem = check_picture(content) if label >= 0 else (None, "no label")
    return Finding(label, file, digest or _NO_DIGEST, problem)


def _files_state(directory):
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("keras_ci2p"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _write(path, state, findings):
    labels, names, digests, problems = zip(*findings, strict=True)
    with files.atomic_file(path) as temporary:
        np.savez_compressed(
            temporary,
            # As JSON, since arrays of strings are padded to the longest.
            texts=np.frombuffer(json.dumps([state, names, problems]).encode(), "uint8"),
            labels=np.array(labels),
            digests=np.frombuffer(bytes.fromhex("".join(digests)), "uint8").reshape(-1, 32),
        )


def _read(path, state):
    """The findings that `_write` kept; None where there are none, or they are damaged or of other files."""
    try:
        with np.load(path, allow_pickle=False) as index:
            kept_state, names, problems = json.loads(index["texts"].tobytes())
            if kept_state != state:
                return None
            digests = (row.tobytes().hex() for row in index["digests"])
            return list(map(Finding, index["labels"].tolist(), names, digests, problems))
    except Exception:
        # Missing, cut off, no archive, no JSON: made anew, whatever it is.
        return None
