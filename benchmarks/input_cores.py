"""Photos a second of `image_folder` over cores, with threads and with worker processes."""

import tempfile
import time
from pathlib import Path

from input_common import AUGMENTATION, BATCH, pinned, spread

from keras_ci2p.data import image_folder, scan_folder


def measure_cores(paths, size, repeats, core_counts):
    """Photos a second of `image_folder`: `{"threads" or "workers": {cores: {median, least, most}}}`."""
    rates = {kind: {str(cores): [] for cores in core_counts} for kind in ("threads", "workers")}
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        photos = scan_folder(linked(paths, Path(folder)))
        for repeat in range(repeats):
            for cores in core_counts:
                with pinned(cores):
                    for kind in rates:
                        start, rate = time_loading(photos, size, repeat, **{f"num_{kind}": cores})
                        rates[kind][str(cores)].append(rate)
                        if kind == "workers":
                            starts.append(start)
    return {
        **{kind: {cores: spread(values) for cores, values in row.items()} for kind, row in rates.items()},
        "seconds_to_first_batch_of_workers": spread(starts),
    }


def linked(paths, folder):
    """A folder of two classes of links, so that only these photos are read."""
    for i, path in enumerate(paths):
        link = folder / "ab"[i % 2] / f"{i}{path.suffix}"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.resolve())
    return folder


def time_loading(photos, size, seed, **parallel):
    """`(seconds to the first batch, photos a second after it)` of one epoch."""
    data = image_folder(
        photos,
        image_size=size,
        batch_size=BATCH,
        split="all",
        seed=seed,
        augment=AUGMENTATION,
        # Any size: no model takes these.
        patch_size=1,
        **parallel,
    )
    began = time.perf_counter()
    batches = iter(data.repeat())
    next(batches)
    first = time.perf_counter() - began
    # The batches that were made meanwhile.
    for _ in range(6):
        next(batches)
    began, count = time.perf_counter(), 0
    for _ in range(max(20, data.steps_per_epoch)):
        count += len(next(batches)[0])
    rate = count / (time.perf_counter() - began)
    batches.close()
    return first, rate
