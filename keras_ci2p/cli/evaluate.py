"""`keras-ci2p evaluate`"""

import sys
import warnings
from pathlib import Path

from keras_ci2p.cli.model import HELP


def add_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="measure a classifier on a folder of photos",
        description="Top-1, a table by class, confusion.png and report.json. "
        "The validation photos are those that `train` keeps aside.",
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=HELP)
    parser.add_argument("data", metavar="DATA", help="folder with one subfolder of photos per class, or tfds:NAME")
    parser.add_argument("--split", choices=("val", "all"), default="val", help="default: val")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; default: RUN/evaluation, for a preset ./evaluation"
    )
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p import files
    from keras_ci2p.cli.model import open_model, preset_of
    from keras_ci2p.data import open_data
    from keras_ci2p.data.seen import SEEN_FILE, count_seen
    from keras_ci2p.extras import require
    from keras_ci2p.training.backend import environment
    from keras_ci2p.training.evaluation import check_classes, evaluate, plot_confusion

    require("matplotlib.figure", extra="train")
    model, preset = open_model(args.model)
    manifest = open_data(args.data)
    check_classes(model, manifest)
    seen_file = preset.directory / SEEN_FILE
    if seen_file.is_file():
        photos = manifest.split(args.split).digests
        seen = count_seen(seen_file, photos)
        if seen:
            warnings.warn(
                f"{seen} of these {len(photos)} photos were trained on: the figures are too good.", stacklevel=1
            )
    report = evaluate(model, manifest, args.split, batch_size=args.batch_size, verbose=int(sys.stdout.isatty()))
    report = {"model": str(args.model), **report, **environment()}
    is_run = preset_of(args.model) != args.model
    out = Path(args.out) if args.out else Path(args.model if is_run else ".") / "evaluation"
    files.write_json(out / "report.json", report)
    plot_confusion(out / "confusion.png", report)
    print(_table(report))
    scores = f"top-1 {100 * report['top1']:.2f} %, top-5 {100 * report['top5']:.2f} %"
    print(f"{scores} of {report['images']} photos ({args.split})")
    print(f"written: {out / 'report.json'}, {out / 'confusion.png'}")


def _table(report):
    width = max(len("class"), *(len(row["name"]) for row in report["per_class"]))
    lines = [f"{'class':<{width}}  photos  recall  precision"]
    for row in report["per_class"]:
        recall, precision = (
            "      -" if row[key] is None else f"{100 * row[key]:5.1f} %" for key in ("recall", "precision")
        )
        lines.append(f"{row['name']:<{width}}  {row['images']:6}  {recall}    {precision}")
    return "\n".join(lines)
