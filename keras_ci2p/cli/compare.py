"""`keras-ci2p compare`"""

import argparse

DESCRIPTION = """\
Run the same model on several backends of Keras, each in a process of its own: the same weights, the same augmented
photos, the same steps. Stochastic depth is off, so that nothing is left to chance.

DIR gets comparison.json and comparison.png. A backend that is not installed, or fails, is listed with its reason."""


def add_parser(commands):
    parser = commands.add_parser(
        "compare",
        help="compare Keras's backends on one model",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("torch", "jax", "tensorflow")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help="torch, jax, tensorflow (default: all); the first that works is what the others are compared with",
    )
    parser.add_argument("--model", choices=("ci2p", "ci2p_dual", "vit"), default="ci2p", help="default: ci2p")
    parser.add_argument("--variant", default="base", help="tiny, small, base (default), large or base_8")
    parser.add_argument("--image-size", type=int, default=256, metavar="N", help="default: 256")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of training; default: 10")
    parser.add_argument(
        "--data",
        type=lambda text: None if text == "none" else text,
        metavar="DATA",
        help="folder with one subfolder of photos per class, or tfds:NAME; default: none, synthetic pictures",
    )
    parser.add_argument(
        "--dtype", default="float32", help="Keras dtype policy: float32 (default), mixed_bfloat16, mixed_float16"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="default: comparison")
    parser.set_defaults(run=run)


def run(args):
    from pathlib import Path

    from keras_ci2p.compare import FIGURE, REPORT, CompareSettings, compare, table

    given = {key: value for key, value in vars(args).items() if key not in ("out", "run", "on_interrupt")}
    args.on_interrupt = f"Nothing is written to {args.out}."
    report = compare(CompareSettings(**given), args.out)
    print(table(report))
    if report["reference"] is None:
        return 2
    print(f"written: {Path(args.out) / REPORT}, {Path(args.out) / FIGURE}")
