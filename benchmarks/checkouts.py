"""Whether a change made anything slower: two checkouts of this repository in turns, in processes of their own.

    git worktree add /tmp/before COMMIT
    KERAS_BACKEND=jax python benchmarks/checkouts.py /tmp/before .
    KERAS_BACKEND=jax python benchmarks/checkouts.py /tmp/before . --small        # seconds: only that it runs

Each round starts a process for each checkout, variant and task, and begins with the other checkout. Ratios are of the
first checkout's seconds to the second's in the same round: above 1, the second is faster. On a machine that does other
work too, `--cpu-time` on a core of its own (`taskset -c 1`) counts what each took of it. The table is printed;
benchmarks/results gets checkouts-BACKEND.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

# Only names that 0.1.0 had, too, and nothing of this folder: this text runs with either checkout.
CODE = """
import json, sys, time
task, variant, size, batch, steps, cpu_time = json.loads(sys.argv[1])
now = time.process_time if cpu_time else time.perf_counter
import keras
after_keras = now()
import keras_ci2p
from keras_ci2p import CI2PViT
imported = now() - after_keras
import warnings
import numpy as np
warnings.simplefilter("ignore")
try:
    from keras_ci2p.training import keep_freed_memory
    keep_freed_memory()
except ImportError:
    pass
def show(seconds):
    print(json.dumps({"file": keras_ci2p.__file__, "seconds": seconds}))
    sys.exit()
if task == "import":
    show(imported)
keras.utils.set_random_seed(0)
model = CI2PViT((size, size, 3), num_classes=10, variant=variant)
rng = np.random.default_rng(0)
images = rng.uniform(0, 255, (batch, size, size, 3)).astype("float32")
labels = np.eye(10, dtype="float32")[rng.integers(0, 10, batch)]
if task == "predict":
    def step(): model.predict_on_batch(images)
else:
    from keras_ci2p.training import FusedAdamW
    model.compile(FusedAdamW(1e-3, weight_decay=0.05), keras.losses.CategoricalCrossentropy(from_logits=True))
    def step(): float(np.asarray(model.train_on_batch(images, labels)).ravel()[0])
for _ in range(2):
    step()
seconds = []
for _ in range(steps):
    start = now()
    step()
    seconds.append(now() - start)
seconds.sort()
show(seconds[len(seconds) // 2])
"""
TASKS = ("import", "predict", "train")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("after", type=Path, help="checkout that must not be slower")
    parser.add_argument("--variants", nargs="+", default=["tiny", "base"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of which the median counts")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, all threads together")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--small", action="store_true", help="seconds, with small images: only that it runs")
    args = parser.parse_args()
    if args.small:
        args.variants, args.rounds, args.image_size, args.batch_size, args.steps = ["tiny"], 1, 64, 2, 1

    checkouts = [args.before.resolve(), args.after.resolve()]
    cases = [("import", "")] + [(task, variant) for variant in args.variants for task in TASKS[1:]]
    seconds = {case: {checkout: [] for checkout in checkouts} for case in cases}
    for number in range(args.rounds):
        for task, variant in cases:
            for checkout in checkouts[:: -1 if number % 2 else 1]:
                value = measure(checkout, task, variant, args)
                seconds[task, variant][checkout].append(value)
                print(f"round {number + 1}, {task} {variant}, {checkout.name}: {value:.3f} s", flush=True)

    rows = [row(task, variant, *by_checkout.values()) for (task, variant), by_checkout in seconds.items()]
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"image_size": args.image_size, "batch_size": args.batch_size, "steps": args.steps}
    settings |= {"commits": [commit(checkout) for checkout in checkouts], "rounds": args.rounds}
    settings["cpu_time"] = args.cpu_time
    result = json.dumps({"backend": backend, "settings": settings, "rows": rows}, indent=2)
    (args.out / f"checkouts-{backend}.json").write_text(result + "\n", encoding="utf-8")

    print("\n| task | before, s | after, s | before / after (least..most) |\n|---|---|---|---|")
    for values in rows:
        ratio = "{median:.2f} ({least:.2f}..{most:.2f})".format(**values["ratio"])
        print(f"| {values['task']} {values['variant']} | {values['before']:.3f} | {values['after']:.3f} | {ratio} |")


def measure(checkout, task, variant, args):
    """Seconds, of a process that imports the package from `checkout`."""
    job = json.dumps([task, variant, args.image_size, args.batch_size, args.steps, args.cpu_time])
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    # Not the directory of this file: the checkout alone is to be found.
    command = [sys.executable, "-c", CODE, job]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr.strip()}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if not Path(answer["file"]).is_relative_to(checkout):
        sys.exit(f"{answer['file']} was imported in place of the package in {checkout}.")
    return answer["seconds"]


def row(task, variant, before, after):
    ratios = sorted(a / b for a, b in zip(before, after, strict=True))
    middle = len(ratios) // 2
    return {
        "task": task,
        "variant": variant,
        "before": sorted(before)[middle],
        "after": sorted(after)[middle],
        "ratio": {"median": ratios[middle], "least": ratios[0], "most": ratios[-1]},
    }


def commit(checkout):
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


if __name__ == "__main__":
    main()
