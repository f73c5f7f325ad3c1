"""What a teacher gains: CI2P-ViT and ViT, each with and without one, by the same recipe for the same epochs.

    KERAS_BACKEND=torch python benchmarks/teacher.py --data PHOTOS --runs RUNS             # the four, hours
    KERAS_BACKEND=torch python benchmarks/teacher.py --data PHOTOS --runs RUNS --only ci2p-teacher    # one of them
    KERAS_BACKEND=torch python benchmarks/teacher.py --data PHOTOS --runs RUNS --photos 1000 --seeds 0 1 2 --epochs 60
    KERAS_BACKEND=torch python benchmarks/teacher.py --small            # seconds, noise for photos: only that it runs

Whatever ends it, the same command goes on after the last whole epoch; what is finished is not trained again. CI2P-ViT
learns from --views stored views of each photo, ViT sees new ones in every epoch (as does CI2P-ViT with --views 0).
With --photos N the first N of the training photos in a seeded order are learned, of each class its share, by CI2P-ViT
alone unless --only names others; the teacher's probe is fitted to these N as well. All are measured on the same
validation photos. The table is printed; benchmarks/results gets teacher-BACKEND.json and .png (with --photos
teacher_N).
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path

import contest
import numpy as np
from common import add_data_argument, noise_photos

from keras_ci2p import ViT, utils
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data import open_data, scan_folder
from keras_ci2p.names import TEACHERS
from keras_ci2p.training import RECIPES, LatentCacheConfig, TrainConfig, cache_latents, train
from keras_ci2p.training.configs import DEFAULT_COMPRESSOR, NO_TEACHER
from keras_ci2p.training.distillation import load_teacher

KINDS = {"ci2p": "CI2P-ViT", "ci2p-teacher": "CI2P-ViT, teacher", "vit": "ViT", "vit-teacher": "ViT, teacher"}
# Of the order in which --photos takes them; the runs' own seeds change all else.
PHOTOS_SEED = 0


def main():
    args = parse()
    if not args.small:
        return run(args)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        args.data = noise_photos(work / "photos")
        args.runs = args.runs or work / "runs"
        args.teacher = str(args.runs / "teacher")
        if not Path(args.teacher).is_dir():
            # Knows nothing, and has no feature maps.
            names = list(scan_folder(args.data).class_names)
            ViT((32, 32, 3), variant="tiny", num_classes=2, class_names=names).save_to_preset(args.teacher)
        return run(args)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument("--runs", type=Path, help="where the runs and the latents are kept; default: ./teacher_runs")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, help="which to train now; the report has all that are there"
    )
    parser.add_argument("--photos", type=int, metavar="N", help="learn from so few; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each; default: 0")
    parser.add_argument("--teacher", default=TEACHERS[0], help="as in `keras-ci2p train`; default: %(default)s")
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--views", type=int, default=8, help="stored for CI2P-ViT; 0: new ones in every epoch")
    parser.add_argument("--latents", type=Path, help="a finished latent cache of these photos, with their teacher")
    parser.add_argument("--recipe", default="quick", choices=RECIPES)
    parser.add_argument("--set", action="append", default=["augmentation.crop_area=0.2,1"], metavar="NAME=VALUE")
    parser.add_argument("--matmul-precision", help="as in `keras-ci2p train`")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.image_size, args.epochs, args.batch_size, args.views = 32, 2, 8, 1
    elif args.photos and args.teacher not in TEACHERS:
        parser.error(f"with --photos the teacher is fitted to these photos: one of {', '.join(TEACHERS)}")
    if args.photos and args.latents:
        parser.error("--latents are of all photos; received also --photos")
    args.runs = args.runs or (None if args.small else Path("teacher_runs"))
    return args


def run(args):
    directory = args.runs / (f"photos{args.photos}" if args.photos else "all")
    wanted = args.only or [kind for kind in KINDS if not (args.photos and kind.startswith("vit"))]
    try:
        for seed in args.seeds:
            for kind in wanted:
                train_one(kind, seed, directory, args)
    finally:
        report(directory, args)


def train_one(kind, seed, directory, args):
    run_dir = directory / f"{kind}-{seed}"
    if len(history_of(run_dir)) >= args.epochs:
        return
    print(f"{run_dir} ...", flush=True)
    model, _, teacher = kind.partition("-")
    data = few_photos(args.data, directory / "photos", args.photos) if args.photos else args.data
    recipe = RECIPES[args.recipe].override(
        {
            "image_size": args.image_size,
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            **dict(pair.split("=", 1) for pair in args.set),
        }
    )
    if model == "ci2p" and (args.latents or args.views):
        # Those with the teacher's targets serve both.
        data = args.latents or latents(data, directory / "latents", recipe, args)
    settings = TrainConfig(
        str(data),
        model=model,
        variant=args.variant,
        recipe=recipe,
        seed=seed,
        teacher=args.teacher if teacher else NO_TEACHER,
        dtype=args.dtype,
        matmul_precision=args.matmul_precision,
    )
    train(settings, run_dir, resume=True, verbose=2)


def few_photos(data, folder, count):
    """A folder that holds links to the first `count` training photos in a seeded order, and to all of validation."""
    if folder.is_dir():
        return folder
    manifest = open_data(data)
    train_photos, val_photos = manifest.split("train"), manifest.split("val")
    order = np.random.default_rng(PHOTOS_SEED).permutation(len(train_photos))
    chosen, counts = [], shares(list(train_photos.counts().values()), count)
    for number in order:
        label = train_photos.labels[number]
        if counts[label]:
            counts[label] -= 1
            chosen.append(number)
    with utils.atomic_directory(folder) as temporary:
        for split, photos in (("train", train_photos.subset(sorted(chosen))), ("val", val_photos)):
            for number, (file, label) in enumerate(zip(photos.files, photos.labels, strict=True)):
                link = temporary / split / photos.class_names[label] / f"{number:06}{Path(file).suffix}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(photos.root, file).resolve())
    return folder


def shares(counts, total):
    """Integers proportional to `counts` whose sum is `total`, by the largest remainders; at least 1 each."""
    exact = np.array(counts) * min(total, sum(counts)) / sum(counts)
    whole = np.maximum(exact.astype(int), 1)
    for number in np.argsort(whole - exact)[: max(0, min(total, sum(counts)) - whole.sum())]:
        whole[number] += 1
    return whole.tolist()


def latents(data, out, recipe, args):
    photos = open_data(data)
    settings = LatentCacheConfig(views=args.views, image_size=args.image_size, augmentation=recipe.augmentation)
    teacher = load_teacher(args.teacher, photos)
    cache_latents(photos, out, read_compressor(DEFAULT_COMPRESSOR), settings, resume=True, verbose=2, teacher=teacher)
    return out


def history_of(run_dir):
    """Rows of `history.csv` as numbers; empty before the first epoch."""
    path = run_dir / "history.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def report(directory, args):
    """Writes what all runs have reached so far."""
    runs = {}
    for run_dir in sorted(directory.glob("*-*/")):
        kind, _, seed = run_dir.name.rpartition("-")
        history = history_of(run_dir)
        if kind not in KINDS or not history:
            continue
        # Runs of 0.1.0 call it config.json.
        record = "run.json" if (run_dir / "run.json").is_file() else "config.json"
        config, preset = (
            json.loads((run_dir / name).read_text(encoding="utf-8")) for name in (record, "best/metadata.json")
        )
        best = max(history, key=lambda row: row["val_top1"])
        runs[run_dir.name] = {
            "kind": kind,
            "seed": int(seed),
            "photos": preset["training"]["train_photos"],
            "views": config["data"].get("views"),
            "teacher_top1": (config["data"].get("teacher") or {}).get("val_top1"),
            "epochs": len(history),
            "of_epochs": config["settings"]["recipe"]["epochs"],
            "best_epoch": int(best["epoch"]),
            "top1": best["val_top1"],
            "hours": sum(row["seconds"] for row in history) / 3600,
            "top1_by_epoch": [row["val_top1"] for row in history],
        }
    if not runs:
        return
    cells = [
        (
            name,
            f"{100 * row['top1']:.2f} %",
            row["best_epoch"],
            f"{row['epochs']} of {row['of_epochs']}",
            f"{row['hours']:.2f}",
        )
        for name, row in runs.items()
    ]
    print(contest.markdown(["run", "best top-1", "in epoch", "epochs", "hours"], cells))
    for kind, values in by_kind(runs).items():
        if len(values) > 1:
            tops = [100 * row["top1"] for row in values]
            print(f"{KINDS[kind]}: mean of {len(tops)} seeds {np.mean(tops):.2f} % ({min(tops):.2f}..{max(tops):.2f})")
    contest.write(f"teacher_{args.photos}" if args.photos else "teacher", args, {"runs": runs}, plot)


def by_kind(runs):
    found = {}
    for row in runs.values():
        found.setdefault(row["kind"], []).append(row)
    return found


def plot(figure, result):
    axes = figure.subplots()
    for kind, rows in by_kind(result["runs"]).items():
        colour = "C0" if kind.startswith("ci2p") else "C1"
        style = "-" if kind.endswith("teacher") else "--"
        for number, row in enumerate(rows):
            values = [100 * value for value in row["top1_by_epoch"]]
            label = f"{KINDS[kind]}: {100 * np.mean([r['top1'] for r in rows]):.1f} %" if number == 0 else None
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, style, color=colour, marker="o", markersize=3, linewidth=1.5, label=label)
    teachers = {row["teacher_top1"] for row in result["runs"].values() if row["teacher_top1"] is not None}
    for top1 in teachers:
        axes.axhline(100 * top1, color="0.5", linewidth=1, linestyle=":", label=f"the teacher: {100 * top1:.1f} %")
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation top-1 (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    main()
