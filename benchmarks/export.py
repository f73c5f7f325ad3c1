"""What exported models gain on a CPU: size, images a second, difference from the Keras model; and what int8 does.

    python benchmarks/export.py [RUN|PRESET] [--variant base --image-size 256]
    python benchmarks/export.py --small        # a minute, a nano model: only that it runs

Without a preset the weights are random, which changes neither size nor speed. The model is exported to every format and
quantised to int8; Keras on each backend and each exported file then run in a process of their own, one after the other,
on the same noise. The table is printed as Markdown; benchmarks/results gets export.json.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from common import MEMORY_SETTINGS

from keras_ci2p import CI2PViT, utils
from keras_ci2p.backend import environment
from keras_ci2p.export import FORMATS, export, open_exported
from keras_ci2p.flops import count_parameters
from keras_ci2p.models import load_preset
from keras_ci2p.presets import WEIGHTS

RESULTS = Path(__file__).parent / "results"
SUFFIXES = {name: form.suffix or "" for name, form in FORMATS.items()}
NANO = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48}


def main():
    args = parse()
    if args.measure:
        print(json.dumps(measure(*args.measure, args)))
        return
    model = make_model(args)
    args.image_size = model.image_shape[0]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        rows = keras_rows(model, work, args) + exported_rows(model, work, args)
    settings = {"image_size": args.image_size, "batch_sizes": args.batch_sizes, "seconds": args.seconds}
    described = {"model": type(model).__name__, "parameters": count_parameters(model), "preset": args.preset}
    described.update(MEMORY_SETTINGS)
    result = {**described, "settings": settings, **environment(), "rows": rows}
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
    parser.add_argument("--backends", nargs="+", default=installed_backends(), help="of Keras; default: all installed")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_sizes, args.seconds = 64, [1, 4], 0.2
        args.formats, args.backends = ["onnx", "openvino"], [keras.backend.backend()]
    return args


def installed_backends():
    return [name for name in ("torch", "jax", "tensorflow") if importlib.util.find_spec(name)]


def make_model(args):
    if args.preset:
        return load_preset(args.preset)
    shape = (args.image_size, args.image_size, 3)
    if args.small:
        return CI2PViT(image_shape=shape, **NANO, compressor={"num_filters": 8, "latent_channels": 12})
    return CI2PViT(image_shape=shape, variant=args.variant)


def keras_rows(model, work, args):
    """The model itself and in int8, on each backend."""
    images = noise(4, args.image_size)
    logits = model.predict(images, verbose=0)
    model.save_to_preset(work / "float32")
    quantised = type(model).from_preset(work / "float32")
    quantised.quantize("int8")
    quantised.save_to_preset(work / "int8")
    differences = {"float32": 0.0, "int8": float(np.abs(quantised.predict(images, verbose=0) - logits).max())}
    rows = []
    for preset, difference in differences.items():
        size = (work / preset / WEIGHTS).stat().st_size
        for backend in args.backends:
            speeds = measure_elsewhere("keras", work / preset, backend, args)
            rows.append(row(f"Keras {preset}, {backend}", size, speeds, difference))
    return rows


def exported_rows(model, work, args):
    rows = []
    for name in args.formats:
        path = work / f"{name}{SUFFIXES[name]}"
        report = export(model, path, name)
        speeds = measure_elsewhere(name, path, FORMATS[name].backends[0], args)
        rows.append(row(f"{name}, by {report.backend}", report.num_bytes, speeds, report.difference, report.opset))
    return rows


def row(name, size, speeds, difference, opset=None):
    result = {"name": name, "opset": opset, "megabytes": round(size / 1e6, 2), "images_per_second": speeds}
    result["largest_difference"] = float(f"{difference:.2g}")
    print(result, flush=True)
    return result


def measure_elsewhere(kind, path, backend, args):
    """`measure` in a process of its own: the frameworks would share their threads and disturb one another."""
    command = [sys.executable, __file__, "--measure", kind, str(path), "--image-size", str(args.image_size)]
    command += ["--seconds", str(args.seconds), "--batch-sizes", *map(str, args.batch_sizes)]
    environ = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    finished = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(kind, path, args):
    """Batch size to images a second, by the median time of a batch."""
    run = load_preset(path).predict_on_batch if kind == "keras" else open_exported(path, kind)
    speeds = {}
    for batch_size in args.batch_sizes:
        images = noise(batch_size, args.image_size)
        run(images)
        times = []
        while sum(times) < args.seconds:
            began = time.perf_counter()
            run(images)
            times.append(time.perf_counter() - began)
        speeds[str(batch_size)] = round(batch_size / statistics.median(times), 2)
    return speeds


def noise(count, size):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype("float32")


def print_table(result):
    sizes = [str(size) for size in result["settings"]["batch_sizes"]]
    print(f"\n{result['model']}, {result['parameters']:,} parameters, {result['cpu']}, {result['cores']} cores\n")
    speeds = " | ".join(f"images/s, batch {size}" for size in sizes)
    print(f"| format | opset | MB | {speeds} | largest difference |")
    print("|---|---|---" + "|---" * len(sizes) + "|---|")
    for line in result["rows"]:
        speeds = " | ".join(str(line["images_per_second"][size]) for size in sizes)
        opset = line["opset"] or ""
        print(f"| {line['name']} | {opset} | {line['megabytes']} | {speeds} | {line['largest_difference']:.1e} |")


if __name__ == "__main__":
    main()
