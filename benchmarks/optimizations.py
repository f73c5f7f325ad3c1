"""What each optimisation gains: training steps of CI2P-ViT base with it and without.

    KERAS_BACKEND=jax python benchmarks/optimizations.py
    KERAS_BACKEND=jax python benchmarks/optimizations.py --small        # seconds: only that it runs

In each round each case has a process of its own, and each round begins with another case. Ratios are those of the same
round. The table is printed; benchmarks/results gets optimizations-BACKEND.json and .png.
"""

import os
import subprocess
import sys
import warnings

import contest
import contestants
import keras
from common import KEEPS_FREED_MEMORY

from keras_ci2p import backend as kernels
from keras_ci2p.backend import common

CONTESTANT = "CI2P-ViT base"
AS_IT_IS = "as it is"
# What `training.keep_freed_memory` leaves alone.
WITHOUT_MEMORY = "freed memory goes back to the system"
WITHOUT_FUSED_ADAMW = "AdamW of Keras"
WITHOUT_FREEZING = "gradients of the compressor"
HUGE_PAGES = "huge pages, as the environment may ask for"
WITHOUT_TORCH = "normalisation, products and convolutions of Keras"
WITHOUT_JAX_CPU = "products and depthwise convolutions of Keras"
CASES = (AS_IT_IS, WITHOUT_MEMORY, WITHOUT_FUSED_ADAMW, WITHOUT_FREEZING, HUGE_PAGES, WITHOUT_TORCH, WITHOUT_JAX_CPU)
# The others are on all.
ONLY_ON = {WITHOUT_TORCH: "torch", WITHOUT_JAX_CPU: "jax"}
TUNABLES = {WITHOUT_MEMORY: "", HUGE_PAGES: "glibc.malloc.hugetlb=1"}


def main():
    args = parse()
    # That a random compressor is frozen.
    warnings.simplefilter("ignore")
    if args.case:
        print(measure(args.case, args))
        return
    backend = keras.backend.backend()
    cases = [case for case in CASES if ONLY_ON.get(case, backend) == backend]
    if not KEEPS_FREED_MEMORY:
        # As it does as it is.
        cases.remove(WITHOUT_MEMORY)
    seconds = contest.alternate({case: lambda case=case: in_own_process(case) for case in cases}, args.rounds)
    rows = {}
    for case in cases:
        pairs = zip(seconds[case], seconds[AS_IT_IS], strict=True)
        rows[case] = {
            "seconds": contest.spread(seconds[case]),
            "of_as_it_is": contest.spread([a / b for a, b in pairs]),
        }
    print(table(rows))
    contest.write("optimizations", args, {"cases": rows}, plot)


def parse():
    parser = contest.parser(__doc__, rounds=3)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--case", choices=CASES, help="only this one, in this process: seconds of a step")
    args = parser.parse_args()
    if args.small:
        args.image_size, args.batch_size, args.steps, args.rounds = 64, 2, 1, 1
    return args


def in_own_process(case):
    """Seconds of a step."""
    environment = {**os.environ, "GLIBC_TUNABLES": TUNABLES[case]} if case in TUNABLES else os.environ
    command = [sys.executable, *sys.argv, "--case", case]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(f"{case}: {process.stderr[-2000:]}")
    return float(process.stdout.splitlines()[-1])


def measure(case, args):
    if case in ONLY_ON:
        for name in ("linear", "pointwise_conv2d", "conv2d", "depthwise_conv2d", "batch_norm"):
            setattr(kernels, name, getattr(common, name))
    contestant = contest.make(CONTESTANT, args, args.image_size)
    if case == WITHOUT_FREEZING:
        contestant.compile(freeze_compressor=False)
    if case == WITHOUT_FUSED_ADAMW:
        contestant.compile(optimizer=keras.optimizers.AdamW)
    images, labels = contestants.batch(args.image_size, args.batch_size)
    # Compiles, and fills what stays.
    contestant.train(images, labels, 2)
    return contestant.train(images, labels, args.steps, untimed=1) / args.steps


def table(rows):
    def lines():
        for case, row in rows.items():
            yield case, contest.within(row["seconds"], ".3g"), contest.within(row["of_as_it_is"], ".2f")

    return contest.markdown(("case", "seconds a step", "times as long"), list(lines()))


def plot(figure, result):
    contest.bars(
        figure.subplots(), {case: row["seconds"] for case, row in result["cases"].items()}, "seconds a training step"
    )


if __name__ == "__main__":
    main()
