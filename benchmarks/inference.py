"""What a prediction costs: CI2P-ViT against ViT-B/16, and on torch against timm's and hand-written PyTorch.

    KERAS_BACKEND=jax python benchmarks/inference.py
    KERAS_BACKEND=torch python benchmarks/inference.py --small        # seconds: only that it runs

As `train_step.py`, for each batch size. The table is printed; benchmarks/results gets inference-BACKEND.json and .png.
"""

import json

import contest
import contestants
from common import timed


def main():
    args = parse()
    if args.memory_of:
        name, _, batch_size = args.memory_of.rpartition(":")
        images, _ = contestants.batch(args.image_size, int(batch_size))
        row = contest.measure_memory(
            lambda: contest.make(name, args, args.image_size),
            lambda contestant: contestant.predict(images),
            training=False,
        )
        print(json.dumps(row))
        return

    names = contest.chosen(args)
    # First: later this process holds a GPU's memory.
    cases = [] if args.no_memory else [f"{name}:{batch_size}" for batch_size in args.batch_sizes for name in names]
    memory = {case: contest.memory_in_own_process(case) for case in cases}
    made = {name: contest.make(name, args, args.image_size) for name in names}
    parameters = {name: contestant.parameters for name, contestant in made.items()}
    by_batch = {batch_size: measure(made, batch_size, args) for batch_size in args.batch_sizes}
    for batch_size, rows in by_batch.items():
        for name, row in rows.items():
            row["memory"] = memory.get(f"{name}:{batch_size}")
    print(table(parameters, by_batch))
    contest.write("inference", args, {"parameters": parameters, "batch_sizes": by_batch}, plot)


def parse():
    parser = contest.parser(__doc__, rounds=7)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, default=32, help="of a contestant in a round, at least")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory")
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_sizes, args.images, args.rounds = 64, [1, 2], 2, 2
    return args


def measure(made, batch_size, args):
    """A row for each contestant."""
    images, _ = contestants.batch(args.image_size, batch_size)
    calls = -(-args.images // batch_size)
    rows, actions = {}, {}
    for name, contestant in made.items():

        def predict(contestant=contestant):
            for _ in range(calls):
                contestant.predict(images)

        first = timed(lambda contestant=contestant: contestant.predict(images))
        rows[name] = {"macs": contestant.macs and contestant.macs.macs, "first_prediction": first}
        actions[name] = lambda predict=predict: timed(predict)
    # Memory and caches are settled only after each has had a turn.
    for action in actions.values():
        action()
    seconds = contest.alternate(actions, args.rounds)
    for name, row in rows.items():
        row["images_per_second"] = contest.spread([calls * batch_size / value for value in seconds[name]])
        row["seconds"] = seconds[name]
        if contestants.BASELINE in rows:
            pairs = zip(seconds[contestants.BASELINE], seconds[name], strict=True)
            row["times_as_fast_as_vit"] = contest.spread([vit / own for vit, own in pairs])
            row["less_work_than_vit"] = row["macs"] and rows[contestants.BASELINE]["macs"] / row["macs"]
    return rows


def table(parameters, by_batch):
    def lines():
        for batch_size, rows in by_batch.items():
            for name, row in rows.items():
                speed, memory = row["images_per_second"], row["memory"]
                ratio, work = row.get("times_as_fast_as_vit"), row.get("less_work_than_vit")
                yield (
                    name,
                    batch_size,
                    f"{parameters[name] / 1e6:.1f} M",
                    f"{row['first_prediction']:.1f} s",
                    contest.within(speed, ".3g"),
                    contest.within(ratio, ".2f"),
                    "-" if work is None else f"{work:.2f}",
                    "-" if memory is None else f"{memory['peak'] / 1e9:.2f} GB",
                )

    header = ("contestant", "batch", "parameters", "first", "images/s", "times ViT-B/16", "by work", "peak memory")
    return contest.markdown(header, list(lines()))


def plot(figure, result):
    by_batch = result["batch_sizes"]
    panels = figure.subplots(1, len(by_batch), sharey=True, squeeze=False)[0]
    for axes, (batch_size, rows) in zip(panels, by_batch.items(), strict=True):
        speeds = {name: row["images_per_second"] for name, row in rows.items()}
        contest.bars(axes, speeds, f"images a second, batches of {batch_size}")


if __name__ == "__main__":
    main()
