"""`keras-ci2p data`"""

import argparse
import sys

DESCRIPTION = """\
Prepare a data set of TensorFlow Datasets for `train tfds:NAME`. TensorFlow itself is not needed, except by sets whose
builders call it.

animals10 is the paper's: 26,179 photos of ten kinds of animals. It is prepared from Kaggle's archive or a folder
(--from), else from what is in TFDS's manual directory (DIR/downloads/manual), else downloaded by the package
kagglehub, if that is installed."""


def add_parser(commands):
    parser = commands.add_parser(
        "data",
        help="prepare a data set: animals10, or any image classification set of TFDS",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="animals10, or NAME[/CONFIG][:VERSION] of TFDS")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER|ZIP",
        help="the archive, or the folder it was unpacked to; of other sets, TFDS's manual directory",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where sets are kept; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
    )
    parser.set_defaults(run=run)


def run(args):
    from keras_ci2p.data.source import open_data
    from keras_ci2p.data.tfds import PREFIX, prepare_tfds, prepared_directory
    from keras_ci2p.extras import require

    name = args.name.removeprefix(PREFIX)
    directory = prepared_directory(name, args.data_dir)
    if directory:
        print(f"{name} is prepared already: {directory}. To prepare it anew, delete that directory.")
    else:
        args.on_interrupt = "Nothing is kept; the same command begins anew."
        print(f"Preparing {name} ...", flush=True)
        if not sys.stderr.isatty():
            # TFDS's bars are for terminals.
            require("tensorflow_datasets", extra="tfds").disable_progress_bar()
        directory = prepare_tfds(name, args.source, args.data_dir)
        print(f"prepared: {directory}")
    manifest = open_data(PREFIX + name, args.data_dir)
    if directory.parent.name == "animals10":
        print(_animals10_table(manifest))
    photos = f"{len(manifest):,} photos of {len(manifest.class_names)} classes"
    print(f"{photos}: {len(manifest.split('train')):,} for training, {len(manifest.split('val')):,} for validation")
    variable = f"TFDS_DATA_DIR={args.data_dir} " if args.data_dir else ""
    print(f"next: {variable}keras-ci2p train {PREFIX}{name} --out run")


def _animals10_table(manifest):
    """Photos by class against the published numbers."""
    from keras_ci2p.data.tfds.animals10 import CLASSES, PUBLISHED

    lines = [f"{'class':<11}{'Italian':<11}{'photos':>7}{'published':>11}"]
    for name, count in manifest.counts().items():
        italian, published = CLASSES[name]
        lines.append(f"{name:<11}{italian:<11}{count:>7,}{published:>11,}")
    lines.append(f"{'all':<22}{len(manifest):>7,}{PUBLISHED:>11,}")
    difference = len(manifest) - PUBLISHED
    if difference:
        lines.append(
            f"{abs(difference):,} photos {'more' if difference > 0 else 'fewer'} than the published {PUBLISHED:,}: "
            "results do not compare with the paper's."
        )
    else:
        lines.append(f"All of the published {PUBLISHED:,} photos are there.")
    return "\n".join(lines)
