"""How fast photos become batches for training with the paper's augmentation: by step, against timm, over cores.

    KERAS_BACKEND=torch python benchmarks/input.py --data ../shared/data/animals10/raw-img

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
import itertools
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps, features

from keras_ci2p import files
from keras_ci2p.data import Augmentation, image_folder, load_image, scan_folder
from keras_ci2p.data.augmentation import draw
from keras_ci2p.data.mixing import draw_mix, mix
from keras_ci2p.data.noise import normal_pixels
from keras_ci2p.data.operations import FILL, FUNCTIONS
from keras_ci2p.data.transforms import GRAY_WEIGHTS, REDUCING_GAP, apply_draw, augment

AUGMENTATION = Augmentation()
BATCH = 32
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main(arguments=None):
    args = parse(arguments)
    paths = choose(args.data, args.photos)
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
    report(result)
    out = Path(args.out)
    files.write_json(out / "input.json", result)
    plot(out / "input.png", result)


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", default="../shared/data/animals10/raw-img", help="folder of folders of photos")
    parser.add_argument("--photos", type=int, default=1000, help="how many of them, chosen at random")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, nargs="+", default=powers_of_two(available_cores()))
    parser.add_argument("--out", default="benchmarks/results")
    return parser.parse_args(arguments)


def powers_of_two(most):
    return [2**i for i in range(int(math.log2(most)) + 1)]


def choose(root, count):
    photos = sorted(path for path in Path(root).glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        sys.exit(f"There are no photos in {root}: give a folder with subfolders of photos by --data.")
    return random.Random(0).sample(photos, min(count, len(photos)))


def warm_up(paths):
    """As in the middle of a training run: the photos in the file cache, and memory that is not given back each time."""
    for path in paths:
        path.read_bytes()
    # glibc keeps freed blocks of up to the size of the largest that was freed, 32 MB at most: a batch.
    np.ones(31 * 2**20, "uint8")


# 1. The steps: those of `keras_ci2p.data.transforms.apply_draw`, one at a time.


def crop(image, drawn, size):
    left, top, width, height = drawn.box
    cropped = image.crop((left, top, left + width, top + height))
    return cropped.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)


def flip(image, drawn, size):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.flip else image


def randaugment(image, drawn, size):
    for name, value in drawn.operations:
        image = FUNCTIONS[name](image) if value is None else FUNCTIONS[name](image, value)
    return image


def grayscale(image, drawn, size):
    return image.convert("L", (*GRAY_WEIGHTS, 0)).convert("RGB") if drawn.grayscale else image


def blur(image, drawn, size):
    return image.filter(ImageFilter.GaussianBlur(drawn.blur)) if drawn.blur else image


def solarize(image, drawn, size):
    return ImageOps.solarize(image, drawn.solarize) if drawn.solarize < 256 else image


def erase(pixels, drawn, rng):
    if drawn.erase is not None:
        top, left, height, width = drawn.erase
        pixels[top : top + height, left : left + width] = normal_pixels(height, width, rng)


def mixed(images, rng):
    labels = np.eye(10, dtype="float32")[rng.integers(0, 10, len(images))]
    return mix(images, labels, draw_mix(0.8, 1.0, len(images), images.shape[1:3], rng))


STEPS = {
    "crop and resize": crop,
    "flip": flip,
    "RandAugment": randaugment,
    "grayscale": grayscale,
    "blur": blur,
    "solarize": solarize,
}


def measure_steps(paths, size, repeats):
    """Microseconds of an average photo by step: `{name: {median, least, most}}`."""
    check_steps(paths[:BATCH], size)
    rows = [time_steps(paths, size, np.random.default_rng(repeat)) for repeat in range(repeats)]
    return {name: spread([row[name] for row in rows]) for name in rows[0]}


def check_steps(paths, size):
    for seed, path in enumerate(paths):
        image = source = load_image(path)
        drawn = draw(AUGMENTATION, (source.height, source.width), size, np.random.default_rng(seed))
        for step in STEPS.values():
            image = step(image, drawn, size)
        pixels = np.array(image)
        erase(pixels, drawn, np.random.default_rng(seed))
        if (apply_draw(source, drawn, size, np.random.default_rng(seed)) != pixels).any():
            sys.exit("The steps of this benchmark are no longer those of `apply_draw`.")


def time_steps(paths, size, rng):
    seconds = {}

    def timed(name, function, *columns):
        began = time.process_time()
        results = [function(*row) for row in zip(*columns, strict=True)]
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
        return results

    # As many at a time as a batch has: more would not stay in the processor's caches.
    for some in in_batches(paths):
        images = timed("decode", load_image, some)
        draws = timed("draw", lambda image: draw(AUGMENTATION, (image.height, image.width), size, rng), images)
        for name, step in STEPS.items():
            images = timed(name, step, images, draws, itertools.repeat(size, len(images)))
        arrays = timed("to array", np.array, images)
        timed("erasing", erase, arrays, draws, itertools.repeat(rng, len(arrays)))
        batches = timed("batch", lambda arrays: np.stack(arrays, dtype="float32"), [arrays])
        timed("Mixup or CutMix", mixed, batches, [rng])
    return {name: 1e6 * total / len(paths) for name, total in seconds.items()}


# 2. Contestants on one core


def ours(paths, size, rng):
    for some in in_batches(paths):
        np.stack([augment(load_image(path), size, rng, AUGMENTATION) for path in some], dtype="float32")


def measure_contestants(paths, size, repeats):
    """Photos a second of one core: `{name: {median, least, most}}`."""
    contestants = {"keras_ci2p": ours, **timm_contestants(size)}
    rates = {name: [] for name in contestants}
    for repeat in range(repeats):
        # Each begins in turn.
        names = list(contestants)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            random.seed(repeat)
            np.random.seed(repeat)
            began = time.process_time()
            contestants[name](paths, size, np.random.default_rng(repeat))
            rates[name].append(len(paths) / (time.process_time() - began))
    return {name: spread(values) for name, values in rates.items()}


def timm_contestants(size):
    """timm's Pillow pipeline with the recipe's steps; and without those that its loader may leave to a GPU."""
    try:
        import torch

        define_torchvision_operators(torch)
        import timm  # noqa: F401
        from torchvision import transforms
    except ImportError as error:
        print(f"Without timm, which is not installed whole ({error}): pip install timm torchvision")
        return {}
    from timm.data import auto_augment
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation

    torch.set_num_threads(1)
    # Pillow 13 refuses to keep no bit, which timm asks of it once in a few thousand photos.
    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **kwargs: posterize(
        image, max(1, bits), **kwargs
    )
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    pictures = [
        RandomResizedCropAndInterpolation(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bicubic"),
        transforms.RandomHorizontalFlip(0.5),
        auto_augment.rand_augment_transform("rand-m9-n2-mstd0.5-inc1", hparams),
        transforms.RandomGrayscale(0.2),
        sometimes(0.1, lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))),
        sometimes(0.2, ImageOps.solarize),
    ]
    erasing = RandomErasing(0.25, min_area=0.02, max_area=1 / 3, min_aspect=0.3, mode="pixel", device="cpu")

    def contestant(steps):
        steps = transforms.Compose(steps)

        def run(paths, size, rng):
            torch.manual_seed(0)
            for some in in_batches(paths):
                torch.stack([steps(Image.open(path).convert("RGB")) for path in some])

        return run

    return {
        "timm": contestant([*pictures, transforms.ToTensor(), erasing]),
        "timm without erasing, uint8": contestant([*pictures, MaybePILToTensor()]),
    }


def define_torchvision_operators(torch):
    """torchvision without its compiled part imports only where somebody has named these."""
    with contextlib.suppress(RuntimeError):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        define_torchvision_operators.kept = library


def sometimes(probability, function):
    return lambda image: function(image) if random.random() < probability else image


# 3. Cores


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
        size_multiple=1,
        **parallel,
    )
    began = time.perf_counter()
    batches = iter(data.repeated())
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


# What the three have in common


def in_batches(paths):
    return [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]


def spread(values):
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def pinned(cores):
    """Threads and processes started meanwhile run on that many cores; where the system cannot, on all."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


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
        "processor": processor(),
        "cores": available_cores(),
        "pinned": hasattr(os, "sched_setaffinity"),
        "torch_threads": 1,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def processor():
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def report(result):
    print(f"{result['photos']} photos, {result['image_size']} px, {result['repeats']} repeats: median (least..most)")
    print("\nmicroseconds of one core for each photo")
    for name, numbers in result["steps_us"].items():
        print(f"  {name:28}{text(numbers)}")
    print(f"  {'sum':28}{sum(numbers['median'] for numbers in result['steps_us'].values()):8.0f}")
    print("\nphotos a second on one core, without Mixup and CutMix")
    for name, numbers in result["one_core"].items():
        print(f"  {name:28}{text(numbers)}")
    print("\nphotos a second of image_folder")
    for kind in ("threads", "workers"):
        for cores, numbers in result["cores"][kind].items():
            print(f"  {kind + ' on ' + cores + (' core' if cores == '1' else ' cores'):28}{text(numbers)}")
    start = result["cores"]["seconds_to_first_batch_of_workers"]
    print(f"  seconds to the first batch of workers: {start['median']:.1f} ({start['least']:.1f}..{start['most']:.1f})")


def text(numbers):
    return f"{numbers['median']:8.0f} ({numbers['least']:.0f}..{numbers['most']:.0f})"


SPREAD = {"elinewidth": 1, "ecolor": "0.25", "capsize": 3}


def plot(path, result):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("Without input.png: pip install matplotlib")
        return
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    steps, one_core, cores = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    bars(steps, result["steps_us"], "µs a photo, one core", "{:.0f}")
    steps.invert_yaxis()
    colors = ["C0" if name == "keras_ci2p" else "0.6" for name in result["one_core"]]
    bars(one_core, result["one_core"], "photos / s, one core", "{:.0f}", colors)
    one_core.invert_yaxis()
    width = 0.38
    for i, kind in enumerate(("threads", "workers")):
        rows = result["cores"][kind]
        places = np.arange(len(rows)) + (i - 0.5) * width
        medians = [numbers["median"] for numbers in rows.values()]
        drawn = cores.bar(places, medians, width, yerr=errors(rows), error_kw=SPREAD, label=kind, color=("C0", "C1")[i])
        cores.bar_label(drawn, fmt="{:.0f}", padding=3, fontsize=9)
    cores.set_xticks(range(len(rows)), list(rows))
    cores.set_xlabel("cores")
    cores.set_title("photos / s, image_folder", fontsize=11)
    cores.margins(y=0.3)
    cores.legend(frameon=False, ncols=2, loc="upper center")
    cores.spines[["top", "right"]].set_visible(False)
    env = result["environment"]
    figure.suptitle(
        f"The paper's augmentation, {result['image_size']} px, {result['photos']} photos; {env['processor']}, "
        f"Pillow {env['pillow']}",
        fontsize=11,
    )
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def bars(axes, rows, title, form, color="C0"):
    medians = [numbers["median"] for numbers in rows.values()]
    drawn = axes.barh(list(rows), medians, xerr=errors(rows), error_kw=SPREAD, color=color)
    axes.bar_label(drawn, fmt=form, padding=6, fontsize=9)
    axes.set_title(title, fontsize=11)
    axes.margins(x=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def errors(rows):
    return np.array([[n["median"] - n["least"], n["most"] - n["median"]] for n in rows.values()]).T


if __name__ == "__main__":
    main()
