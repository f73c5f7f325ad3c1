"""CI2P in a Vision Transformer of your own: a plain Keras ViT, trained with patches of 16x16 pixels and then with CI2P.

python examples/drop_in_patch_embedding.py photos
python examples/drop_in_patch_embedding.py photos --compressor bmshj2018-factorized-mse-5 --epochs 30

Only the layer that makes the tokens differs; CI2P makes a quarter as many. In a ViT of KerasHub,
`keras_ci2p.hub.replace_patch_embedding` does the same and keeps all other weights.
"""

import argparse
import math
import os
import time

# The framework is chosen as in Keras: torch, jax or tensorflow.
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from keras import layers

from keras_ci2p import Compressor
from keras_ci2p.data import image_folder, open_data
from keras_ci2p.layers import CI2PPatchEmbedding, PositionEmbedding

HIDDEN_DIM = 192
NUM_HEADS = 3


def vit(patch_embedding, image_size, num_classes, num_layers):
    """A Vision Transformer whose tokens `patch_embedding` makes, row by row, of RGB images in 0..255."""
    images = keras.Input((image_size, image_size, 3))
    x = patch_embedding(images)
    side = math.isqrt(x.shape[1])
    x = PositionEmbedding((side, side))(x)
    for _ in range(num_layers):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x += layers.MultiHeadAttention(NUM_HEADS, HIDDEN_DIM // NUM_HEADS)(y, y)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(4 * HIDDEN_DIM, activation="gelu")(y)
        x += layers.Dense(HIDDEN_DIM)(y)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(images, layers.Dense(num_classes)(x))


def convolution():
    """The usual patch embedding."""
    return keras.Sequential(
        [
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(HIDDEN_DIM, 16, strides=16),
            layers.Reshape((-1, HIDDEN_DIM)),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder with one subfolder per class")
    parser.add_argument("--compressor", help="name or directory; without one it begins with random weights and learns")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--layers", type=int, default=6, help="default: 6")
    parser.add_argument("--image-size", type=int, default=128, help="multiple of 32; default: 128")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")
    args = parser.parse_args()

    if args.compressor:
        ci2p = CI2PPatchEmbedding(HIDDEN_DIM, Compressor.from_preset(args.compressor).analysis)
    else:
        ci2p = CI2PPatchEmbedding(HIDDEN_DIM, freeze_compressor=False)
    for name, patch_embedding in (("16x16 patches", convolution()), ("CI2P", ci2p)):
        # The same photos in the same order, with the same augmentations.
        sizes = {"image_size": args.image_size, "batch_size": args.batch_size, "patch_size": 32}
        data = open_data(args.photos)
        train = image_folder(data, split="train", **sizes)
        val = image_folder(data, split="val", **sizes)

        model = vit(patch_embedding, args.image_size, len(train.class_names), args.layers)
        model.compile(
            keras.optimizers.AdamW(5e-4, weight_decay=0.05, global_clipnorm=1.0),
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            metrics=["accuracy"],
        )
        # The dataset shuffles.
        fit = {"steps_per_epoch": train.steps_per_epoch, "shuffle": False}
        batches = train.repeat()
        model.fit(batches, epochs=args.epochs - 1, **fit)
        began = time.perf_counter()
        model.fit(batches, initial_epoch=args.epochs - 1, epochs=args.epochs, **fit)
        images_per_second = train.steps_per_epoch * train.batch_size / (time.perf_counter() - began)
        accuracy = model.evaluate(val.repeat(), steps=val.steps_per_epoch, verbose=0, return_dict=True)["accuracy"]
        tokens = model.get_layer(index=2).input.shape[1]
        print(
            f"{name}: {tokens} tokens, {model.count_params():,} parameters, {accuracy:.2%} of the validation photos, "
            f"{images_per_second:.0f} images/s in the last epoch"
        )


if __name__ == "__main__":
    main()
