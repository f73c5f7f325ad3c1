"""`keras-ci2p train`"""

import argparse
import sys
from dataclasses import fields

DESCRIPTION = """\
Train a classifier on a folder of photos, one subfolder per class. A fifth of each class is kept for validation,
chosen by the photos' contents alone.

RUN gets best/ and last/ (presets: the weights of the best validation top-1, and the last), history.csv, curves.png,
config.json and checkpoints/. After Ctrl-C or a crash, the same command with --resume goes on after the last epoch."""


def add_parser(commands):
    parser = commands.add_parser(
        "train",
        help="train a classifier on a folder of photos",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="folder with one subfolder of photos per class")
    parser.add_argument("--out", required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    parser.add_argument("--model", choices=("ci2p", "vit"), default="ci2p", help="default: ci2p")
    parser.add_argument("--variant", default="tiny", help="tiny (default), small, base, large or base_8")
    parser.add_argument(
        "--image-size",
        type=int,
        default=256,
        metavar="N",
        help="height and width, a multiple of 32 (vit: of 16); default: 256",
    )
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="default: 50")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--lr", type=float, default=5e-4, dest="learning_rate", metavar="X", help="peak; default: 5e-4")
    parser.add_argument(
        "--warmup-epochs",
        type=float,
        metavar="X",
        help="rise of the learning rate; default: a tenth of the epochs, at most 5",
    )
    parser.add_argument("--weight-decay", type=float, default=0.05, metavar="X", help="default: 0.05")
    parser.add_argument("--label-smoothing", type=float, default=0.1, metavar="X", help="default: 0.1")
    parser.add_argument("--drop-path-rate", type=float, default=0.1, metavar="X", help="default: 0.1")
    parser.add_argument(
        "--compressor",
        metavar="NAME|PATH",
        help="trained compressor to begin with: a preset, a name such as bmshj2018-factorized-mse-5, or a CompressAI "
        "checkpoint; default: random weights",
    )
    parser.add_argument(
        "--freeze-compressor",
        action=argparse.BooleanOptionalAction,
        help="keep the compressor's weights; default: keep those of --compressor, train random ones",
    )
    parser.add_argument("--dtype", default="float32", help="Keras dtype policy; default: float32")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--deterministic", action="store_true", help="the same result each time, slower (torch: one thread)"
    )
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.training import TrainSettings, train

    if args.warmup_epochs is None:
        args.warmup_epochs = min(5.0, args.epochs / 10)
    if args.freeze_compressor is None:
        args.freeze_compressor = args.compressor is not None
    names = [field.name for field in fields(TrainSettings)]
    settings = TrainSettings(**{name: getattr(args, name) for name in names})
    args.on_interrupt = f"The whole epochs are kept in {args.out}; the same command with --resume goes on."
    _, history = train(settings, args.out, resume=args.resume, verbose=1 if sys.stdout.isatty() else 2)
    best = max(history, key=lambda row: row["val_top1"])
    print(f"Best validation top-1: {100 * best['val_top1']:.2f} % in epoch {best['epoch']}. Model: {args.out}/best")
