"""`keras-ci2p data`: prepares a data set."""

import shlex
import sys

DATA = """\
Prepare a data set of TensorFlow Datasets for `train tfds:NAME`. TensorFlow itself is not needed, except by sets whose
builders call it.

animals10 is the paper's: 26,179 images of ten kinds of animals. It is prepared from Kaggle's archive or a folder
(--from), else from what is in TFDS's manual directory (DIR/downloads/manual), else downloaded by the package
kagglehub, if that is installed. With --out, TensorFlow Datasets is not needed: the images are copied as they are to
OUT/train, OUT/val and OUT/test, with a subfolder per class, for `train OUT`.

Both split it by lists of names that come with this package, those that the preset animals10 is made with; images in
neither list are the split test."""


def add_data(add):
    parser = add("data", "prepare a data set: animals10, or any image classification set of TFDS", DATA, data)
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
    parser.add_argument(
        "--out", metavar="OUT", help="of animals10: a new directory to copy the images to, in folders for each split"
    )


def data(args):
    from keras_ci2p.data.tfds import PREFIX

    name = args.name.removeprefix(PREFIX)
    if args.out is None:
        _prepare(name, args)
    elif name == "animals10" and args.data_dir is None:
        _lay_out(args)
    else:
        raise ValueError(
            "--out lays out animals10 as a folder, without --data-dir; other sets are prepared for TFDS. Received: "
            f"{args.name}{'' if args.data_dir is None else f' --data-dir {args.data_dir}'}"
        )


def _lay_out(args):
    from keras_ci2p.data.animals10 import CLASSES, lay_out, read_lists

    args.on_interrupt = "Nothing is kept; the same command begins anew."
    layout = lay_out(args.source, args.out)
    totals = {split: sum(counts.values()) for split, counts in layout.counts.items()}
    print(f"{'class':<11}" + "".join(f"{split:>8}" for split in totals))
    for name in CLASSES:
        print(f"{name:<11}" + "".join(f"{counts[name]:>8,}" for counts in layout.counts.values()))
    print(f"{'all':<11}" + "".join(f"{total:>8,}" for total in totals.values()))
    for split, names in read_lists().items():
        missing = layout.missing[split]
        print(f"{split}: {len(names) - missing:,} of the {len(names):,} listed names are there, {missing:,} missing")
    print(f"test: {totals['test']:,} new images, in neither list")
    if layout.skipped:
        print(f"left out: {len(layout.skipped):,} file{'s' if len(layout.skipped) > 1 else ''}")
    print(f"written: {args.out}")
    print(f"next: keras-ci2p train {shlex.quote(args.out)} --out run")


def _prepare(name, args):
    from keras_ci2p.data.sources import open_data
    from keras_ci2p.data.tfds import OWN_SETS, PREFIX, find_builder, prepare_tfds, prepared_directory
    from keras_ci2p.utils import require

    directory = prepared_directory(name, args.data_dir)
    if directory and name in OWN_SETS:
        # Versions of our sets differ in their splits.
        version = str(find_builder(name, args.data_dir).version)
        if directory.name != version and args.source is not None:
            directory = None
        elif directory.name != version:
            print(f"{name} has a newer version, {version}, with other splits: --from prepares it.")
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
    counted = f"{len(manifest):,} images of {len(manifest.class_names)} classes"
    train, val, test = (manifest.sizes().get(split, 0) for split in ("train", "val", "test"))
    rest = f", {test:,} for test" if test else ""
    print(f"{counted}: {train:,} for training, {val:,} for validation{rest}")
    variable = f"TFDS_DATA_DIR={args.data_dir} " if args.data_dir else ""
    print(f"next: {variable}keras-ci2p train {PREFIX}{name} --out run")


def _animals10_table(manifest):
    """Images by class against the published numbers."""
    from keras_ci2p.data.animals10 import CLASSES, PUBLISHED

    lines = [f"{'class':<11}{'Italian':<11}{'images':>7}{'published':>11}"]
    for name, count in manifest.counts().items():
        italian, published = CLASSES[name]
        lines.append(f"{name:<11}{italian:<11}{count:>7,}{published:>11,}")
    lines.append(f"{'all':<22}{len(manifest):>7,}{PUBLISHED:>11,}")
    difference = len(manifest) - PUBLISHED
    if difference:
        lines.append(
            f"{abs(difference):,} images {'more' if difference > 0 else 'fewer'} than the published {PUBLISHED:,}: "
            "results do not compare with the paper's."
        )
    else:
        lines.append(f"All of the published {PUBLISHED:,} images are there.")
    return "\n".join(lines)
