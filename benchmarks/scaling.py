"""How the cost of an image grows with its size, and falls with the batch, beside the count of multiplications.

    KERAS_BACKEND=jax python benchmarks/scaling.py
    KERAS_BACKEND=jax python benchmarks/scaling.py --train
    KERAS_BACKEND=jax python benchmarks/scaling.py --small        # seconds: only that it runs

At each size and batch the contestants take turns. The tables are printed; benchmarks/results gets scaling-BACKEND.json
and .png (with --train scaling_train).
"""

import warnings

import contest
import contestants
from common import timed
from matplotlib.ticker import LogLocator

# On every backend the same.
COMPARED = ("CI2P-ViT base", "CI2P-ViT-ds base", contestants.BASELINE)


def main():
    args = parse()
    # That a random compressor is frozen.
    warnings.simplefilter("ignore")
    args.contestants = args.contestants or list(COMPARED)
    names = contest.chosen(args)
    by_size = {size: measure(names, size, args.batch_at_sizes, args) for size in args.image_sizes}
    by_batch = {batch: measure(names, args.size_at_batches, batch, args) for batch in args.batch_sizes}
    print(f"seconds an image, batches of {args.batch_at_sizes}; in brackets the billions of multiplications")
    print(table("px", by_size))
    print(f"\nseconds an image, {args.size_at_batches} px; in brackets the billions of multiplications")
    print(table("batch", by_batch))
    name = "scaling_train" if args.train else "scaling"
    contest.write(name, args, {"by_size": by_size, "by_batch": by_batch}, plot)


def parse():
    parser = contest.parser(__doc__, rounds=3)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[256, 384, 512, 768, 1024])
    parser.add_argument("--batch-at-sizes", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--size-at-batches", type=int, default=256)
    parser.add_argument("--train", action="store_true", help="training steps in place of predictions")
    args = parser.parse_args()
    if args.small:
        args.image_sizes, args.batch_sizes, args.size_at_batches, args.rounds = [64, 96], [1, 2], 64, 1
    return args


def measure(names, image_size, batch_size, args):
    """`{name: {"macs": of an image, "seconds": spread of an image}}`"""
    # Of the point before.
    contest.release_free_memory()
    images, labels = contestants.batch(image_size, batch_size)
    rows, actions = {}, {}
    for name in names:
        contestant = contest.make(name, args, image_size)

        def act(contestant=contestant):
            if args.train:
                return contestant.train(images, labels, 1, untimed=1)
            return timed(lambda: contestant.predict(images))

        # Compiles.
        act()
        count = contestant.macs
        rows[name] = {"macs": count and (count.training if args.train else count.macs)}
        actions[name] = act
    print(f"{image_size} px, batches of {batch_size}")
    for name, seconds in contest.alternate(actions, args.rounds).items():
        rows[name]["seconds"] = contest.spread([value / batch_size for value in seconds])
    return rows


def table(label, points):
    def cell(row):
        work = "" if row["macs"] is None else f" ({row['macs'] / 1e9:.1f})"
        return f"{row['seconds']['median']:.3g}{work}"

    names = list(next(iter(points.values())))
    return contest.markdown(
        [label, *names], [(at, *(cell(rows[name]) for name in names)) for at, rows in points.items()]
    )


def plot(figure, result):
    sizes, batches = figure.subplots(1, 2)
    lines(sizes, result["by_size"], "px")
    lines(batches, result["by_batch"], "images of a batch")
    sizes.set_title("seconds an image; dashed: by multiplications, from ViT-B/16's first", fontsize=11)
    batches.set_title("seconds an image", fontsize=11)
    sizes.legend(frameon=False)


def lines(axes, points, label):
    at = list(points)
    first = points[at[0]].get(contestants.BASELINE)
    for i, name in enumerate(points[at[0]]):
        rows = [point[name] for point in points.values()]
        seconds = [row["seconds"] for row in rows]
        medians = [value["median"] for value in seconds]
        axes.plot(at, medians, marker="o", markersize=4, color=f"C{i}", label=name)
        axes.fill_between(at, [s["least"] for s in seconds], [s["most"] for s in seconds], color=f"C{i}", alpha=0.2)
        if first and rows[0]["macs"]:
            unit = first["seconds"]["median"] / first["macs"]
            axes.plot(at, [unit * row["macs"] for row in rows], linestyle="--", color=f"C{i}", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(at, [str(value) for value in at])
    axes.minorticks_off()
    # By itself a logarithmic axis names whole powers of ten only.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
