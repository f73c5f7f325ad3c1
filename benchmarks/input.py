"""How fast photos become batches for training with the paper's augmentation: by step, against timm, over cores.

    KERAS_BACKEND=torch python benchmarks/input.py [--data PHOTOS]
    KERAS_BACKEND=torch python benchmarks/input.py --small             # noise, once, on one core: only that it runs

1. What each step costs, in microseconds of one core for an average photo: each photo has its own draw.
2. Photos a second on one core, decoding included, beside timm's Pillow pipeline with the same steps. The contestants
   take turns on the same photos.
3. Photos a second of `image_folder` over cores, with threads and with worker processes.

1 and 2 count the time of the processor (`time.process_time`), so that other programs disturb little; 3 is the clock on
the wall and wants an idle machine. Everything is pinned to its cores where the system can do that. Numbers are medians
over the repeats, with the lowest and highest. Writes input.json and input.png.
"""

import argparse
import contextlib
import math
import os
import platform
import random
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from common import noise_photos
from input_common import available_cores, pinned
from input_cores import measure_cores
from input_one_core import measure_contestants
from input_report import plot, report
from input_steps import measure_steps
from PIL import features

from keras_ci2p import utils
from keras_ci2p.backend import hardware

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main(arguments=None):
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as directory:
        result = measure(choose(noise_photos(Path(directory, "noise")) if args.small else args.data, args.photos), args)
    report(result)
    out = Path(args.out)
    utils.write_json(out / "input.json", result)
    plot(out / "input.png", result)
    print(f"written: {out / 'input'}.json, .png")


def measure(paths, args):
    """What the files hold, dict."""
    warm_up(paths)
    size = (args.image_size, args.image_size)
    result = {
        "photos": len(paths),
        "image_size": args.image_size,
        "repeats": args.repeats,
        "environment": environment(),
    }
    with pinned(1):
        result["steps_us"] = measure_steps(paths, size, args.repeats)
        result["one_core"] = measure_contestants(paths, size, args.repeats)
    result["cores"] = measure_cores(paths, size, args.repeats, args.cores)
    return result


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", default="../shared/data/animals10", help="folder of photos as `train` takes it")
    parser.add_argument("--photos", type=int, default=1000, help="how many of them, chosen at random")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, nargs="+", default=powers_of_two(available_cores()))
    parser.add_argument("--small", action="store_true", help="noise, once, on one core: only that it runs")
    parser.add_argument("--out", default="benchmarks/results")
    args = parser.parse_args(arguments)
    if args.small:
        args.image_size, args.repeats, args.cores = 64, 1, [1]
    return args


def powers_of_two(most):
    return [2**i for i in range(int(math.log2(most)) + 1)]


def choose(root, count):
    train = Path(root, "train")
    folder = train if train.is_dir() else Path(root)
    photos = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        sys.exit(f"There are no photos in {folder}: give a folder with subfolders of photos by --data.")
    return random.Random(0).sample(photos, min(count, len(photos)))


def warm_up(paths):
    """As in the middle of a training run: the photos in the file cache, and memory that is not given back each time."""
    for path in paths:
        path.read_bytes()
    # glibc keeps freed blocks of up to the size of the largest that was freed, 32 MB at most: a batch.
    np.ones(31 * 2**20, "uint8")


def environment():
    packages = ("keras", "grain", "numpy", "pillow", "timm", "torch", "torchvision")
    versions = {}
    for package in packages:
        with contextlib.suppress(ImportError):
            versions[package] = version(package)
    return {
        "python": platform.python_version(),
        **versions,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "processor": hardware()["cpu"],
        "cores": available_cores(),
        "pinned": hasattr(os, "sched_setaffinity"),
        "torch_threads": 1,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


if __name__ == "__main__":
    main()
