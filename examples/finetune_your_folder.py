"""Fine-tune a trained CI2P-ViT on your own photos, one subfolder per class, with Keras's `compile` and `fit`.

python examples/finetune_your_folder.py photos --out my_model
python examples/finetune_your_folder.py photos --preset animals10_run/preset --epochs 5

`keras-ci2p train photos --init animals10 --recipe finetune --out run` does the same and can be interrupted; with
`--teacher efficientnet-lite2` it also imitates a model that has seen all of ImageNet, which pays most where photos are
few.
"""

import argparse
import os

# The framework is chosen as in Keras: torch, jax or tensorflow.
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from keras_ci2p import CI2PViT
from keras_ci2p.data import image_folder, open_data
from keras_ci2p.training import RECIPES
from keras_ci2p.training.optim import make_optimizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder with one subfolder per class")
    parser.add_argument("--preset", default="animals10", help="name or directory; default: animals10")
    parser.add_argument("--out", default="finetuned", help="preset to write; default: finetuned")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--image-size", type=int, default=256, help="height and width; default: 256")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")
    args = parser.parse_args()
    recipe = RECIPES["finetune"].override({"epochs": args.epochs})

    # A fifth of each class is for validation, chosen by the photos' contents.
    sizes = {"image_size": args.image_size, "batch_size": args.batch_size, "patch_size": 32}
    data = open_data(args.photos)
    train = image_folder(data, split="train", augment=recipe.augmentation, **sizes)
    val = image_folder(data, split="val", **sizes)

    # All weights of the preset but the head's, which is new; the compressor stays frozen.
    model = CI2PViT.from_preset(
        args.preset,
        num_classes=len(train.class_names),
        class_names=list(train.class_names),
        activation=None,  # logits, as the loss takes them, whatever the preset gives
        image_shape=(args.image_size, args.image_size, 3),
    )
    model.compile(
        make_optimizer(recipe, train.steps_per_epoch),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    history = model.fit(
        train.repeat(),
        steps_per_epoch=train.steps_per_epoch,
        validation_data=val.repeat(),
        validation_steps=val.steps_per_epoch,
        epochs=recipe.epochs,
        shuffle=False,  # the dataset does it
        callbacks=[keras.callbacks.EarlyStopping("val_accuracy", patience=5, mode="max", restore_best_weights=True)],
    ).history

    model.save_to_preset(args.out)
    print(f"{max(history['val_accuracy']):.2%} of the validation photos. Model: {args.out}")
    print(f"Next: keras-ci2p predict {args.out} PICTURE")


if __name__ == "__main__":
    main()
