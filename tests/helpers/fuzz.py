"""Mutated checkpoints must end in a clean error or in the right weights.

    KERAS_BACKEND=torch python tests/helpers/fuzz.py 2000

Each checkpoint is damaged in one way: flipped bytes, a cut tail, a run of zeros, an inserted or repeated piece, a key
that is renamed, lost, doubled, reshaped or of another type. Anything else than CheckpointError or ValueError, and for
files any weight that differs, is a failure.
"""

import collections
import io
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_ci2p import Compressor
from keras_ci2p.convert import CheckpointError, from_compressai, to_compressai


def mutate_bytes(content, rng):
    content = bytearray(content)
    kind = rng.choice(["flip", "flips", "cut", "zeros", "insert", "repeat"])
    at = int(rng.integers(len(content)))
    if kind == "flip":
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == "flips":
        for i in rng.integers(len(content), size=20):
            content[i] ^= int(rng.integers(1, 256))
    elif kind == "cut":
        del content[at:]
    elif kind == "zeros":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif kind == "insert":
        content[at:at] = rng.bytes(16)
    else:
        content[at:at] = content[at : at + 200]
    return f"bytes: {kind}", bytes(content)


def mutate_state(state, rng):
    state = dict(state)
    key = str(rng.choice(sorted(state)))
    kind = rng.choice(["rename", "lose", "add", "reshape", "transpose", "type", "nan", "object"])
    value = state[key]
    if kind == "rename":
        at = int(rng.integers(len(key)))
        state[key[:at] + str(rng.choice(list("abc._0"))) + key[at + 1 :]] = state.pop(key)
    elif kind == "lose":
        del state[key]
    elif kind == "add":
        state[key + ".more"] = value
    elif kind == "reshape":
        state[key] = value.reshape(-1)[: max(1, value.size - int(rng.integers(1, 4)))]
    elif kind == "transpose":
        state[key] = value.T
    elif kind == "type":
        state[key] = value.astype(str(rng.choice(["float64", "float16", "int32", "complex64", "bool"])))
    elif kind == "nan":
        state[key] = np.full(value.shape, np.nan, "float32")
    else:
        state[key] = [value.tolist()]
    return f"state: {kind}", state


def fuzz(count, seed=0, directory=None):
    """Counts of `(mutation, outcome)`; AssertionError at the first failure."""
    import torch

    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(0)
    compressor = Compressor("bmshj2018-factorized", quality=None, channels=(3, 4))
    state = to_compressai(compressor)
    expected = [keras.ops.convert_to_numpy(w) for w in compressor.weights]
    file = io.BytesIO()
    torch.save({key: torch.tensor(value) for key, value in state.items()}, file)
    path = Path(directory or tempfile.mkdtemp()) / "checkpoint.pth.tar"
    outcomes = collections.Counter()
    for i in range(count):
        if i % 3:
            kind, content = mutate_bytes(file.getvalue(), rng)
            path.write_bytes(content)
            source = path
        else:
            kind, source = mutate_state(state, rng)
        try:
            loaded = from_compressai(source)
        except (CheckpointError, ValueError) as error:
            assert str(error) and len(str(error)) < 2000, (i, kind)
            outcomes[kind, "refused"] += 1
            continue
        weights = [keras.ops.convert_to_numpy(w) for w in loaded.weights]
        same = len(weights) == len(expected) and all(
            a.shape == b.shape and np.array_equal(a, b) for a, b in zip(weights, expected, strict=True)
        )
        # A dict's numbers may be rounded by its type; a file's bytes may not change anything.
        assert same or kind in ("state: type", "state: transpose"), (i, kind, "loaded wrong weights")
        outcomes[kind, "loaded the right weights" if same else "loaded"] += 1
    return outcomes


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for (kind, outcome), n in sorted(fuzz(total).items()):
        print(f"{kind:20} {outcome:26} {n:6}")
    print(f"{total} mutated checkpoints, none crashed or loaded damaged bytes as weights")
