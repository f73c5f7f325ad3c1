"""Train CI2P-ViT on Animals-10, or on any folder with one subfolder of photos per class, in a number of minutes.

keras-ci2p data animals10 --from archive.zip                   # once; then:
python examples/train_animals10.py --minutes 60
python examples/train_animals10.py photos --minutes 10 --out my_animals --teacher efficientnet-lite2

Whatever ends it, the same command goes on where it was. At the end OUT/preset is the model, OUT/run/curves.png its
history, OUT/confusion.png what it mixes up.
"""

import argparse
import os
from pathlib import Path

# The framework is chosen as in Keras: torch, jax or tensorflow.
os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_ci2p import CI2PViT
from keras_ci2p.convert.compressai import read_compressor
from keras_ci2p.data import open_data
from keras_ci2p.plots import plot_confusion
from keras_ci2p.training import RECIPES, LatentCacheConfig, TrainConfig, cache_latents, evaluate, load_teacher, train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="tfds:animals10", help="folder or tfds:NAME; default: %(default)s")
    parser.add_argument("--out", type=Path, default="animals10_run", help="default: animals10_run")
    parser.add_argument("--minutes", type=float, default=60, help="of training, after the latents; default: 60")
    parser.add_argument(
        "--compressor",
        default="bmshj2018-factorized-mse-5-photos",
        help="name, run or checkpoint; default: %(default)s",
    )
    parser.add_argument(
        "--teacher",
        help="efficientnet-lite2 (extra `teacher`), or a file: imitate a trained classifier, which pays most",
    )
    parser.add_argument("--variant", default="tiny", help="tiny (default), small or base")
    parser.add_argument("--image-size", type=int, default=256, help="default: 256")
    parser.add_argument("--views", type=int, default=4, help="stored views of each photo; default: 4")
    args = parser.parse_args()
    recipe = RECIPES["quick"].override({"image_size": args.image_size})

    # The compressor is frozen, so it needs to see each view only once: what it makes of them is stored.
    latents = args.out / "latents"
    cache_settings = LatentCacheConfig(
        views=args.views, image_size=args.image_size, augmentation=recipe.augmentation, store="rounded"
    )
    photos = open_data(args.data)
    # A teacher says what it sees in these very views, and is not needed afterwards either.
    teacher = load_teacher(args.teacher, photos) if args.teacher else None
    cache_latents(photos, latents, read_compressor(args.compressor), cache_settings, resume=True, teacher=teacher)

    # The rest of the model learns from the latents, for as many epochs as fit into the minutes.
    settings = TrainConfig(str(latents), variant=args.variant, recipe=recipe, max_minutes=args.minutes)
    train(settings, args.out / "run", resume=True)

    # The weights of the best epoch, with the compressor: from photos to classes.
    model = CI2PViT.from_preset(args.out / "run" / "best")
    report = evaluate(model, photos)
    plot_confusion(args.out / "confusion.png", report)
    scores = {key: report[key] for key in ("top1", "top5", "images")}
    model.save_to_preset(args.out / "preset", metadata={"evaluation": scores})
    print(f"top-1 {report['top1']:.2%} of {report['images']} photos that it has not seen. Model: {args.out / 'preset'}")


if __name__ == "__main__":
    main()
