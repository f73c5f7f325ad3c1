"""A GPU in a few minutes: CI2P-ViT base and ViT-B/16 on generated images, on each backend in float32 and in bfloat16.

    python benchmarks/gpu.py [--backends torch jax] [--parts speed augmentation deterministic]
    python benchmarks/gpu.py --small        # also on a CPU: only that it runs

speed: images a second of training and of prediction, compiled; on torch also of timm's ViT-B/16 and without
torch.compile; and of training with Keras's AdamW in place of `FusedAdamW`.
augmentation: images a second of `train` with the quick recipe, augmented by the host's threads or inside the step.
deterministic: whether two runs of the same steps end in equal weights, and how much slower they are.

Each backend, dtype and part has a process of its own. What is measured is written at once to gpu.json in
benchmarks/results, and the same command, started again, goes on with the rest; the table is printed at the end.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from keras_ci2p import utils

RESULTS = Path(__file__).parent / "results"
BACKENDS = ("torch", "jax")
DTYPES = ("float32", "mixed_bfloat16")
MODELS = ("CI2P-ViT base", "ViT-B/16")
TIMM = "timm ViT-B/16"
FIRST = MODELS[0]
PARTS = ("speed", "augmentation", "deterministic")
# Of the line that a part's own process ends with.
MEASURED = "measured: "


def main():
    args = parse()
    if args.measure:
        part, dtype = args.measure
        print(MEASURED + json.dumps(FUNCTIONS[part](dtype, args)))
        return
    path = args.out / "gpu.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    done = {(row["backend"], row["dtype"], row["part"]) for row in result["rows"]}
    for backend in args.backends:
        for dtype in args.dtypes:
            for part in args.parts:
                if (backend, dtype, part) in done:
                    continue
                print(f"{backend}, {dtype}, {part}", flush=True)
                row = in_own_process(backend, part, dtype)
                result["rows"].append({"backend": backend, "dtype": dtype, "part": part, **row})
                args.out.mkdir(parents=True, exist_ok=True)
                utils.write_json(path, result)
    print("\n\n".join(tables(result["rows"])))
    print(f"\nwritten: {path}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=[*BACKENDS, "tensorflow"], default=list(BACKENDS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="of a contestant in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=2048, help="generated ones, of the augmentation")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true", help="tiny models: only that it runs")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_size, args.steps, args.rounds, args.photos = 64, 2, 1, 1, 12
    return args


def in_own_process(backend, part, dtype):
    """What this part prints, from JSON."""
    command = [sys.executable, *sys.argv, "--measure", part, dtype]
    environ = {**os.environ, "KERAS_BACKEND": backend}
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environ)
    lines = [line for line in process.stdout.splitlines() if line.startswith(MEASURED)]
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} with KERAS_BACKEND={backend} ended with {process.returncode}.")
    return json.loads(lines[-1].removeprefix(MEASURED))


def speed(dtype, args):
    import contest
    import contestants
    import keras
    from common import timed

    images, labels = contestants.batch(args.image_size, args.batch_size)
    # Title, model, whether to compile on torch (where Keras does not by itself), and another optimizer.
    cases = [(name, name, True, None) for name in MODELS]
    if keras.backend.backend() == "torch":
        cases += [(TIMM, TIMM, True, None), (f"{FIRST}, not compiled", FIRST, False, None)]
    cases.append((f"{FIRST}, Keras's AdamW", FIRST, True, keras.optimizers.AdamW))
    rows = {}
    for title, name, compiled, optimizer in cases:
        # PyTorch's compiler takes minutes, and tiny models gain nothing.
        contestant = contestants.make(name, args.image_size, dtype, compiled and not args.small, args.small)
        if optimizer is not None:
            contestant.compile(optimizer=optimizer)
        contestant.train(images, labels, 2)
        seconds = [contestant.train(images, labels, args.steps, untimed=2) for _ in range(args.rounds)]
        rows[title] = {"training": contest.spread([args.steps * args.batch_size / value for value in seconds])}
        if optimizer is None:
            contestant.predict(images)

            def predict(contestant=contestant):
                for _ in range(args.steps):
                    contestant.predict(images)

            seconds = [timed(predict) for _ in range(args.rounds)]
            rows[title]["prediction"] = contest.spread([args.steps * args.batch_size / value for value in seconds])
    return {"contestants": rows, **described(args)}


def augmentation(dtype, args):
    from keras_ci2p.training import RECIPES, TrainConfig, train

    rows = {}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_photos(work / "photos", args)
        for augment in ("host", "device"):
            recipe = RECIPES["quick"].override(
                {"epochs": 2 if args.small else 3, "batch_size": args.batch_size, "image_size": args.image_size}
            )
            variant = "tiny" if args.small else "base"
            settings = TrainConfig(
                str(work / "photos"),
                variant=variant,
                recipe=recipe,
                dtype=dtype,
                augment=augment,
                in_memory=augment == "device",
            )
            _, history = train(settings, work / augment, verbose=0)
            # The first epoch compiles.
            later = history[1:]
            rows[augment] = {
                "images_per_second": statistics.median(row["images_per_second"] for row in later),
                "waiting": statistics.median(row["waiting"] for row in later),
            }
    return {"augmentation": rows, **described(args)}


def write_photos(root, args):
    """Two classes of smooth JPEG pictures, which decode as photos do."""
    rng = np.random.default_rng(0)
    side = args.image_size * 9 // 8
    for number in range(args.photos):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), "uint8"))
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def deterministic(dtype, args):
    from keras_ci2p.backend import make_deterministic, set_random_seed

    make_deterministic()
    import contestants

    images, labels = contestants.batch(args.image_size, args.batch_size)
    hashes, seconds = [], []
    for _ in range(2):
        set_random_seed(0)
        contestant = contestants.make(FIRST, args.image_size, dtype, small=args.small)
        seconds.append(contestant.train(images, labels, args.steps, untimed=1))
        weights = b"".join(np.ascontiguousarray(array).tobytes() for array in contestant.model.get_weights())
        hashes.append(hashlib.sha256(weights).hexdigest())
    speed = args.steps * args.batch_size / min(seconds)
    return {"equal": hashes[0] == hashes[1], "images_per_second": speed, **described(args)}


def described(args):
    from common import settings_of

    from keras_ci2p.backend import environment, peak_device_memory

    settings = {key: value for key, value in settings_of(args).items() if key != "measure"}
    return {**environment(), "peak_device_memory": peak_device_memory(), "settings": settings}


FUNCTIONS = {"speed": speed, "augmentation": augmentation, "deterministic": deterministic}


def tables(rows):
    import contest

    of = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    if of["speed"]:
        lines = [
            [name, row["backend"], row["dtype"], contest.within(speeds["training"], ".4g")]
            + [contest.within(speeds.get("prediction"), ".4g")]
            for row in of["speed"]
            for name, speeds in row["contestants"].items()
        ]
        yield contest.markdown(["images/s", "backend", "dtype", "training", "prediction"], lines)
    if of["augmentation"]:
        lines = [
            [
                f"{row['backend']}, {row['dtype']}",
                *(f"{by[key]['images_per_second']:.4g}, {by[key]['waiting']:.0%}" for key in by),
            ]
            for row in of["augmentation"]
            for by in [row["augmentation"]]
        ]
        yield contest.markdown(["images/s of training, time waiting", "augmented on the host", "on the device"], lines)
    if of["deterministic"]:
        lines = [
            [f"{row['backend']}, {row['dtype']}", "yes" if row["equal"] else "no", f"{row['images_per_second']:.4g}"]
            for row in of["deterministic"]
        ]
        yield contest.markdown(["`--deterministic`", "equal weights", "images/s"], lines)
    yield ", ".join(sorted({row["device"] for row in rows}))


if __name__ == "__main__":
    main()
