"""What latent caching gains: training on latents against training on pixels, bytes for each photo, reading speed.

    KERAS_BACKEND=jax python benchmarks/latents.py [--data PHOTOS --compressor NAME|PATH]
    KERAS_BACKEND=jax python benchmarks/latents.py --small        # seconds, noise for photos: only that it runs

Of PHOTOS (one subfolder per class, or folders train and val that hold these) some are cached in each store. Then, in
one process and in turns, models with a frozen compressor are trained on pixels and on latents: with one batch that
stays in memory (the step alone) and through the loaders. The gain is the ratio of the two in the same round. The table
is printed; benchmarks/results gets latents-BACKEND.json and .png.
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from common import MEMORY_SETTINGS, Stopwatch, add_data_argument, noise_photos, settings_of, timed
from matplotlib.figure import Figure

from keras_ci2p import CI2PViT, Compressor, utils
from keras_ci2p.backend import environment
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data import CROP_AND_FLIP, image_folder, scan_folder
from keras_ci2p.data.latent_cache import STORES
from keras_ci2p.data.latent_loader import LatentRecords, latent_folder
from keras_ci2p.training.cache_latents import cache_latents
from keras_ci2p.training.optim import FusedAdamW
from keras_ci2p.training.recipes import LatentCacheConfig

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared"
VIEWS = 2

# Multiplications of a training step at 256 px with the compressor and without: its forward pass, and three times that
# of the rest. What a gain can reach, and what it should.
WORK = {"tiny": (2.8, 2.3), "base": (1.16, 1.08)}


def main():
    args = parse()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        if args.small:
            photos = noise_photos(work / "photos")
            compressor = Compressor("bmshj2018-factorized", quality=None, channels=(8, 12))
        else:
            photos = some_photos(args.data, work / "photos", args.count)
            compressor = read_compressor(args.compressor)
        manifest = scan_folder(photos)
        caches, stores = {}, {}
        for store in STORES:
            caches[store], stores[store] = measure_store(manifest, compressor, store, work / store, args)
            print(f"{store}: {stores[store]}", flush=True)
        models = {}
        for variant in args.variants:
            models[variant] = measure_training(variant, manifest, compressor, caches[args.store], args)
        loaders = measure_loaders(manifest, caches, args)
    settings = {"settings": settings_of(args), **MEMORY_SETTINGS}
    result = {**settings, **environment(), "stores": stores, "loaders": loaders, "training": models}
    print_tables(result)
    name = f"latents-{result['backend']}"
    args.out.mkdir(parents=True, exist_ok=True)
    utils.write_json(args.out / f"{name}.json", result)
    plot(args.out / f"{name}.png", result)
    print(f"written: {args.out / name}.json, .png")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument("--compressor", default=str(SHARED / "weights/bmshj2018-factorized-5-animals.pth.tar"))
    parser.add_argument("--count", type=int, default=400, help="photos to cache")
    parser.add_argument("--variants", nargs="+", default=["tiny", "base"])
    parser.add_argument("--store", choices=STORES, default="float16", help="to train on")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.variants, args.image_size, args.batch_size, args.steps, args.rounds = ["tiny"], 64, 4, 2, 2
    return args


def some_photos(source, root, count):
    """A folder of `count` training photos, each class alike."""
    if not source.is_dir():
        sys.exit(f"There is no folder {source}: give a folder of photos by --data.")
    train = source / "train"
    classes = sorted(path for path in (train if train.is_dir() else source).iterdir() if path.is_dir())
    for folder in classes:
        (root / folder.name).mkdir(parents=True)
        photos = sorted(path for path in folder.iterdir() if path.is_file())
        for photo in random.Random(0).sample(photos, min(len(photos), -(-count // len(classes)))):
            shutil.copy(photo, root / folder.name)
    return root


def measure_store(manifest, compressor, store, out, args):
    """`(cache, dict)` of a new cache."""
    settings = LatentCacheConfig(VIEWS, args.image_size, CROP_AND_FLIP, store, batch_size=args.batch_size)
    began = time.perf_counter()
    cache = cache_latents(manifest, out, compressor, settings, verbose=0)
    seconds = time.perf_counter() - began
    records = LatentRecords(cache, "train")
    order = random.Random(0).sample(range(len(records)), len(records))
    reading = statistics.median(timed(lambda: [records[number] for number in order]) for _ in range(args.rounds))
    total = len(records) + len(LatentRecords(cache, "val"))
    return cache, {
        "latents": total,
        "bytes_per_latent": round(cache.num_bytes / total),
        "float32_bytes": 4 * int(np.prod(cache.latent_shape)),
        "reads_per_second_one_thread": round(len(order) / reading),
        # With the start of the encoder, which is compiled on some backends.
        "cached_per_second": round(total / seconds, 1),
    }


def measure_loaders(manifest, caches, args):
    """Images a second that the loaders give, without a model."""
    datasets = {"pixels": pixels(manifest, args), **{store: latents(cache, args) for store, cache in caches.items()}}
    speeds = {name: [] for name in datasets}
    for _ in range(args.rounds):
        for name, dataset in datasets.items():
            images = dataset.steps_per_epoch * dataset.batch_size
            speeds[name].append(images / timed(lambda dataset=dataset: list(dataset)))
    return {name: round(statistics.median(values), 1) for name, values in speeds.items()}


def measure_training(variant, manifest, compressor, cache, args):
    """Images a second of `fit` on pixels and latents, in memory and loaded, and the gains; one list entry per round."""
    model = CI2PViT(
        (args.image_size, args.image_size, 3),
        num_classes=len(manifest.class_names),
        variant=variant,
        compressor=compressor,
    )
    cache.check_compressor(model.compressor)
    learners = {"pixels": model, "latents": model.latent_classifier}
    for learner in learners.values():
        # The rate of learning makes no difference here.
        learner.compile(FusedAdamW(1e-6), keras.losses.CategoricalCrossentropy(from_logits=True))
    datasets = {"pixels": pixels(manifest, args), "latents": latents(cache, args)}
    speeds = {f"{kind}_{place}": [] for place in ("in_memory", "loaded") for kind in learners}
    for round_number in range(args.rounds + 1):
        for place in ("in_memory", "loaded"):
            for kind, learner in learners.items():
                dataset = datasets[kind].repeat(round_number)
                batches = dataset if place == "loaded" else again_and_again(next(iter(dataset)))
                seconds = epoch_seconds(learner, batches, args.steps)
                # The first round compiles.
                if round_number:
                    speeds[f"{kind}_{place}"].append(args.steps * datasets[kind].batch_size / seconds)
                print(f"{variant}, round {round_number}, {kind} {place}: {seconds:.1f} s", flush=True)
    gains = {
        place: [b / a for a, b in zip(speeds[f"pixels_{place}"], speeds[f"latents_{place}"], strict=True)]
        for place in ("in_memory", "loaded")
    }
    return {
        "images_per_second": {name: round(statistics.median(values), 2) for name, values in speeds.items()},
        "gain": {
            place: {"median": round(statistics.median(g), 3), "least": round(min(g), 3), "most": round(max(g), 3)}
            for place, g in gains.items()
        },
        "work_ratio_at_256": WORK.get(variant, (None, None))[0],
        "gain_to_reach": WORK.get(variant, (None, None))[1],
    }


def pixels(manifest, args):
    return image_folder(manifest, image_size=args.image_size, batch_size=args.batch_size, augment=CROP_AND_FLIP)


def latents(cache, args):
    return latent_folder(cache, batch_size=args.batch_size)


def again_and_again(batch):
    while True:
        yield batch


def epoch_seconds(learner, batches, steps):
    """Seconds from the beginning of an epoch to its end, when its loss is known."""
    stopwatch = Stopwatch()
    learner.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[stopwatch])
    return stopwatch.seconds


def print_tables(result):
    print(f"\n{result['backend']}, {result['cores']} cores, {result['settings']['image_size']} px")
    print(f"\n{'store':<10}{'bytes/latent':>14}{'of float32':>12}{'reads/s':>10}{'cached/s':>10}")
    for name, row in result["stores"].items():
        share = f"{100 * row['bytes_per_latent'] / row['float32_bytes']:.1f} %"
        print(
            f"{name:<10}{row['bytes_per_latent']:>14,}{share:>12}{row['reads_per_second_one_thread']:>10,}"
            f"{row['cached_per_second']:>10}"
        )
    print("\nloaders alone, images/s: " + ", ".join(f"{name} {speed:,}" for name, speed in result["loaders"].items()))
    print(f"\n{'training':<10}{'':<12}{'pixels/s':>10}{'latents/s':>11}{'gain':>8}{'range':>14}{'to reach':>10}")
    for variant, row in result["training"].items():
        speeds = row["images_per_second"]
        for place, gain in row["gain"].items():
            spread = f"{gain['least']:.2f}..{gain['most']:.2f}"
            print(
                f"{variant:<10}{place:<12}{speeds[f'pixels_{place}']:>10}{speeds[f'latents_{place}']:>11}"
                f"{gain['median']:>8.2f}{spread:>14}{row['gain_to_reach'] or '-':>10}"
            )


def plot(path, result):
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    places = ("in_memory", "loaded")
    bars = [(variant, place) for variant in result["training"] for place in places]
    gains = [result["training"][variant]["gain"][place] for variant, place in bars]
    medians = np.array([gain["median"] for gain in gains])
    spread = [medians - [gain["least"] for gain in gains], [gain["most"] for gain in gains] - medians]
    labels = [f"{variant}\n{place.replace('_', ' ')}" for variant, place in bars]
    left.bar(labels, medians, yerr=np.abs(spread), capsize=4, color=["tab:blue", "tab:cyan"] * len(result["training"]))
    for i, (variant, _) in enumerate(bars):
        if goal := result["training"][variant]["gain_to_reach"]:
            left.plot(
                [i - 0.4, i + 0.4], [goal, goal], color="black", linestyle="--", label="to reach" if i == 0 else None
            )
            left.legend(frameon=False)
    left.axhline(1, color="grey", linewidth=0.8)
    left.legend(frameon=False)
    left.set_ylabel("training speed, latents over pixels")
    stores = result["stores"]
    right.bar(list(stores), [row["bytes_per_latent"] / 1000 for row in stores.values()], color="tab:orange")
    right.set_ylabel("kB for each latent")
    figure.suptitle(f"{result['backend']}, {result['settings']['image_size']} px, {result['cores']} cores")
    with utils.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    main()
