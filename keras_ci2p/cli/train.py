"""`keras-ci2p train`"""

import argparse
import sys
from dataclasses import fields

from keras_ci2p.cli.teacher import add_teacher_arguments

DESCRIPTION = """\
Train a classifier on a folder of photos: one subfolder per class, or folders train and val (and test) that hold these.
Without val, a fifth of each class is kept for validation,
chosen by the photos' contents alone.

RUN gets best/ and last/ (presets: the weights of the best validation top-1, and the last), history.csv, curves.png,
config.json, recipe.toml and checkpoints/. After Ctrl-C or a crash, the same command with --resume goes on after the
last epoch."""

EPILOG = """\
Every number of the recipe can be changed: --set augmentation.erasing=0.1 --set cosine_epochs=none; --show-recipe prints
them all, as a file that --recipe takes."""


def add_parser(commands):
    parser = commands.add_parser(
        "train",
        help="train a classifier on a folder of photos",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data", metavar="DATA", help="folder with one subfolder of photos per class, tfds:NAME, or a latent cache"
    )
    parser.add_argument("--out", metavar="RUN", help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN")

    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=("ci2p", "ci2p_dual", "vit"), default="ci2p", help="default: ci2p")
    model.add_argument("--variant", help="tiny (default), small, base, large or base_8")
    model.add_argument(
        "--init", metavar="RUN|PRESET", help="fine-tune these weights; the head is kept where the classes are the same"
    )
    model.add_argument(
        "--compressor",
        metavar="NAME|PATH",
        help="trained compressor to begin with: a preset, a name such as bmshj2018-factorized-mse-5, or a CompressAI "
        "checkpoint; none: random weights; default: that of --init or of the latents, else "
        "bmshj2018-factorized-mse-5-photos, trained on photos",
    )
    model.add_argument(
        "--freeze-compressor",
        action=argparse.BooleanOptionalAction,
        help="keep the compressor's weights; default: keep trained ones, train random ones",
    )

    add_teacher_arguments(parser.add_argument_group("teacher"))

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe",
        default="quick",
        metavar="NAME|FILE",
        help="quick (default), paper, paper_literal, finetune, or a .toml or .yaml file",
    )
    for flag, name, metavar, text in RECIPE_FLAGS:
        recipe.add_argument(flag, dest=f"recipe.{name}", metavar=metavar, help=text)
    recipe.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change any other number of the recipe"
    )
    recipe.add_argument(
        "--minutes",
        type=float,
        metavar="X",
        help="measure an epoch first and train as many as fit into X minutes, in place of --epochs",
    )
    recipe.add_argument("--show-recipe", action="store_true", help="print the recipe and do nothing else")
    recipe.add_argument(
        "--class-weights",
        metavar="balanced|CLASS=X,...",
        help="weigh classes in the loss; balanced: each class counts alike; a class that is missing has weight 1",
    )

    computing = parser.add_argument_group("computing")
    computing.add_argument(
        "--dtype", default="float32", help="Keras dtype policy: float32 (default), mixed_bfloat16, mixed_float16"
    )
    computing.add_argument(
        "--matmul-precision",
        choices=("float32", "tensorfloat32", "bfloat16"),
        help="of the products of float32 matrices, where the processor is faster with fewer bits: GPUs of NVIDIA, with "
        "torch also CPUs with AMX; default: the backend's own",
    )
    computing.add_argument(
        "--augment",
        choices=("host", "device"),
        default="host",
        help="augment while photos are loaded (default), or inside the compiled step, where a GPU waits for its data",
    )
    computing.add_argument(
        "--in-memory", action="store_true", help="with --augment device: keep the photos, so that each is decoded once"
    )
    computing.add_argument(
        "--devices",
        type=lambda text: int(text) if text.isdigit() else text,
        metavar="all|N",
        help="train on several devices; torch: start with torchrun; default: Keras's own choice of one",
    )
    computing.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    computing.add_argument(
        "--workers", type=int, default=0, dest="num_workers", metavar="N", help="processes that load photos; default: 0"
    )
    computing.add_argument(
        "--deterministic", action="store_true", help="the same result each time, slower (torch: one thread)"
    )
    computing.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard too")
    parser.set_defaults(run=run)


RECIPE_FLAGS = (
    ("--image-size", "image_size", "N", "height and width, a multiple of 32 (vit: of 16)"),
    ("--epochs", "epochs", "N", "the warm-up keeps its share of them"),
    ("--batch-size", "batch_size", "N", "over all devices"),
    ("--lr", "learning_rate", "X", "the highest"),
    ("--warmup-epochs", "warmup_epochs", "X", "rise of the learning rate"),
    ("--weight-decay", "weight_decay", "X", None),
    ("--label-smoothing", "label_smoothing", "X", None),
    ("--drop-path-rate", "drop_path_rate", "X", "stochastic depth of the last block"),
    ("--mixup", "mixup", "X", "parameter of its Beta distribution; 0: none"),
    ("--cutmix", "cutmix", "X", "the same"),
    ("--ema", "ema", "X", "momentum of the moving average of the weights, such as 0.999; 0: none"),
    ("--clip-norm", "clip_norm", "X|none", "largest norm of the gradients"),
    ("--accumulate", "accumulate", "N", "batches for one update of the weights"),
    ("--patience", "patience", "N|none", "stop after N epochs without a better validation top-1"),
)


def run(args):
    from keras_ci2p.presets import preset_of
    from keras_ci2p.training.recipes import TrainSettings
    from keras_ci2p.training.train import train

    recipe = read_recipe_arguments(args)
    given = [name for name in ("epochs", "warmup_epochs") if name in _recipe_values(args)]
    if args.minutes is not None and given:
        raise ValueError(f"--minutes chooses the epochs, and the warm-up with them. Received also: {', '.join(given)}")
    if args.show_recipe:
        print(recipe.to_toml(), end="")
        return
    if args.out is None:
        raise ValueError("--out RUN is missing: the directory that the run is written to.")
    read_otherwise = ("init", "class_weights", "recipe")
    names = [field.name for field in fields(TrainSettings) if field.name not in read_otherwise]
    settings = TrainSettings(
        **{name: getattr(args, name) for name in names},
        init=None if args.init is None else str(preset_of(args.init)),
        class_weights=_class_weights(args.class_weights),
        recipe=recipe,
    )
    args.on_interrupt = f"The whole epochs are kept in {args.out}; the same command with --resume goes on."
    train(settings, args.out, resume=args.resume, verbose=1 if sys.stdout.isatty() else 2)


def read_recipe_arguments(args):
    """The recipe that --recipe names, changed as the other arguments say."""
    from keras_ci2p.training.recipes import read_recipe

    return read_recipe(args.recipe).override(_recipe_values(args))


def _recipe_values(args):
    """Numbers of the recipe by name, those that the arguments give."""
    values = {
        name.removeprefix("recipe."): value
        for name, value in vars(args).items()
        if name.startswith("recipe.") and value is not None
    }
    for pair in args.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE. Received: {pair!r}")
        values[name] = value
    return values


def _class_weights(text):
    if text is None or text == "balanced":
        return text
    weights = {}
    for pair in text.split(","):
        name, _, value = pair.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--class-weights takes balanced or CLASS=NUMBER,... Received: {pair!r}") from error
    return weights
