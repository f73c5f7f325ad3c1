"""`keras-ci2p publish`"""

import argparse
import sys
from pathlib import Path

from keras_ci2p.cli.model import HELP

DESCRIPTION = """\
Turn a training run into a preset to ship: compact weights, measured again on the validation photos of DATA, with a
model card.

DEST gets the preset and README.md (the card), report.json, confusion.png, and of a run history.csv, curves.png and
recipe.toml. It is refused where the compact weights are not as good as the run's, or where DATA has validation photos
that were trained on. Compressors can be published too."""


def add_parser(commands):
    parser = commands.add_parser(
        "publish",
        help="make a small preset with a model card of a training run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="RUN|PRESET", help=HELP)
    parser.add_argument("dest", metavar="DEST", help="directory of the preset; one that is there is replaced")
    parser.add_argument("--data", required=True, metavar="DATA", help="the photos of the training, as in train")
    parser.add_argument(
        "--storage",
        choices=("float32", "float16", "int8"),
        default="float16",
        help="of the weights: 32-bit, 16-bit (default), or 8-bit integers times a power of two for each channel",
    )
    parser.add_argument("--name", metavar="NAME", help="title of the card; default: the name of DEST")
    parser.add_argument("--notes", metavar="FILE", help="Markdown for the card: limits, what it is not good for")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.training.publish import publish

    notes = Path(args.notes).read_text(encoding="utf-8") if args.notes else ""
    args.on_interrupt = f"Nothing is written to {args.dest}."
    report = publish(
        args.source,
        args.dest,
        args.data,
        storage=args.storage,
        name=args.name,
        notes=notes,
        batch_size=args.batch_size,
        verbose=int(sys.stdout.isatty()),
    )
    original = report["original"]
    print(f"weights: {report['bytes']:,} bytes ({report['storage']}), before {original['bytes']:,}")
    for key, label, form in (("top1", "top-1", ".2%"), ("psnr", "PSNR in dB", ".2f"), ("bpp", "bits per pixel", ".4f")):
        if key in report:
            print(f"{label}: {report[key]:{form}}, before {original[key]:{form}}")
    print(f"written: {args.dest}")
