"""Commands that take long: `train`, `train-compressor`, `cache` and `compare`."""

import argparse
import operator
import sys

from keras_ci2p.cli.evaluate_commands import add_rescan, check_inputs
from keras_ci2p.names import NO_COMPRESSOR
from keras_ci2p.setting import integer
from keras_ci2p.training.configs import (
    DEFAULT_COMPRESSOR,
    NO_TEACHER,
    CompareConfig,
    CompressorTrainConfig,
    TrainConfig,
)
from keras_ci2p.training.recipes import LatentCacheConfig, add_recipe_flags, changes_of_recipe, recipe_from_args
from keras_ci2p.utils import user_path

TRAIN = """\
Train a classifier on a folder of images: one subfolder per class, or folders train and val (and test) that hold these.
Without val, a fifth of each class is kept for validation, chosen by the images' contents alone.

RUN gets best/ and last/ (presets: the weights of the best validation top-1, and the last), history.csv, curves.png,
run.json, recipe.toml and checkpoints/. After Ctrl-C or a crash, the same command with --resume goes on after the last
epoch."""

TRAIN_EPILOG = """\
Every number of the recipe can be changed: --set augmentation.erasing=0.1 --set cosine_epochs=none; --show-recipe prints
them all, as a file that --recipe takes."""

TRAIN_COMPRESSOR = """\
Train a learned image compressor on your own kind of images, for CompressAI's lambda * 255^2 * MSE + bits per pixel.

A fifth of the images is kept aside, chosen by content, the same that `train` keeps aside. RUN gets best/ and last/
(presets), report.json, reconstructions.png, history.csv, curves.png, run.json and checkpoints/. After Ctrl-C or a
crash, the same command with --resume goes on after the last whole epoch. RUN is then a --compressor for `train` and
`cache`."""

CACHE = """\
Run a trained, frozen compressor once over some augmented views of each training image and over the central crop of each
validation image, and store the latents. `keras-ci2p train OUT ...` then trains on them without the compressor.

OUT gets latents.json, photos.npz, compressor/ (a preset) and the latents in ArrayRecord files. After Ctrl-C or a crash,
the same command with --resume keeps the whole files and makes the others.

Several processes or machines that share OUT make it together: the same command on each, with --part 1/8, --part 2/8
and so on. The first begins it, the others wait for that; any that ended early is run again. The last checks and seals
it."""

CACHE_EPILOG = """\
Of the recipe only the augmentation and the image size count; Mixup and CutMix are done on the latents in training."""

COMPARE = """\
Run the same model on several backends of Keras, each in a process of its own: the same weights, the same augmented
images, the same steps. Stochastic depth is off, so that nothing is left to chance.

DIR gets comparison.json and comparison.png. A backend that is not installed, or fails, is listed with its reason."""

_TEACHER = TrainConfig.groups["teacher"]
# What a cache is begun by, so that it cannot be chosen when views are added.
_BEGUN_BY = ("views", "compressor", "store", "recipe", "set", "image_size", "seed", "batch_size", "shard_records")


def add_train(add):
    parser = add("train", "train a classifier on a folder of images", TRAIN, run_train, prepare_train, TRAIN_EPILOG)
    _add_run_flags(parser)
    TrainConfig.add_flags(parser, optional=("data",))
    parser.add_argument("--show-recipe", action="store_true", help="print the recipe and do nothing else")


def prepare_train(args):
    if args.show_recipe:
        print(recipe_from_args(args).to_toml(), end="")
        return True
    if not hasattr(args, "data"):
        args.usage_error("the following arguments are required: DATA")
    if args.out is None:
        raise ValueError("--out RUN is missing: the directory that the run is written to.")
    args.config = TrainConfig.from_args(args)
    check_inputs([args.config.init, _compressor_preset(args.config)], [args.config.data])
    return False


def _compressor_preset(asked):
    """The compressor that is asked for where it must be the name of a preset, not a file; else None."""
    name = getattr(asked, "compressor", None)
    return None if name in (None, NO_COMPRESSOR) or user_path(name).is_file() else name


def run_train(args):
    from keras_ci2p.presets import preset_of
    from keras_ci2p.training.train import train

    config = args.config
    _check_settled(config, changes_of_recipe(args))
    if config.init is not None:
        config = config.override({"init": str(preset_of(config.init))})
    train(config, args.out, resume=args.resume, verbose=_verbose(args))


def _check_settled(config, given):
    """Raises ValueError where what was given has been settled otherwise by the latents; `train` knows no defaults."""
    from keras_ci2p.data.latent_cache import is_latent_cache, read_cache
    from keras_ci2p.training.run_dir import recipe_of_latents

    given = [name for name in given if name.partition(".")[0] in ("image_size", "augmentation")]
    if not given or not is_latent_cache(config.data):
        return
    settled = config.recipe.override(recipe_of_latents(read_cache(config.data).manifest["settings"]))
    for name in given:
        asked, stored = (operator.attrgetter(name)(recipe) for recipe in (config.recipe, settled))
        if asked != stored:
            raise ValueError(
                f"{config.data} is a latent cache, made with {name} {stored}, which can no longer be changed. Leave "
                f"{name} out, or make a new cache. Received: {name}={asked}"
            )


def add_train_compressor(add):
    parser = add(
        "train-compressor",
        "train a compressor on a folder of images",
        TRAIN_COMPRESSOR,
        run_train_compressor,
        prepare_train_compressor,
    )
    _add_run_flags(parser, required=True)
    CompressorTrainConfig.add_flags(parser)


def prepare_train_compressor(args):
    args.config = CompressorTrainConfig.from_args(args)
    check_inputs(data=[args.config.data])


def run_train_compressor(args):
    from keras_ci2p.training.train_compressor import train_compressor

    train_compressor(args.config, args.out, resume=args.resume, verbose=_verbose(args))


def _add_run_flags(parser, required=False):
    parser.add_argument("--out", required=required, metavar="RUN", help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    add_rescan(parser)


def _verbose(args):
    """A bar on a terminal, else a line for each epoch; and what to tell after Ctrl-C."""
    args.on_interrupt = f"The whole epochs are kept in {args.out}; the same command with --resume goes on."
    return 1 if sys.stdout.isatty() else 2


def add_cache(add):
    parser = add(
        "cache",
        "store a data set's latents, to train without the compressor",
        CACHE,
        cache,
        prepare_cache,
        CACHE_EPILOG,
    )
    parser.add_argument("data", metavar="DATA", help="folder of images as `train` takes it, or tfds:NAME")
    parser.add_argument("out", metavar="OUT", help="directory of the cache")
    parser.add_argument(
        "--more-views",
        type=integer(at_least=1),
        metavar="K",
        help="add K further views of each training image to the complete cache OUT, which may be trained on meanwhile; "
        "all else is as when it was begun, the teacher is to be given again",
    )
    parser.add_argument(
        "--compressor",
        default=argparse.SUPPRESS,
        metavar="NAME|PATH",
        help="a preset, a name such as bmshj2018-factorized-mse-5, a CompressAI checkpoint, or a training run, whose "
        f"compressor is taken; default: {DEFAULT_COMPRESSOR}",
    )
    add_recipe_flags(parser, "whose augmentation to use, as in train")
    LatentCacheConfig.add_flags(parser)
    parser.add_argument(
        "--threads", type=integer(at_least=1), metavar="N", help="that decode and augment; default: one per core"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the cache in OUT")
    parser.add_argument(
        "--part", type=_part, metavar="K/N", help="make the K-th of N parts of the cache; the others are made elsewhere"
    )
    add_rescan(parser)
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--verify",
        action="store_true",
        help="check the complete cache OUT instead: that it was made of DATA, and each byte against its checksums",
    )
    only.add_argument(
        "--finish",
        action="store_true",
        help="check the parts of OUT instead and seal it, as the last part does by itself unless it adds views",
    )
    TrainConfig.add_flags(parser, group=parser.add_argument_group("teacher"), names=_TEACHER)


def _part(text):
    """An `argparse` type: "2/8" to `(2, 8)`."""
    numbers = text.split("/")
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)) or not 1 <= int(numbers[0]) <= int(numbers[1]):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, such as 2/8. Received: {text!r}")
    return tuple(map(int, numbers))


def prepare_cache(args):
    if args.verify or args.finish:
        _check_only(args)
        return
    args.teacher = getattr(args, "teacher", NO_TEACHER)
    args.teacher_options = {name: getattr(args, name) for name in _TEACHER[1:] if hasattr(args, name)}
    if args.teacher == NO_TEACHER and args.teacher_options:
        flag = next(iter(args.teacher_options)).replace("_", "-")
        raise ValueError(f"--{flag} goes with a teacher: give --teacher too.")
    if args.more_views is None:
        args.config = LatentCacheConfig.from_args(args)
        check_inputs([_compressor_preset(args)], [args.data])
        return
    args.config = None
    given = [name for name in _BEGUN_BY if hasattr(args, name)]
    if given:
        raise ValueError(
            f"--more-views adds to {args.out} what it was begun with; only the teacher is to be given again. "
            f"Received also: --{given[0].replace('_', '-')}"
        )


_MADE_BY = (*_BEGUN_BY, *_TEACHER, "threads", "more_views", "part", "resume")


def _check_only(args):
    """Raises ValueError where something is given that is for making a cache."""
    values = {name: getattr(args, name, None) for name in _MADE_BY}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        raise ValueError(
            f"--{'verify' if args.verify else 'finish'} makes nothing; it takes DATA and OUT alone. "
            f"Received also: --{given[0].replace('_', '-')}"
        )


def _verify(args, open_data):
    from keras_ci2p.data.latent_cache import open_cache, seal_cache

    latents = seal_cache(args.out) if args.finish else open_cache(args.out)
    count = len(latents.files()) if args.finish else latents.verify()
    if open_data(args.data).sha256 != latents.sha256:
        raise ValueError(f"{args.out} was made of other images than those in {args.data}.")
    print(f"{count} files, {latents.num_bytes / 1e6:,.1f} MB: all are as they were written. Cache: {args.out}")


_ALL_ADDED = "All are there: --finish checks and seals them."


def cache(args):
    from keras_ci2p.convert.compressai import read_compressor
    from keras_ci2p.data.sources import open_data
    from keras_ci2p.training.cache_latents import cache_latents
    from keras_ci2p.training.distillation import load_teacher

    if args.verify or args.finish:
        return _verify(args, open_data)
    compressor = None
    if args.config is not None:
        compressor = read_compressor(getattr(args, "compressor", DEFAULT_COMPRESSOR))
    images = open_data(args.data)
    teacher = None
    if args.teacher != NO_TEACHER:
        teacher = load_teacher(args.teacher, images, *map(args.teacher_options.get, _TEACHER[1:]))
    again = "" if args.more_views is not None or args.part else " with --resume"
    args.on_interrupt = f"The whole files are kept in {args.out}; the same command{again} goes on."
    latents = cache_latents(
        images,
        args.out,
        compressor,
        args.config,
        resume=args.resume,
        num_threads=args.threads,
        verbose=1 if sys.stdout.isatty() else 2,
        teacher=teacher,
        more_views=args.more_views,
        part=args.part,
    )
    missing = ", ".join(map(str, latents.missing_shares()))
    if missing or (args.part and args.more_views is not None):
        print(f"Part {'/'.join(map(str, args.part))} is made. " + (f"Not yet: {missing}." if missing else _ALL_ADDED))
        return
    counts = {split: latents.num_records(split) for split in ("train", "val")}
    total = sum(counts.values())
    print(
        f"{counts['train']} latents of {len(latents.split('train'))} training images, {counts['val']} of validation: "
        f"{latents.num_bytes / 1e6:,.1f} MB, {latents.num_bytes / total:,.0f} bytes each. Cache: {args.out}"
    )


def add_compare(add):
    parser = add("compare", "compare Keras's backends on one model", COMPARE, compare, prepare_compare)
    CompareConfig.add_flags(parser)
    parser.add_argument("--out", default="comparison", metavar="DIR", help="default: comparison")


def prepare_compare(args):
    args.config = CompareConfig.from_args(args)


def compare(args):
    from keras_ci2p.compare import FIGURE, REPORT, compare, table

    args.on_interrupt = f"Nothing is written to {args.out}."
    report = compare(args.config, args.out)
    print(table(report))
    if report["reference"] is None:
        return 2
    written = [path for path in (user_path(args.out) / REPORT, user_path(args.out) / FIGURE) if path.is_file()]
    print(f"written: {', '.join(map(str, written))}")
