"""What a training step costs: CI2P-ViT against ViT-B/16, and on torch against timm's and hand-written PyTorch.

    KERAS_BACKEND=jax python benchmarks/train_step.py
    KERAS_BACKEND=torch python benchmarks/train_step.py --dtype mixed_bfloat16 --compiled --batch-size 128 --steps 20
    KERAS_BACKEND=torch python benchmarks/train_step.py --small        # seconds: only that it runs

All contestants are in one process; in each round each takes some steps on one batch that stays in memory, after one
that is not timed, and each round begins with another. Ratios are those of the same round. Memory is measured in a
process for each. The table is printed; benchmarks/results gets train_step-BACKEND.json and .png.
"""

import json
import warnings

import contest
import contestants
from common import timed


def main():
    args = parse()
    # That a random compressor is frozen.
    warnings.simplefilter("ignore")
    images, labels = contestants.batch(args.image_size, args.batch_size)

    def act(contestant):
        return contestant.train(images, labels, args.steps, untimed=1)

    if args.memory_of:
        row = contest.measure_memory(lambda: contest.make(args.memory_of, args, args.image_size), act, training=True)
        print(json.dumps(row))
        return

    names = contest.chosen(args)
    # First: later this process holds a GPU's memory.
    memory = {} if args.no_memory else {name: contest.memory_in_own_process(name) for name in names}
    rows, actions = {}, {}
    for name in names:
        contestant = contest.make(name, args, args.image_size)
        first = timed(lambda contestant=contestant: contestant.train(images, labels, 1))
        print(f"{name}, first step: {first:.1f} s", flush=True)
        macs = contestant.macs and contestant.macs.training
        rows[name] = {
            "parameters": contestant.parameters,
            "training_macs": macs,
            "first_step": first,
            "memory": memory.get(name),
        }
        actions[name] = lambda contestant=contestant: act(contestant)
    # Memory and caches are settled only after each has had a turn.
    for action in actions.values():
        action()
    seconds = contest.alternate(actions, args.rounds)
    images_a_round = args.steps * args.batch_size
    for name, row in rows.items():
        row["images_per_second"] = contest.spread([images_a_round / value for value in seconds[name]])
        row["seconds"] = seconds[name]
    for name, row in rows.items():
        if contestants.BASELINE in rows:
            pairs = zip(seconds[contestants.BASELINE], seconds[name], strict=True)
            row["times_as_fast_as_vit"] = contest.spread([vit / own for vit, own in pairs])
            of_vit = rows[contestants.BASELINE]["training_macs"]
            row["less_work_than_vit"] = row["training_macs"] and of_vit / row["training_macs"]
    print(table(rows))
    contest.write("train_step", args, {"contestants": rows}, plot)


def parse():
    parser = contest.parser(__doc__, rounds=5)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of a contestant in a round")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory")
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_size, args.steps, args.rounds = 64, 2, 1, 2
    return args


def table(rows):
    vit = rows.get(contestants.BASELINE, {})

    def share(row, key):
        if row["memory"] is None or not vit:
            return "-"
        return f"{row['memory'][key] / vit['memory'][key]:.2f}"

    def lines():
        for name, row in rows.items():
            speed, memory = row["images_per_second"], row["memory"]
            ratio, work = row.get("times_as_fast_as_vit"), row.get("less_work_than_vit")
            yield (
                name,
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['first_step']:.1f} s",
                contest.within(speed, ".3g"),
                contest.within(ratio, ".2f"),
                "-" if work is None else f"{work:.2f}",
                "-" if memory is None else f"{memory['peak'] / 1e9:.2f} GB",
                share(row, "peak"),
                share(row, "rest"),
            )

    header = ("contestant", "parameters", "first step", "images/s", "times ViT-B/16", "by work", "peak memory")
    return contest.markdown([*header, "of ViT-B/16's", "of ViT-B/16's, without weights and imports"], list(lines()))


def plot(figure, result):
    rows = result["contestants"]
    speed, memory = figure.subplots(1, 2, sharey=True)
    contest.bars(speed, {name: row["images_per_second"] for name, row in rows.items()}, "images a second, training")
    if all(row["memory"] for row in rows.values()):
        left = [0.0] * len(rows)
        for key, color in (("imported", "0.85"), ("resident", "0.6"), ("rest", "tab:blue")):
            widths = [row["memory"][key] / 1e9 for row in rows.values()]
            memory.barh(list(rows), widths, left=left, color=color, label=LABELS[key])
            left = [a + b for a, b in zip(left, widths, strict=True)]
        figure.legend(*memory.get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower right")
    memory.set_title("peak memory, GB", fontsize=11)
    memory.spines[["top", "right"]].set_visible(False)


LABELS = {"imported": "before there is a model", "resident": "weights, gradients, optimizer", "rest": "the rest"}

if __name__ == "__main__":
    main()
