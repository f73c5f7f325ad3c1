"""Commands that use and look at models: `evaluate`, `info` and `flops`."""

import argparse
import sys
import warnings

from keras_ci2p.names import METRICS, MODELS, VARIANTS
from keras_ci2p.setting import integer, name_pairs
from keras_ci2p.training.configs import VARIANT_NAMES
from keras_ci2p.utils import user_path

# Rows of a table by class.
_MOST_CLASSES = 50

MODEL_HELP = "a training run, a preset directory or the name of a preset"

EVALUATE = """\
Of a classifier: top-1, a table by class, confusion.png and report.json. Of a compressor: PSNR, bits per pixel, cost,
reconstructions.png and report.json. The validation images are those in the folder val, or else those that `train`
keeps aside."""

FLOPS = """\
Count the multiply-accumulates of a model by part, from its own layers, and compare them with those of a ViT with
16 x 16 patches and the same transformer blocks: ViT-B/16 for base.

What the paper calls FLOPs are the multiply-accumulates, norms and averages. Of a training step, the frozen compressor
takes its forward pass, the rest three times its own."""

# Options of `evaluate` that are for one kind of model alone, with their defaults.
_FOR_CLASSIFIERS = {"without_copies": False, "worst": 0, "class_map": None, "compressor": None}
_FOR_COMPRESSORS = {"images": 100, "size": 256, "lmbda": None, "metric": METRICS[0]}


def add_evaluate(add):
    parser = add(
        "evaluate", "measure a classifier, or a compressor, on a folder of images", EVALUATE, evaluate, prepare_evaluate
    )
    parser.add_argument("model", metavar="RUN|PRESET", help=MODEL_HELP)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="folder with one subfolder of images, or .ci2p files, per class, or with such folders train, val and "
        "test; or tfds:NAME; for a compressor any folder of images",
    )
    parser.add_argument(
        "--split",
        choices=("val", "test", "all"),
        help="test: of a folder or set that has such a split; default: val, or all of a folder that has no splits and "
        "that the classifier was not trained on",
    )
    parser.add_argument("--batch-size", type=integer(at_least=1), default=32, metavar="N", help="default: 32")
    parser.add_argument(
        "--out", metavar="DIR", help="where to write; default: RUN/evaluation, for a preset ./evaluation"
    )
    add_rescan(parser)
    classifiers = parser.add_argument_group("for classifiers")
    classifiers.add_argument(
        "--without-copies",
        action="store_true",
        default=argparse.SUPPRESS,
        help="leave out the images that have a near-copy among the training images of DATA: scaled, encoded anew or "
        "mirrored",
    )
    classifiers.add_argument(
        "--worst",
        type=integer(at_least=0),
        default=argparse.SUPPRESS,
        metavar="N",
        help="also worst.png: of the wrong images the N of highest loss",
    )
    classifiers.add_argument(
        "--class-map",
        type=name_pairs,
        default=argparse.SUPPRESS,
        metavar="FOLDER=CLASS,...|FILE",
        help="for folders that are called otherwise than the classes of the model, such as cane=dog,gatto=cat; or a "
        "file with one in each line",
    )
    add_compressor_of_files(classifiers, default=argparse.SUPPRESS)
    compressors = parser.add_argument_group("for compressors")
    count = {"type": integer(at_least=1), "default": argparse.SUPPRESS, "metavar": "N"}
    compressors.add_argument("--images", **count, help="how many at most; default: 100")
    compressors.add_argument("--pictures", dest="images", **{**count, "help": argparse.SUPPRESS})
    compressors.add_argument("--size", **count, help="height and width of the central crops; default: 256")
    compressors.add_argument(
        "--lmbda",
        type=float,
        default=argparse.SUPPRESS,
        metavar="X",
        help="weight of the error in the cost; default: that of the compressor's quality",
    )
    compressors.add_argument(
        "--metric", choices=METRICS, default=argparse.SUPPRESS, help="the error in the cost; default: mse"
    )


def add_compressor_of_files(parser, **options):
    """`--compressor`, of a command that takes `.ci2p` files for a classifier."""
    parser.add_argument(
        "--compressor",
        metavar="NAME|PATH",
        help="the compressor of .ci2p files, where neither they nor the classifier name it",
        **options,
    )


def prepare_evaluate(args):
    check_inputs([args.model], [args.data])


def add_rescan(parser):
    """`--rescan`, of a command with DATA; `main` obeys it."""
    parser.add_argument(
        "--rescan",
        action="store_true",
        default=argparse.SUPPRESS,
        help="read every file of DATA again, not only those whose size or time has changed since it was last opened",
    )


def check_inputs(presets=(), data=()):
    """Raises ValueError where a preset or a folder of data is not there, before Keras is imported; None counts not."""
    from keras_ci2p.data.sources import check_exists
    from keras_ci2p.presets import check_preset_name

    for name in presets:
        if name is not None:
            check_preset_name(name)
    for source in data:
        if source is not None:
            check_exists(source)


def evaluate(args):
    from keras_ci2p.models.ci2p_vit import is_compressor
    from keras_ci2p.presets import open_preset, preset_of

    preset = open_preset(preset_of(args.model))
    kind, mine, others = "classifier", _FOR_CLASSIFIERS, _FOR_COMPRESSORS
    if is_compressor(preset):
        kind, mine, others = "compressor", others, mine
    refuse_given(args, others, f"{args.model} is a {kind}")
    for name, default in mine.items():
        setattr(args, name, getattr(args, name, default))
    is_run = preset_of(args.model) != args.model
    out = user_path(args.out) if args.out else user_path(args.model if is_run else ".") / "evaluation"
    measure = _measure_compressor if is_compressor(preset) else _measure_classifier
    measure(args, preset, out)


def refuse_given(args, names, why):
    """Raises ValueError where the arguments give one of the options `names`, which do not apply."""
    given = [name for name in names if getattr(args, name, None) is not None]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} does not apply: {why}.")


def _measure_classifier(args, preset, out):
    from keras_ci2p import utils
    from keras_ci2p.backend import environment
    from keras_ci2p.data.overlap import count_overlap, default_split
    from keras_ci2p.data.sources import open_data
    from keras_ci2p.models.ci2p_vit import open_classifier
    from keras_ci2p.plots import plot_confusion, plot_worst
    from keras_ci2p.training.evaluation import evaluate, evaluation_size, match_classes, weakest, worst_images
    from keras_ci2p.training.latents import FileReader

    model, _ = open_classifier(preset)
    manifest = open_data(args.data)
    aliases = preset.further_metadata().get("class_aliases", {})
    class_map = {name: aliases[name] for name in manifest.class_names if name in aliases} | (args.class_map or {})
    matched = match_classes(model, manifest, class_map)
    # Copies are left out of a validation or test split.
    split = args.split or ("val" if args.without_copies else default_split(preset, matched))
    if split == "all" and args.split is None:
        print(f"All images are measured, since {args.model} was trained on none of them.")
    count = len(manifest.split(split))
    known, by_name = count_overlap(preset, matched, split)
    if known:
        by = f" ({by_name} are known by class and name alone)" if by_name else ""
        warnings.warn(f"{known} of these {count} images were trained on{by}: the figures are too good.", stacklevel=1)
    reader = FileReader(getattr(model, "compressor", None), args.compressor, preset.metadata.get("compressor"))
    report = evaluate(
        model,
        manifest,
        split,
        batch_size=args.batch_size,
        verbose=int(sys.stdout.isatty()),
        without_copies=args.without_copies,
        worst=args.worst,
        class_map=class_map,
        reader=reader,
    )
    report = {"model": str(args.model), **report, **environment()}
    # Before anything is written, which may fail.
    print(_table_by_class(report, weakest(report["per_class"], _MOST_CLASSES)))
    if args.without_copies:
        copies = report["copies"]
        print(
            f"{copies['left_out']} of the {count} images left out: near-copies of training images, which differ in at "
            f"most {copies['max_distance']} of 64 bits of their hash"
        )
    scores = f"top-1 {100 * report['top1']:.2f} %, top-5 {100 * report['top5']:.2f} %"
    print(f"{scores} of {report['images']} images ({split})")
    utils.write_json(out / "report.json", report)
    written = [out / "report.json"]
    if report["confusion"] is not None and plot_confusion(out / "confusion.png", report):
        written.append(out / "confusion.png")
    if report.get("worst"):
        images = worst_images(report, manifest, evaluation_size(model), reader)
        if plot_worst(out / "worst.png", report, images):
            written.append(out / "worst.png")
    print(f"written: {', '.join(map(str, written))}")


def _measure_compressor(args, preset, out):
    from keras_ci2p import utils
    from keras_ci2p.backend import environment
    from keras_ci2p.data.sources import scan_images
    from keras_ci2p.models.compressor import Compressor
    from keras_ci2p.training.evaluation import evaluate_compressor, show_reconstructions

    compressor = Compressor.from_preset(preset)
    images = scan_images(args.data)
    split = args.split or "val"
    report = evaluate_compressor(
        compressor,
        images,
        split,
        args.images,
        args.size,
        args.lmbda,
        args.batch_size,
        verbose=int(sys.stdout.isatty()),
        metric=args.metric,
    )
    similarity = f"MS-SSIM {report['ms_ssim']:.4f}, " if "ms_ssim" in report else ""
    print(
        f"{report['psnr']:.2f} dB, {similarity}{report['bpp']:.4f} bits per pixel, cost {report['cost']:.4f} at lambda "
        f"{report['lmbda']:g}, of {report['images']} images ({split}), {args.size} px"
    )
    utils.write_json(out / "report.json", {"model": str(args.model), **report, **environment()})
    written = [out / "report.json"]
    if show_reconstructions(out / "reconstructions.png", compressor, images, split, args.size):
        written.append(out / "reconstructions.png")
    print(f"written: {', '.join(map(str, written))}")


def _table_by_class(report, rows):
    width = max(len("class"), *(len(row["name"]) for row in rows))
    lines = [f"{'class':<{width}}  images  recall  precision"]
    for row in rows:
        recall, precision = (
            "      -" if row[key] is None else f"{100 * row[key]:5.1f} %" for key in ("recall", "precision")
        )
        lines.append(f"{row['name']:<{width}}  {row['images']:6}  {recall}    {precision}")
    if len(rows) < len(report["per_class"]):
        lines.append(f"and {len(report['per_class']) - len(rows):,} classes of no lower recall, in report.json")
    return "\n".join(lines)


def add_info(add):
    parser = add("info", "show a model's parts", "Parameters by part, trained and frozen.", info, prepare_info)
    parser.add_argument("model", metavar="VARIANT|PRESET", help=f"{VARIANT_NAMES}; {MODEL_HELP}")
    _add_kind(parser)
    parser.add_argument(
        "--num-classes", type=integer(at_least=1), metavar="N", help="classes of a VARIANT; default: 10"
    )


def _add_kind(parser):
    parser.add_argument("--model", choices=MODELS, dest="kind", help="kind of a VARIANT; default: ci2p")


def prepare_info(args):
    if args.model not in VARIANTS:
        refuse_variant_options(args, {"kind": "model", "num_classes": "num-classes"}, args.model)
        check_inputs([args.model])


def refuse_variant_options(args, flags, name):
    """Raises ValueError where an option of a VARIANT is given with the trained model `name`."""
    given = [flag for key, flag in flags.items() if getattr(args, key) is not None]
    if given:
        raise ValueError(f"--{given[0]} is for a VARIANT ({VARIANT_NAMES}); {name} is a model that has its own.")


def info(args):
    from keras_ci2p.flops import parameters_by_part
    from keras_ci2p.models.ci2p_vit import CLASSIFIERS, CI2PViTDualScale, open_classifier
    from keras_ci2p.utils import listed

    if args.model in VARIANTS:
        model = CLASSIFIERS[args.kind or "ci2p"](variant=args.model, num_classes=args.num_classes or 10)
    else:
        model, _ = open_classifier(args.model)
    size = " x ".join("any" if s is None else str(s) for s in model.image_shape[:2])
    backbone = model.backbone
    print(f"{type(model).__name__}, images {size}, {model.num_classes} classes")
    if model.class_names:
        print("classes: " + listed(model.class_names, _MOST_CLASSES))
    print(
        f"transformer: {backbone.num_layers} blocks, {backbone.hidden_dim} wide, {backbone.num_heads} heads, "
        f"MLP {backbone.mlp_dim}"
    )
    if isinstance(model, CI2PViTDualScale):
        print(f"before the merge ({backbone.merge_at} of the blocks): {backbone.early_dim} wide")
    print(f"{'part':<20}{'parameters':>14}{'trainable':>14}{'frozen':>14}{'statistics':>14}")
    parts = parameters_by_part(model)
    for name, counts in [*parts.items(), ("total", tuple(map(sum, zip(*parts.values(), strict=True))))]:
        total, trainable, statistics = counts
        print(f"{name:<20}{total:>14,}{trainable:>14,}{total - trainable:>14,}{statistics:>14,}")
    print("Statistics are the running means and variances of batch normalisation; they are no parameters.")


def add_flops(add):
    parser = add("flops", "count a model's multiply-accumulates", FLOPS, flops, prepare_flops)
    parser.add_argument(
        "models",
        nargs="*",
        default=["base"],
        metavar="VARIANT|PRESET|RUN",
        help=f"{VARIANT_NAMES}; {MODEL_HELP}; default: base",
    )
    _add_kind(parser)
    parser.add_argument(
        "--image-size",
        type=integer(at_least=1),
        nargs="+",
        default=[256, 384, 512],
        metavar="N",
        help="height and width, multiples of 32 (vit: of 16); default: 256 384 512",
    )
    parser.add_argument("--json", metavar="FILE", help="write the exact numbers there too")


def prepare_flops(args):
    presets = [name for name in args.models if name not in VARIANTS]
    if len(presets) == len(args.models):
        refuse_variant_options(args, {"kind": "model"}, args.models[0])
    check_inputs(presets)


def flops(args):
    import keras

    from keras_ci2p import utils

    makers = {name: _maker(name, args.kind or "ci2p") for name in args.models}
    # What is made there gets no weights, which would take gigabytes.
    with keras.StatelessScope(initialize_variables=False):
        results = [_count(name, make, args.image_size) for name, make in makers.items()]
    # Keras would make up for it at the next occasion.
    keras.utils.clear_session(free_memory=False)
    print("\n\n".join(_table_by_size(result) for result in results))
    if args.json:
        utils.write_json(args.json, results)
        print(f"written: {args.json}")


def _maker(name, kind):
    """Returns a function that makes the model for an `image_shape`."""
    from keras_ci2p.models.ci2p_vit import CLASSIFIERS, open_classifier

    if name in VARIANTS:
        return lambda image_shape: CLASSIFIERS[kind](image_shape, variant=name)
    model, _ = open_classifier(name)
    return lambda image_shape: type(model).from_config({**model.get_config(), "image_shape": image_shape})


def _count(name, make, image_sizes):
    """Counts of the model at each size, and of the ViT to compare with, None for a ViT itself."""
    from keras_ci2p.flops import count_macs
    from keras_ci2p.models.ci2p_vit import ViT

    rows = []
    for size in image_sizes:
        model = make((size, size, 3))
        sizes = {key: getattr(model.backbone, key) for key in ("hidden_dim", "num_layers", "num_heads", "mlp_dim")}
        vit = None if isinstance(model, ViT) else ViT(model.image_shape, num_classes=model.num_classes, **sizes)
        rows.append(
            {
                "image_size": size,
                **count_macs(model).as_dict(),
                "vit": None if vit is None else count_macs(vit).as_dict(),
            }
        )
    return {"name": name, "class": type(model).__name__, "counts": rows}


def _table_by_size(result):
    rows = result["counts"]

    def line(label, values, form="{:.3f}"):
        return f"{label:<24}" + "".join(f"{form.format(value):>12}" for value in values)

    def giga(label, key, counts=rows):
        return line(label, [count[key] / 1e9 for count in counts])

    lines = [
        f"{result['class']} {result['name']}: multiply-accumulates for one image, in G",
        line("part", [row["image_size"] for row in rows], "{} px"),
        *(line(part, [row["parts"][part]["macs"] / 1e9 for row in rows]) for part in rows[0]["parts"]),
        giga("total", "macs"),
        giga("FLOPs of the paper", "paper_flops"),
    ]
    vits = [row["vit"] for row in rows]
    has_vit = None not in vits

    def ratios(key):
        return [row[key] / vit[key] for row, vit in zip(rows, vits, strict=True)]

    if has_vit:
        lines += [
            giga("  ViT/16, same blocks", "paper_flops", vits),
            line("  reduction", [1 - ratio for ratio in ratios("paper_flops")], "{:.2%}"),
        ]
    lines.append(giga("training step", "training"))
    if has_vit:
        lines += [
            giga("  ViT/16, same blocks", "training", vits),
            line("  less work, times", [1 / ratio for ratio in ratios("training")], "{:.2f}"),
        ]
    return "\n".join(lines)
