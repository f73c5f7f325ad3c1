"""CI2P in a KerasHub ViT: top-1 and speed before and after, both trained from random weights with the same budget.

    KERAS_BACKEND=jax python benchmarks/drop_in.py [--data PHOTOS --epochs 10 --image-size 128 --variant tiny]
    KERAS_BACKEND=jax python benchmarks/drop_in.py --speed-only --variant base --image-size 256 --batch-size 8
    KERAS_BACKEND=jax python benchmarks/drop_in.py --small        # seconds, noise for photos: only that it runs

A `ViTImageClassifier` with patches of 16x16 pixels, and what `replace_patch_embedding` makes of it: they begin with the
same random transformer and see the same photos in the same order, in as many epochs with the same recipe ("quick").
The compressor is trained and stays frozen; with `--compressor none` it is random and learns with the rest.

Images a second are those of `fit` and `predict` on one batch that stays in memory, without loading, after training, in
turns. The table is printed; benchmarks/results gets drop_in-BACKEND.json, or
drop_in_speed-BACKEND.json.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

import keras
import keras_hub
import numpy as np
from common import MEMORY_SETTINGS, add_data_argument, noise_photos, settings_of

from keras_ci2p import Compressor, utils
from keras_ci2p.backend import environment, set_random_seed
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data import image_folder, scan_folder
from keras_ci2p.hub import replace_patch_embedding
from keras_ci2p.models import VARIANTS
from keras_ci2p.training import RECIPES
from keras_ci2p.training.configs import DEFAULT_COMPRESSOR
from keras_ci2p.training.optim import make_optimizer

RESULTS = Path(__file__).parent / "results"
NAMES = ("16x16 patches", "CI2P")


def main():
    args = parse()
    set_random_seed(args.seed)
    sizes = {"epochs": args.epochs, "batch_size": args.batch_size, "image_size": args.image_size}
    recipe = RECIPES["quick"].override(sizes)
    with tempfile.TemporaryDirectory() as directory:
        manifest = scan_folder(noise_photos(Path(directory) / "photos") if args.small else args.data)
        models = make_models(args, len(manifest.class_names))
        results = {name: train(name, models[name], manifest, recipe, args) for name in NAMES}
        measure_speed(models, next(iter(images_of(manifest, "train", recipe, args.seed))), args, results)
    settings = {"settings": settings_of(args), **MEMORY_SETTINGS}
    result = {**settings, "recipe": recipe.to_dict(), **environment(), "models": results}
    print_table(result)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"drop_in{'_speed' if args.speed_only else ''}-{result['backend']}.json"
    utils.write_json(path, result)
    print(f"written: {path}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_argument(parser)
    parser.add_argument(
        "--compressor",
        default=DEFAULT_COMPRESSOR,
        help="preset, run or checkpoint; none for random weights that learn; default: %(default)s",
    )
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="tiny", help="sizes of the ViT; default: tiny")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--speed-only", action="store_true", help="without training: no top-1")
    parser.add_argument("--image-size", type=int, default=128, help="multiple of 32; default: 128")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of each measurement of speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.small:
        args.epochs, args.image_size, args.batch_size, args.steps, args.rounds = 2, 64, 4, 2, 2
    return args


def make_models(args, num_classes):
    """By name; both take batches of `image_folder`."""
    sizes = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 48} if args.small else VARIANTS[args.variant]
    vit = keras_hub.models.ViTBackbone(image_shape=(args.image_size, args.image_size, 3), patch_size=16, **sizes)
    before = keras_hub.models.ViTImageClassifier(backbone=vit, num_classes=num_classes)
    compressor = Compressor(quality=None, channels=(8, 12)) if args.small else read_compressor(args.compressor)
    after = replace_patch_embedding(before, compressor, freeze_compressor=compressor is not None)
    # Past KerasHub's `fit`, which would map its preprocessing over the data on the host.
    images = before.input
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    return {NAMES[0]: keras.Model(images, before(scaled)), NAMES[1]: keras.Model(after.input, after(after.input))}


def images_of(manifest, split, recipe, seed):
    augment = recipe.augmentation if split == "train" else None
    return image_folder(
        manifest,
        image_size=recipe.image_size,
        batch_size=recipe.batch_size,
        split=split,
        seed=seed,
        augment=augment,
        patch_size=32,
    )


def train(name, model, manifest, recipe, args):
    """What the model is and what the training gave; the model is trained, or compiled only with `args.speed_only`."""
    photos, val = (images_of(manifest, split, recipe, args.seed) for split in ("train", "val"))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    model.compile(make_optimizer(recipe, photos.steps_per_epoch), loss, metrics=["accuracy"])
    described = {
        "tokens": classifier_of(model).backbone.output.shape[1],
        "parameters": model.count_params(),
        "trained_parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
    }
    if args.speed_only:
        return described
    began = time.perf_counter()
    history = model.fit(
        photos.repeat(),
        steps_per_epoch=photos.steps_per_epoch,
        validation_data=val.repeat(),
        validation_steps=val.steps_per_epoch,
        epochs=recipe.epochs,
        shuffle=False,
        verbose=2,
    ).history
    seconds = time.perf_counter() - began
    print(f"{name}: {seconds:.0f} s", flush=True)
    top1 = [round(100 * value, 2) for value in history["val_accuracy"]]
    return {
        **described,
        "validation_photos": len(manifest.split("val").labels),
        "top1": top1[-1],
        "top1_by_epoch": top1,
        "loss_by_epoch": [round(value, 4) for value in history["loss"]],
        "seconds": round(seconds, 1),
    }


def classifier_of(model):
    return model.layers[-1]


def measure_speed(models, batch, args, results):
    """Adds images a second of training and prediction to the `results`, medians over rounds that take turns."""
    images, labels = (np.asarray(array) for array in batch)
    speeds = {name: {"fit": [], "predict": []} for name in models}
    for round_number in range(args.rounds + 1):
        for name, model in models.items():
            actions = {
                "fit": lambda model=model: model.fit(
                    again(images, labels), steps_per_epoch=args.steps, shuffle=False, verbose=0
                ),
                "predict": lambda model=model: model.predict(again(images), steps=args.steps, verbose=0),
            }
            for action, run in actions.items():
                began = time.perf_counter()
                run()
                seconds = time.perf_counter() - began
                # The first round compiles.
                if round_number:
                    speeds[name][action].append(args.steps * len(images) / seconds)
    for name, by_action in speeds.items():
        results[name]["images_per_second"] = {
            action: {"median": round(statistics.median(values), 1), "rounds": [round(value, 1) for value in values]}
            for action, values in by_action.items()
        }


def again(*arrays):
    """The same batch for ever."""
    while True:
        yield arrays


def print_table(result):
    settings = result["settings"]
    print(
        f"\n{result['backend']}, {result['cores']} cores, {settings['variant']}, {settings['image_size']} px, "
        f"{0 if settings['speed_only'] else settings['epochs']} epochs"
    )
    print(f"\n{'':<15}{'tokens':>8}{'parameters':>13}{'trained':>13}{'top-1':>9}{'fit/s':>9}{'predict/s':>11}")
    for name, row in result["models"].items():
        speed = row["images_per_second"]
        top1 = f"{row['top1']:.2f} %" if "top1" in row else "-"
        print(
            f"{name:<15}{row['tokens']:>8}{row['parameters']:>13,}{row['trained_parameters']:>13,}{top1:>10}"
            f"{speed['fit']['median']:>8}{speed['predict']['median']:>11}"
        )


if __name__ == "__main__":
    main()
