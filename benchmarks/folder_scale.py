"""How opening a folder, beginning an epoch and resuming one grow with the number of files.

    KERAS_BACKEND=torch python benchmarks/folder_scale.py [--files 10000 100000 --classes 1000]
    KERAS_BACKEND=torch python benchmarks/folder_scale.py --small      # only that it runs

Tiny JPEGs, all different, are written to a temporary directory, deleted afterwards. Of each step a process of its own
tells CPU and wall seconds and peak memory: opening for the first time, opening again (from the index), and of an open
folder the first batch of the first epoch, and the first from the middle of the tenth on, as a resumed run begins. A
table is printed; benchmarks/results gets folder_scale.json and folder_scale.png.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from keras_ci2p import data, utils
from keras_ci2p.backend import environment, peak_memory

RESULTS = Path(__file__).parent / "results"
RESUMED = "resumed in epoch 10"
STEPS = ("open", "open again", "first batch", RESUMED)


def main():
    args = parse()
    if args.case:
        print(json.dumps(run_case(args.case, args.folder)))
        return
    rows = []
    for count in args.files:
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            write_files(work / "photos", count, min(args.classes, count // 10))
            # What was changed a moment ago is not relied on.
            time.sleep(3)
            rows.append({"files": count, **{step: measure(step, work) for step in STEPS}})
            print(rows[-1], flush=True)
    result = {"settings": {"files": args.files, "classes": args.classes}, **environment(), "rows": rows}
    print_table(rows)
    utils.write_json(args.out / "folder_scale.json", result)
    plot(args.out / "folder_scale.png", result)
    print(f"\nwritten: {args.out / 'folder_scale.json'}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--case", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.files, args.classes = [100, 200], 5
    return args


def write_files(root, count, classes):
    """JPEGs of 8 x 8 pixels, each with its number as a comment: no two have the same bytes."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), "uint8")).save(content, "JPEG")
    start, rest = content.getvalue()[:2], content.getvalue()[2:]
    for label in range(classes):
        (root / f"class-{label:04d}").mkdir(parents=True)
    for i in range(count):
        comment = b"\xff\xfe\x00\x0a" + i.to_bytes(8)
        (root / f"class-{i % classes:04d}" / f"image-{i:08d}.jpg").write_bytes(start + comment + rest)


def measure(step, work):
    """What `run_case` tells in a process of its own."""
    command = [sys.executable, __file__, "--case", step, "--folder", str(work / "photos")]
    env = {**os.environ, "KERAS_CI2P_CACHE": str(work / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_case(step, folder):
    """CPU and wall seconds of a step, and the peak memory of the process, which has imported Keras and grain."""
    if step.startswith("open"):
        return seconds_of(lambda: data.open_data(folder))
    manifest = data.open_data(folder)

    def first_batch():
        loader = data.image_folder(manifest, image_size=32, batch_size=32, augment=False)
        start = 9 * loader.steps_per_epoch + loader.steps_per_epoch // 2 if step == RESUMED else 0
        next(iter(loader.repeat_from_batch(start)))

    return seconds_of(first_batch)


def seconds_of(action):
    imported, wall, cpu = peak_memory(), time.perf_counter(), time.process_time()
    action()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    megabytes = {"megabytes": round(peak_memory() / 1e6), "megabytes_imported": round(imported / 1e6)}
    return {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2), **megabytes}


def print_table(rows):
    print("\nCPU seconds; peak memory of the process in MB, of it before the step\n")
    print("| files | " + " | ".join(STEPS) + " |\n|---|" + "---|" * len(STEPS))
    for row in rows:
        steps = [row[step] for step in STEPS]
        cells = [f"{step['cpu_seconds']:.2f} s; {step['megabytes']}, {step['megabytes_imported']}" for step in steps]
        print(f"| {row['files']:,} | " + " | ".join(cells) + " |")


def plot(path, result):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    counts = [row["files"] for row in result["rows"]]
    for step in STEPS:
        seconds.plot(counts, [max(row[step]["cpu_seconds"], 0.01) for row in result["rows"]], "o-", label=step)
        memory.plot(counts, [row[step]["megabytes"] for row in result["rows"]], "o-")
    first = max(result["rows"][0]["open"]["cpu_seconds"], 0.01)
    seconds.plot(counts, [first * count / counts[0] for count in counts], ":", color="0.6", label="linear")
    seconds.set_yscale("log")
    seconds.set_title("CPU seconds", fontsize=11)
    memory.set_title("peak memory, MB", fontsize=11)
    memory.set_ylim(0)
    seconds.legend(frameon=False, fontsize=9)
    for axes in (seconds, memory):
        axes.set_xscale("log")
        axes.set_xlabel("files")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"A folder of tiny JPEGs; {result['cpu']}", fontsize=10)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
