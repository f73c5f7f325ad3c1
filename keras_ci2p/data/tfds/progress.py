"""How far a pass over a large data set is."""

import sys
import time

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
    return tqdm(items, desc=what, total=total, unit=" photos", delay=_BAR_AFTER, file=sys.stderr)


def _lines(items, total, what):
    told = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - told >= _LINE_EVERY:
            told = time.monotonic()
            print(f"{what}: {done:,} of {total:,} photos", file=sys.stderr, flush=True)
        yield item
