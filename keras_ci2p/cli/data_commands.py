"""Commands that make data: `data` prepares a data set; `compress` and `decompress` make files of images, and back."""

import math
import shlex
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from keras_ci2p.codec.file_format import SUFFIX, read_compressed
from keras_ci2p.codec.ms_ssim import LEAST_SIDE, ms_ssim
from keras_ci2p.names import TABLE_CHOICES
from keras_ci2p.setting import integer
from keras_ci2p.training.configs import DEFAULT_COMPRESSOR
from keras_ci2p.utils import DiskFullError, atomic_file, clean_up, progress, user_path, write_bytes

DATA = """\
Prepare a data set of TensorFlow Datasets for `train tfds:NAME`. TensorFlow itself is not needed, except by sets whose
builders call it.

animals10 is the paper's: 26,179 images of ten kinds of animals. It is prepared from Kaggle's archive or a folder
(--from), else from what is in TFDS's manual directory (DIR/downloads/manual), else downloaded by the package
kagglehub, if that is installed. With --out, TensorFlow Datasets is not needed: the images are copied as they are to
OUT/train, OUT/val and OUT/test, with a subfolder per class, for `train OUT`.

Both split it by lists of names that come with this package, those that the preset animals10 is made with; images in
neither list are the split test."""

COMPRESS = """\
Write images as .ci2p files: their latents, coded as CompressAI codes them. Folders are searched at any depth, and OUT
gets the same subfolders; of a single image OUT may be the file. The images stay as they are; of an EXIF rotation the
image is turned, transparency is laid on white, 16 bits become 8.

A file that is there already is kept, so that the same command goes on after Ctrl-C or a crash."""

DECOMPRESS = """\
Write .ci2p files as images, PNG in folders. The compressor is the one that a file names, where it comes with this
package or is published by CompressAI; any other is to be given. An image that is there already is kept."""

_COMPRESSOR_HELP = "a preset, a training run, a name such as bmshj2018-factorized-mse-5, or a CompressAI checkpoint"


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


def add_compress(add):
    parser = add("compress", "write images as small files that a compressor reads", COMPRESS, compress)
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="images in any format that Pillow reads")
    parser.add_argument("out", metavar="OUT", help=f"directory, or of a single image a file ending in {SUFFIX}")
    _add_compressor(parser, f"or a classifier, for the one that it was trained with; default: {DEFAULT_COMPRESSOR}")
    parser.add_argument(
        "--size",
        type=integer(at_least=1),
        metavar="N",
        help="resize and crop to N pixels as `predict` and `evaluate` do; default: images as they are",
    )
    parser.add_argument("--measure", action="store_true", help="also decode each file, for PSNR and MS-SSIM")


def add_decompress(add):
    parser = add("decompress", "write compressed files as images again", DECOMPRESS, decompress)
    parser.add_argument("files", metavar="FILE|FOLDER", nargs="+", help=f"files ending in {SUFFIX}")
    parser.add_argument(
        "out", metavar="OUT", help="directory, or of a single file an image, whose suffix tells the format"
    )
    _add_compressor(parser, "default: the one that each file names")


def _add_compressor(parser, more):
    parser.add_argument("--compressor", metavar="NAME|PATH", help=f"{_COMPRESSOR_HELP}; {more}")
    parser.add_argument(
        "--tables",
        choices=TABLE_CHOICES,
        default=TABLE_CHOICES[0],
        help="of a CompressAI checkpoint's entropy coder: made from its weights (default), or as it holds them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def compress(args):
    from keras_ci2p.data.transforms import center_crop, load_image
    from keras_ci2p.training.latents import open_codec

    codec = open_codec(args.compressor or DEFAULT_COMPRESSOR, args.tables)
    rows = []

    def write(path, target):
        image = load_image(path)
        image = np.asarray(image) if args.size is None else center_crop(image, (args.size, args.size))
        content = codec.compress(image)
        write_bytes(target, content)
        quality = _quality(image, codec.decompress(content)) if args.measure else (None, None)
        rows.append((path.stat().st_size, len(content), image.shape[0] * image.shape[1], *quality))

    jobs = _find_jobs(args.images, args.out, _suffixes(Image.OPEN), {SUFFIX}, SUFFIX)
    kept, failed = _run_jobs(args, jobs, write, codec.check)
    if rows:
        before, after, pixels, decibels, similarities = zip(*rows, strict=True)
        print(
            f"{_count(len(rows), 'image')}: {sum(before):,} bytes before, {sum(after):,} after "
            f"({sum(after) / sum(before):.1%}), {8 * sum(after) / sum(pixels):.4f} bits per pixel"
        )
        for name, values, unit in (("PSNR", decibels, ".2f"), ("MS-SSIM", similarities, ".4f")):
            values = [value for value in values if value is not None]
            if values:
                print(f"{name}: mean {np.mean(values):{unit}}, lowest {min(values):{unit}} of {len(values)}")
    return _tell(args.out, len(rows), kept, failed)


def decompress(args):
    from keras_ci2p.training.latents import known_compressor, open_codec

    codecs = {}

    def write(path, target):
        content = path.read_bytes()
        name = args.compressor or known_compressor(read_compressed(content).name)
        if name not in codecs:
            codecs[name] = open_codec(name, args.tables)
        image = Image.fromarray(codecs[name].decompress(content))
        with atomic_file(target) as temporary:
            image.save(temporary)

    jobs = _find_jobs(args.files, args.out, {SUFFIX}, _suffixes(Image.SAVE), ".png")
    kept, failed = _run_jobs(args, jobs, write)
    return _tell(args.out, len(jobs) - kept - failed, kept, failed)


def _quality(image, restored):
    """PSNR in dB and MS-SSIM, the latter None for small images."""
    mse = np.square(image.astype("float32") - restored).mean(dtype="float64")
    decibels = 10 * math.log10(255**2 / max(mse, 255**2 * 1e-12))
    return decibels, ms_ssim(image, restored) if min(image.shape[:2]) >= LEAST_SIDE else None


def _suffixes(formats):
    return {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


def _find_jobs(sources, out, wanted, written, suffix):
    """`(path, target)` of each file to read.

    Args:
        sources: Files and folders, in which those with a suffix that is `wanted` count.
        out: Directory; of a single file also the target, by a suffix of those that can be `written`.
        suffix: Of the targets in a directory.
    """
    out, sources, targets = user_path(out), [user_path(source) for source in sources], {}
    if len(sources) == 1 and sources[0].is_file() and out.suffix.lower() in written and not out.is_dir():
        return [(sources[0], out)]
    for source in sources:
        for path, relative in _files_below(source, wanted):
            target = (out / relative).with_suffix(suffix)
            if target in targets:
                raise ValueError(f"{targets[target]} and {path} would both become {target}; rename one of them.")
            targets[target] = path
    if not targets:
        raise ValueError(f"There is no file for this in {', '.join(map(str, sources))}.")
    return [(path, target) for target, path in targets.items()]


def _files_below(source, wanted):
    from keras_ci2p.data.layouts import visible_files

    if source.is_dir():
        for path in visible_files(source):
            if path.suffix.lower() in wanted:
                yield path, path.relative_to(source)
    elif source.exists():
        yield source, Path(source.name)
    else:
        raise FileNotFoundError(f"There is no file or folder {source}.")


def _run_jobs(args, jobs, write, check=None):
    """Does what is to be done; `(number of files that were there, number that failed)`.

    Args:
        jobs: Of `_find_jobs`.
        write: Function of a path and a target.
        check: Function of the bytes of a target that is there; raises ValueError where `write` would not have made it.
    """
    args.on_interrupt = "The whole files are kept; the same command goes on."
    kept = failed = 0
    for directory in {target.parent for _, target in jobs}:
        if directory.is_dir():
            clean_up(directory)
    for path, target in progress(jobs, len(jobs), args.out):
        try:
            if target.exists() and not args.overwrite:
                _check_kept(target, check)
                kept += 1
            elif target.exists() and target.samefile(path):
                raise ValueError("it would replace itself")
            else:
                write(path, target)
        except DiskFullError:
            raise
        except (OSError, ValueError, MemoryError) as error:
            print(f"keras-ci2p: {path}: {error or 'too large'}", file=sys.stderr)
            failed += 1
    return kept, failed


def _check_kept(target, check):
    try:
        if check is not None:
            check(target.read_bytes())
    except ValueError as error:
        raise FileExistsError(f"{target} is there already, and not kept: {error} --overwrite replaces it.") from error


def _tell(out, written, kept, failed):
    if kept:
        print(f"{_count(kept, 'file')} there already, kept")
    if failed:
        print(f"{_count(failed, 'file')} not done")
    if written:
        print(f"written: {out} ({_count(written, 'file')})")
    return 2 if failed else 0


def _count(number, what):
    return f"{number:,} {what}{'' if number == 1 else 's'}"
