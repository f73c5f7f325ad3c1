"""A teacher for Animals-10, or for any folder with one subfolder of photos per class, in a few minutes and offline.

keras-ci2p data animals10 --from archive.zip                   # once; then:
python examples/animals10_teacher.py teacher.onnx
python examples/animals10_teacher.py teacher.onnx --data photos

EfficientNet-Lite2 as it was trained on ImageNet sees each training photo once or twice, and a linear probe learns the
classes from its features. The file is for `keras-ci2p train --teacher teacher.onnx`, and for ONNX Runtime or OpenVINO:
logits and three feature maps. Needs the extra `teacher`.
"""

import argparse
import os
import shutil
import time

# Nothing here trains by Keras.
os.environ.setdefault("KERAS_BACKEND", "numpy")

import numpy as np

from keras_ci2p.data import center_crop, open_data
from keras_ci2p.training import make_teacher, open_teacher


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", help="ONNX file to write")
    parser.add_argument("--data", default="tfds:animals10", help="folder or tfds:NAME; default: %(default)s")
    parser.add_argument("--image-size", type=int, default=192, help="a multiple of 32; default: 192")
    args = parser.parse_args()

    photos = open_data(args.data)
    shutil.copyfile(make_teacher("efficientnet-lite2", photos, image_size=args.image_size), args.dest)

    # As a student's training asks it: images to logits, in the order of the data's classes, and feature maps.
    teacher = open_teacher(args.dest, photos.class_names)
    val = photos.split("val")
    images = np.stack([center_crop(val.open(i), teacher.image_size) for i in range(min(16, len(val)))])
    start = time.perf_counter()
    logits, maps = teacher(images)
    seconds = time.perf_counter() - start
    correct = np.sum(logits.argmax(axis=1) == val.labels[: len(images)])
    print(f"{teacher.name}, {teacher.license}: {correct} of {len(images)}; {len(images) / seconds:.0f} images/s")
    for name, features in zip(teacher.feature_names, maps, strict=True):
        print(f"{name}: {features.shape[1:]}")


if __name__ == "__main__":
    main()
