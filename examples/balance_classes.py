"""Let a classifier expect each class as often as any other, whatever the numbers of photos that it has learned from.

python examples/balance_classes.py animals10 photos --out balanced

Where photos of one class are few, a classifier that hesitates says the more common one. This shifts the biases of the
head, and nothing else, until the mean probability of each class over the training photos, each class weighing the
same, is equal: the biases that minimize the class-balanced cross-entropy (cf. Menon et al., "Long-tail learning via
logit adjustment", ICLR 2021). The validation photos are not looked at; `keras-ci2p evaluate balanced photos` then
tells what was gained and lost.
"""

import argparse
import os

# The framework is chosen as in Keras: torch, jax or tensorflow.
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from keras_ci2p import CI2PViT
from keras_ci2p.data import image_folder
from keras_ci2p.presets import open_preset


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def balanced_biases(logits, labels):
    """What to add to logits `(images, classes)` of images with such `labels`: float64 `(classes,)` with a sum of 0."""
    counts = np.bincount(labels, minlength=logits.shape[1])
    if not counts.all():
        raise ValueError("There is no training photo of some classes.")
    weights = 1 / (counts * len(counts))[labels]
    shift = np.zeros(len(counts))
    # At the minimum, by the gradient, the mean probabilities are those of the balanced labels.
    for _ in range(1000):
        mean = weights @ softmax(logits + shift)
        step = -np.log(mean * len(counts))
        shift += step
        if np.abs(step).max() < 1e-6:
            break
    return shift - shift.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="a CI2P-ViT: name or directory")
    parser.add_argument("photos", help="the folder that it has learned from")
    parser.add_argument("--out", default="balanced", help="preset to write; default: balanced")
    args = parser.parse_args()

    preset = open_preset(args.preset)
    model = CI2PViT.from_preset(preset)
    gives_logits = CI2PViT.from_preset(preset, activation=None)
    photos = image_folder(
        args.photos, split="train", augment=False, image_size=model.image_shape[:2], class_names=model.class_names
    )
    logits, labels = [], []
    progress = keras.utils.Progbar(len(photos), unit_name="batch")
    for images, targets in photos:
        logits.append(gives_logits.predict_on_batch(images))
        labels.append(np.argmax(targets, axis=1))
        progress.add(1)
    logits, labels = np.concatenate(logits).astype("float64"), np.concatenate(labels)

    shift = balanced_biases(logits, labels)
    for name, count, change in zip(model.class_names, np.bincount(labels), shift, strict=True):
        print(f"{name:<20}{count:>8,} photos, bias {change:+.3f}")
    model.head.bias.assign_add(shift.astype("float32"))
    model.save_to_preset(args.out, **preset.carried())
    print(f"Model: {args.out}")


if __name__ == "__main__":
    main()
