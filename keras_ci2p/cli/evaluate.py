"""`keras-ci2p evaluate`"""

import sys
import warnings
from pathlib import Path

from keras_ci2p.cli.model import HELP


def add_parser(commands):
    parser = commands.add_parser(
        "evaluate",
        help="measure a classifier, or a compressor, on a folder of photos",
        description="Of a classifier: top-1, a table by class, confusion.png and report.json. Of a compressor: PSNR, "
        "bits per pixel, cost, reconstructions.png and report.json. The validation photos are those in the folder "
        "val, or else those that `train` keeps aside.",
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=HELP)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder with one subfolder of photos per class, or with such folders train, val and test; or tfds:NAME; "
        "for a compressor any folder of pictures",
    )
    parser.add_argument(
        "--split",
        choices=("val", "test", "all"),
        default="val",
        help="test: of a folder or set that has such a split; default: val",
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="default: 32")
    classifiers = parser.add_argument_group("for classifiers")
    classifiers.add_argument(
        "--without-copies",
        action="store_true",
        help="leave out the images that have a near-copy among the training images of DATA: scaled, encoded anew or "
        "mirrored",
    )
    classifiers.add_argument(
        "--worst", type=int, default=0, metavar="N", help="also worst.png: of the wrong images the N of highest loss"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; default: RUN/evaluation, for a preset ./evaluation"
    )
    compressors = parser.add_argument_group("for compressors")
    compressors.add_argument("--pictures", type=int, default=100, metavar="N", help="how many at most; default: 100")
    compressors.add_argument(
        "--size", type=int, default=256, metavar="N", help="height and width of the central crops; default: 256"
    )
    compressors.add_argument(
        "--lmbda",
        type=float,
        metavar="X",
        help="weight of the squared error in the cost; default: that of the compressor's quality",
    )
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.models.loading import is_compressor
    from keras_ci2p.presets import open_preset, preset_of
    from keras_ci2p.utils import require

    require("matplotlib.figure", extra="train")
    preset = open_preset(preset_of(args.model))
    if is_compressor(preset) and (args.without_copies or args.worst):
        raise ValueError(f"--without-copies and --worst are for classifiers; {args.model} is a compressor.")
    if args.worst < 0:
        raise ValueError(f"--worst must not be negative. Received: {args.worst}")
    is_run = preset_of(args.model) != args.model
    out = Path(args.out) if args.out else Path(args.model if is_run else ".") / "evaluation"
    measure = _measure_compressor if is_compressor(preset) else _measure_classifier
    measure(args, preset, out)


def _measure_classifier(args, preset, out):
    from keras_ci2p import utils
    from keras_ci2p.backend import environment
    from keras_ci2p.cli.model import open_model
    from keras_ci2p.data.overlap import count_overlap
    from keras_ci2p.data.sources import open_data
    from keras_ci2p.plots import plot_confusion, plot_worst
    from keras_ci2p.training.evaluation import check_classes, evaluate, evaluation_size, worst_images

    model, _ = open_model(preset)
    manifest = open_data(args.data)
    check_classes(model, manifest)
    count = len(manifest.split(args.split))
    known, by_name = count_overlap(preset, manifest, args.split)
    if known:
        by = f" ({by_name} are known by class and name alone)" if by_name else ""
        warnings.warn(f"{known} of these {count} photos were trained on{by}: the figures are too good.", stacklevel=1)
    report = evaluate(
        model,
        manifest,
        args.split,
        batch_size=args.batch_size,
        verbose=int(sys.stdout.isatty()),
        without_copies=args.without_copies,
        worst=args.worst,
    )
    report = {"model": str(args.model), **report, **environment()}
    utils.write_json(out / "report.json", report)
    plot_confusion(out / "confusion.png", report)
    written = [out / "report.json", out / "confusion.png"]
    if report.get("worst"):
        plot_worst(out / "worst.png", report, worst_images(report, manifest, evaluation_size(model)))
        written.append(out / "worst.png")
    print(_table(report))
    if args.without_copies:
        copies = report["copies"]
        print(
            f"{copies['left_out']} of the {count} photos left out: near-copies of training photos, which differ in at "
            f"most {copies['max_distance']} of 64 bits of their hash"
        )
    scores = f"top-1 {100 * report['top1']:.2f} %, top-5 {100 * report['top5']:.2f} %"
    print(f"{scores} of {report['images']} photos ({args.split})")
    print(f"written: {', '.join(map(str, written))}")


def _measure_compressor(args, preset, out):
    from keras_ci2p import utils
    from keras_ci2p.backend import environment
    from keras_ci2p.data.sources import scan_images
    from keras_ci2p.models.compressor import Compressor
    from keras_ci2p.training.evaluation import evaluate_compressor, show_reconstructions

    compressor = Compressor.from_preset(preset)
    pictures = scan_images(args.data)
    report = evaluate_compressor(
        compressor,
        pictures,
        args.split,
        args.pictures,
        args.size,
        args.lmbda,
        args.batch_size,
        verbose=int(sys.stdout.isatty()),
    )
    utils.write_json(out / "report.json", {"model": str(args.model), **report, **environment()})
    show_reconstructions(out / "reconstructions.png", compressor, pictures, args.split, args.size)
    print(
        f"{report['psnr']:.2f} dB, {report['bpp']:.4f} bits per pixel, cost {report['cost']:.4f} at lambda "
        f"{report['lmbda']:g}, of {report['images']} pictures ({args.split}), {args.size} px"
    )
    print(f"written: {out / 'report.json'}, {out / 'reconstructions.png'}")


def _table(report):
    width = max(len("class"), *(len(row["name"]) for row in report["per_class"]))
    lines = [f"{'class':<{width}}  photos  recall  precision"]
    for row in report["per_class"]:
        recall, precision = (
            "      -" if row[key] is None else f"{100 * row[key]:5.1f} %" for key in ("recall", "precision")
        )
        lines.append(f"{row['name']:<{width}}  {row['images']:6}  {recall}    {precision}")
    return "\n".join(lines)
