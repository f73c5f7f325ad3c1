"""What a user waits for: CPU seconds of whole processes, from their start to their end, on each backend.

    python benchmarks/startup.py [--rounds 5 --backends torch jax tensorflow --cases help predict]
    python benchmarks/startup.py --small         # only that it runs

Contestants take turns; a table is printed, benchmarks/results gets startup.json. CPU seconds are those of the process
and of what it started, user and system: a busy machine lengthens them little. Under JAX, "again" is with what the
process before has compiled, in a cache that was empty at first.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import noise_photos
from PIL import Image

from keras_ci2p import utils
from keras_ci2p.backend import environment

RESULTS = Path(__file__).parent / "results"
COMMAND = ("-m", "keras_ci2p")
TRAIN = ("train", "../photos", "--variant", "tiny", "--epochs", "1", "--batch-size", "8")
# Arguments of Python, and the exit code.
CASES = {
    "help": ((*COMMAND, "--help"), 0),
    "wrong option": ((*COMMAND, "predict", "animals10", "../photo.jpg", "--tpo", "1"), 2),
    "wrong file": ((*COMMAND, "predict", "animals10", "absent.jpg"), 2),
    "import keras": (("-c", "import keras"), 0),
    "predict": ((*COMMAND, "predict", "animals10", "../photo.jpg"), 0),
    "predict again": ((*COMMAND, "predict", "animals10", "../photo.jpg"), 0),
    "first epoch": ((*COMMAND, *TRAIN, "--image-size", "64", "--out", "run"), 0),
    "first epoch again": ((*COMMAND, *TRAIN, "--image-size", "64", "--out", "again"), 0),
}
# These need no backend: measured once.
WITHOUT_KERAS = ("help", "wrong option", "wrong file")


def main():
    args = parse()
    seconds = {case: {backend: [] for backend in backends_of(case, args)} for case in args.cases}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            for backend in args.backends:
                (work / backend).mkdir()
            noise_photos(work / "photos")
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), "uint8")).save(work / "photo.jpg")
            for case in args.cases:
                for backend in seconds[case]:
                    seconds[case][backend].append(measure(case, backend, work))
                    print(f"{case}, {backend}: {seconds[case][backend][-1]:.2f}", flush=True)
    rows = {
        case: {backend: summary(values) for backend, values in row.items() if values} for case, row in seconds.items()
    }
    settings = {"rounds": args.rounds, "threads": 1, "photos": 20, "image_size": 64}
    print_table(rows, args.backends)
    utils.write_json(args.out / "startup.json", {"settings": settings, **facts(), "cpu_seconds": rows})
    print(f"\nwritten: {args.out / 'startup.json'}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.rounds, args.backends, args.cases = 1, args.backends[:1], ["help", "wrong file", "import keras"]
    return args


def backends_of(case, args):
    return args.backends[:1] if case in WITHOUT_KERAS else args.backends


def measure(case, backend, work):
    """CPU seconds of a process, and of the processes that it started and waited for."""
    arguments, expected = CASES[case]
    removed = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    env = {key: value for key, value in os.environ.items() if key not in removed}
    env |= {"KERAS_BACKEND": backend, "KERAS_CI2P_CACHE": str(work / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=work / backend, env=env, stdin=quiet, stdout=quiet, stderr=quiet
    )
    _, status, used = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    if code != expected:
        raise RuntimeError(f"{case} on {backend} ended with {code}, not {expected}: {' '.join(arguments)}")
    return used.ru_utime + used.ru_stime


def summary(values):
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
        "runs": len(values),
    }


def facts():
    known = environment()
    return {key: known[key] for key in ("cores", "cpu", "versions")}


def print_table(rows, backends):
    print("\nCPU seconds, median (least..most)\n")
    print("| | " + " | ".join(backends) + " |\n|---|" + "---|" * len(backends))
    for case, row in rows.items():
        cells = [f"{n['median']:.1f} ({n['least']:.1f}..{n['most']:.1f})" for n in row.values()]
        print(f"| {case} | " + " | ".join(cells + [""] * (len(backends) - len(cells))) + " |")


if __name__ == "__main__":
    main()
