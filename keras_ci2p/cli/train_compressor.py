"""`keras-ci2p train-compressor`"""

import argparse
import sys

DESCRIPTION = """\
Train a learned image compressor on your own kind of pictures, for CompressAI's lambda * 255^2 * MSE + bits per pixel.

A fifth of the pictures is kept aside, chosen by content, the same that `train` keeps aside. RUN gets best/ and last/
(presets), report.json, reconstructions.png, history.csv, curves.png, config.json and checkpoints/. After Ctrl-C or a
crash, the same command with --resume goes on after the last whole epoch. RUN is then a --compressor for `train` and
`cache`."""


def add_parser(commands):
    parser = commands.add_parser(
        "train-compressor",
        help="train a compressor on a folder of pictures",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder of pictures, with or without subfolders or with folders train and val, or tfds:NAME",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN")

    def number(flag, text, metavar="N", type=int):
        parser.add_argument(flag, type=type, metavar=metavar, default=argparse.SUPPRESS, help=text)

    parser.add_argument(
        "--architecture",
        default=argparse.SUPPRESS,
        choices=("bmshj2018-factorized", "bmshj2018-factorized-relu"),
        help="default: bmshj2018-factorized",
    )
    number("--quality", "1..8, which sets lambda and the channels; default: 5")
    number("--lmbda", "weight of the squared error in place of the quality's", "X", float)
    number("--steps", "default: 20000")
    number("--steps-per-epoch", "between two measurements and checkpoints; default: 500")
    number("--crop-size", "height and width of the random crops, a multiple of 16; default: 256")
    number("--batch-size", "default: 16")
    number("--lr", "learning rate at the beginning; default: 1e-4", "X", float)
    number("--clip-norm", "largest norm of the gradients; default: 1", "X", float)
    number("--val-pictures", "held-out pictures to measure on; default: 100")
    number("--val-size", "height and width of their central crops; default: 256")
    number("--seed", "default: 0")
    number("--workers", "processes that load pictures; default: threads instead")
    parser.add_argument(
        "--init", default=argparse.SUPPRESS, metavar="NAME|PATH", help="compressor to begin with, as in train"
    )
    parser.add_argument("--dtype", default=argparse.SUPPRESS, metavar="POLICY", help="default: float32")
    parser.add_argument("--deterministic", action="store_true", help="the same result each time, slower")
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.training.recipes import CompressorSettings
    from keras_ci2p.training.train_compressor import train_compressor

    given = {key: value for key, value in vars(args).items() if key not in ("out", "resume", "run", "on_interrupt")}
    renamed = {"lr": "learning_rate", "workers": "num_workers"}
    settings = CompressorSettings(**{renamed.get(key, key): value for key, value in given.items()})
    args.on_interrupt = f"The whole epochs are kept in {args.out}; the same command with --resume goes on."
    train_compressor(settings, args.out, resume=args.resume, verbose=1 if sys.stdout.isatty() else 2)
