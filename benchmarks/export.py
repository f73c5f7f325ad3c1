"""What exported and 8-bit models gain on a CPU: size, images a second, top-1, difference from the Keras model.

    taskset -c 1 python benchmarks/export.py [RUN|PRESET] [--variant base --image-size 256]
    taskset -c 1 python benchmarks/export.py animals10 --data PHOTOS --formats onnx openvino
    python benchmarks/export.py --small        # a minute, a nano model: only that it runs

Without a preset the weights are random, which changes neither size nor speed of floats. The model is exported to every
format and quantised by Keras; with --data also exported in 8 bits, and top-1 is that of some validation photos. Keras
on each backend and each file have a process of their own and take turns, on the same noise; ratios are those of the
same round. On one core the seconds are those of the processor, so that others at work on it count little; on several
they are those of the clock. The table is printed as Markdown; benchmarks/results gets export.json.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import contest
import keras
import numpy as np
from common import MEMORY_SETTINGS, clock

from keras_ci2p import CI2PViT, utils
from keras_ci2p.backend import environment
from keras_ci2p.data import center_crop, open_data
from keras_ci2p.export import FORMATS, ExportError, export, export_int8, open_exported
from keras_ci2p.export.formats import INT8_FORMATS
from keras_ci2p.flops import count_parameters
from keras_ci2p.models import load_preset
from keras_ci2p.presets import WEIGHTS
from keras_ci2p.training.evaluation import match_classes

RESULTS = Path(__file__).parent / "results"
SUFFIXES = {name: form.suffix or "" for name, form in FORMATS.items()}
NANO = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48}
BASELINE = "onnx"


def main():
    args = parse()
    if args.serve:
        serve(*args.serve)
        return
    model = make_model(args)
    size = model.image_shape[0]
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        work = Path(directory)
        photos = write_photos(model, work, args) if args.data else None
        rows = keras_rows(model, work, args) + exported_rows(model, work, args)
        workers = {
            row["name"]: stack.enter_context(Worker(row.pop("kind"), row.pop("path"), row.pop("backend")))
            for row in rows
        }
        seconds = measure(workers, size, args)
        for row in rows:
            row["images_per_second"], row["times_onnx"] = speeds(seconds, row["name"])
            if photos:
                row["top1"] = workers[row["name"]].ask(photos=str(photos))
    settings = {"image_size": size, "batch_sizes": args.batch_sizes, "seconds": args.seconds, "rounds": args.rounds}
    settings["photos"] = args.photos if args.data else 0
    described = {"model": type(model).__name__, "parameters": count_parameters(model), "preset": args.preset}
    result = {**described, **MEMORY_SETTINGS, "settings": settings, **environment(), "rows": rows}
    print_table(result)
    args.out.mkdir(parents=True, exist_ok=True)
    utils.write_json(args.out / "export.json", result)
    print(f"\nwritten: {args.out / 'export.json'}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", metavar="RUN|PRESET")
    parser.add_argument("--variant", default="base")
    parser.add_argument("--image-size", type=int, default=256, help="of random weights")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--backends", nargs="*", default=installed_backends(), help="of Keras; default: all installed")
    parser.add_argument("--data", metavar="DATA", help="the photos of the training, for 8 bits and top-1")
    parser.add_argument("--photos", type=int, default=300, help="of the validation split, for top-1")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=1, help="of a contestant in a round, for each batch size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_sizes, args.seconds, args.rounds, args.photos = 64, [1, 4], 0.1, 2, 6
        args.formats, args.backends = ["onnx"], [keras.backend.backend()]
    return args


def installed_backends():
    return [name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name)]


def make_model(args):
    if args.preset:
        return load_preset(args.preset)
    names = {"class_names": list(open_data(args.data).class_names)} if args.data else {}
    shape = (args.image_size, args.image_size, 3)
    options = {"num_classes": len(names["class_names"]), **names} if names else {}
    if args.small:
        return CI2PViT(image_shape=shape, **NANO, **options, compressor={"num_filters": 8, "latent_channels": 12})
    return CI2PViT(image_shape=shape, variant=args.variant, **options)


def write_photos(model, work, args):
    """A file of validation photos from all over the split, cropped, and their labels."""
    val = match_classes(model, open_data(args.data)).split("val")
    numbers = np.linspace(0, len(val) - 1, min(args.photos, len(val))).round().astype(int).tolist()
    images = np.stack([center_crop(val.open(number), model.image_shape[:2]) for number in numbers])
    np.savez(work / "photos.npz", images=images, labels=np.array(val.labels)[numbers])
    return work / "photos.npz"


def keras_rows(model, work, args):
    """The model itself and, quantised by Keras, in int8, on each backend."""
    images = noise(4, model.image_shape[0])
    logits = model.predict(images, verbose=0)
    model.save_to_preset(work / "float32")
    quantised = type(model).from_preset(work / "float32")
    quantised.quantize("int8")
    quantised.save_to_preset(work / "int8")
    differences = {"float32": 0.0, "int8": float(np.abs(quantised.predict(images, verbose=0) - logits).max())}
    return [
        row(
            f"Keras {preset}, {name}",
            "keras",
            work / preset,
            name,
            (work / preset / WEIGHTS).stat().st_size,
            difference,
        )
        for preset, difference in differences.items()
        for name in args.backends
    ]


def exported_rows(model, work, args):
    rows = []
    for name in args.formats:
        # What is no file of a framework's needs none to run.
        backend = "numpy" if name in ("onnx", "openvino", "litert") else FORMATS[name].backends[0]
        path = work / f"{name}{SUFFIXES[name]}"
        report = export(model, path, name)
        rows.append(row(name, name, path, backend, report.num_bytes, report.difference, report.opset))
        if args.data and name in INT8_FORMATS:
            path = work / f"{name}-int8{SUFFIXES[name]}"
            try:
                found = export_int8(model, path, name, match_classes(model, open_data(args.data)))
            except ExportError as error:
                # Which is a result too: it says by how much.
                print(f"{name}, int8: {error}", flush=True)
                continue
            print(found, flush=True)
            rows.append(row(f"{name}, int8", name, path, backend, found.num_bytes, None, report.opset))
    return rows


def row(name, kind, path, backend, size, difference, opset=None):
    difference = None if difference is None else float(f"{difference:.2g}")
    where = {"kind": kind, "path": path, "backend": backend}
    return {"name": name, **where, "opset": opset, "megabytes": round(size / 1e6, 2), "largest_difference": difference}


_ANSWER = "answer: "


class Worker:
    """A process that runs one model when asked: the frameworks would share their threads and disturb one another."""

    def __init__(self, kind, path, backend):
        command = [sys.executable, __file__, "--serve", kind, str(path)]
        environ = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, **job):
        print(json.dumps(job), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        raise RuntimeError(f"{self._process.args} ended with code {self._process.wait()}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()


def serve(kind, path):
    """Answers `Worker.ask`: seconds of a batch, by the median, or top-1 of photos."""
    run = load_preset(path).predict_on_batch if kind == "keras" else open_exported(path, kind)
    for line in sys.stdin:
        job = json.loads(line)
        answer = top1(run, job["photos"]) if "photos" in job else time_batches(run, **job)
        print(_ANSWER + json.dumps(answer), flush=True)


def time_batches(run, batch_size, image_size, seconds):
    images = noise(batch_size, image_size)
    run(images)
    times = []
    while sum(times) < seconds:
        began = clock()
        run(images)
        times.append(clock() - began)
    return statistics.median(times)


def top1(run, path):
    photos = np.load(path)
    images, labels = photos["images"].astype("float32"), photos["labels"]
    logits = [run(images[first : first + 10]) for first in range(0, len(images), 10)]
    return float((np.concatenate(logits).argmax(-1) == labels).mean())


def measure(workers, image_size, args):
    """Seconds of a batch by batch size, name and round."""
    seconds = {}
    for batch_size in args.batch_sizes:

        def take(worker, batch_size=batch_size):
            return worker.ask(batch_size=batch_size, image_size=image_size, seconds=args.seconds)

        actions = {name: lambda worker=worker: take(worker) for name, worker in workers.items()}
        seconds[batch_size] = contest.alternate(actions, args.rounds)
    return seconds


def speeds(seconds, name):
    """Images a second and, beside the float ONNX file in the same round, how many times as many; by batch size."""
    own = {size: contest.spread([size / value for value in rows[name]]) for size, rows in seconds.items()}
    times = {}
    for size, rows in seconds.items():
        if BASELINE in rows:
            times[size] = contest.spread([base / value for base, value in zip(rows[BASELINE], rows[name], strict=True)])
    return own, times


def noise(count, size):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype("float32")


def print_table(result):
    sizes = result["settings"]["batch_sizes"]
    print(f"\n{result['model']}, {result['parameters']:,} parameters, {result['cpu']}, {result['cores']} cores\n")
    header = ["format", "opset", "MB", *(f"images/s, batch {size}" for size in sizes)]
    header += [f"times onnx, batch {size}" for size in sizes] + ["top-1", "largest difference"]
    lines = []
    for line in result["rows"]:
        speed = [f"{line['images_per_second'][size]['median']:.1f}" for size in sizes]
        times = [contest.within(line["times_onnx"].get(size), ".2f") for size in sizes]
        right = f"{line['top1']:.2%}" if "top1" in line else "-"
        difference = "-" if line["largest_difference"] is None else f"{line['largest_difference']:.1e}"
        lines.append([line["name"], line["opset"] or "", line["megabytes"], *speed, *times, right, difference])
    print(contest.markdown(header, lines))


if __name__ == "__main__":
    main()
