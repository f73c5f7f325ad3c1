"""`keras-ci2p cache`"""

import argparse
import sys

from keras_ci2p.cli.teacher import add_teacher_arguments

DESCRIPTION = """\
Run a trained, frozen compressor once over some augmented views of each training photo and over the central crop of each
validation photo, and store the latents. `keras-ci2p train OUT ...` then trains on them without the compressor.

OUT gets latents.json, photos.npz, compressor/ (a preset) and the latents in ArrayRecord files. After Ctrl-C or a crash,
the same command with --resume keeps the whole files and makes the others."""

EPILOG = """\
Of the recipe only the augmentation and the image size count; Mixup and CutMix are done on the latents in training."""


# What a cache is begun by, so that it cannot be chosen when views are added.
_BEGUN_BY = (
    "views",
    "compressor",
    "store",
    "recipe",
    "set",
    "recipe.image_size",
    "seed",
    "batch_size",
    "shard_records",
)


def add_parser(commands):
    parser = commands.add_parser(
        "cache",
        help="store a data set's latents, to train without the compressor",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="folder of photos as `train` takes it, or tfds:NAME")
    parser.add_argument("out", metavar="OUT", help="directory of the cache")
    parser.add_argument(
        "--views", type=int, default=4, metavar="K", help="augmented views of each training photo; default: 4"
    )
    parser.add_argument(
        "--more-views",
        type=int,
        metavar="K",
        help="add K further views of each training photo to the complete cache OUT, which may be trained on meanwhile; "
        "all else is as when it was begun, the teacher is to be given again",
    )
    parser.add_argument(
        "--compressor",
        metavar="NAME|PATH",
        help="a preset, a name such as bmshj2018-factorized-mse-5, a CompressAI checkpoint, or a training run, whose "
        "compressor is taken; default: bmshj2018-factorized-mse-5-photos",
    )
    parser.add_argument(
        "--store",
        choices=("float16", "rounded"),
        default="float16",
        help="16-bit floats (default), or integers as the compressor makes them, in an eighth of the space",
    )
    parser.add_argument(
        "--recipe", default="quick", metavar="NAME|FILE", help="whose augmentation to use, as in train; default: quick"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a number, such as augmentation.erasing=0",
    )
    parser.add_argument(
        "--image-size", dest="recipe.image_size", metavar="N", help="height and width, a multiple of 32; default: 256"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images encoded at a time; default: 32")
    parser.add_argument(
        "--shard-records", type=int, metavar="N", help="latents in a file; default: 1024, more for over 256 files"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="that decode and augment; default: one per core")
    parser.add_argument("--resume", action="store_true", help="go on with the cache in OUT")
    add_teacher_arguments(parser.add_argument_group("teacher"))
    parser.set_defaults(run=run, begun_by={name: parser.get_default(name) for name in _BEGUN_BY})


def run(args):
    from keras_ci2p.data.sources import open_data
    from keras_ci2p.training.cache_latents import cache_latents
    from keras_ci2p.training.distillation import load_teacher

    if args.more_views is None:
        settings, compressor = _begun_with(args)
    else:
        settings = compressor = None
        given = [name for name, default in args.begun_by.items() if getattr(args, name) != default]
        if given:
            flag = given[0].removeprefix("recipe.").replace("_", "-")
            raise ValueError(
                f"--more-views adds to {args.out} what it was begun with; only the teacher is to be given again. "
                f"Received also: --{flag}"
            )
    photos = open_data(args.data)
    teacher = None
    if args.teacher not in (None, "none"):
        teacher = load_teacher(args.teacher, photos, args.teacher_size, args.teacher_range, args.teacher_features)
    again = "" if args.more_views is not None else " with --resume"
    args.on_interrupt = f"The whole files are kept in {args.out}; the same command{again} goes on."
    cache = cache_latents(
        photos,
        args.out,
        compressor,
        settings,
        resume=args.resume,
        num_threads=args.threads,
        verbose=1 if sys.stdout.isatty() else 2,
        teacher=teacher,
        more_views=args.more_views,
    )
    counts = {split: cache.num_records(split) for split in ("train", "val")}
    total = sum(counts.values())
    print(
        f"{counts['train']} latents of {len(cache.split('train'))} training photos, {counts['val']} of validation: "
        f"{cache.num_bytes / 1e6:,.1f} MB, {cache.num_bytes / total:,.0f} bytes each. Cache: {args.out}"
    )


def _begun_with(args):
    """`(settings, compressor)` of a cache that is begun, or gone on with by the arguments that began it."""
    from keras_ci2p.cli.train import read_recipe_arguments
    from keras_ci2p.convert.compressai import read_compressor
    from keras_ci2p.training.recipes import CacheSettings

    recipe = read_recipe_arguments(args)
    settings = CacheSettings(
        views=args.views,
        image_size=recipe.image_size,
        augmentation=recipe.augmentation,
        store=args.store,
        seed=args.seed,
        batch_size=args.batch_size,
        shard_records=args.shard_records,
    )
    return settings, read_compressor(args.compressor or "bmshj2018-factorized-mse-5-photos")
