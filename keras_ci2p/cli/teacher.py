"""The arguments that name a teacher."""

import argparse


def add_teacher_arguments(group):
    """Adds --teacher and what else is to be said of it."""
    group.add_argument(
        "--teacher",
        metavar="NAME|PATH",
        help="learn from a trained classifier too: efficientnet-lite2 (ImageNet's features and a probe that is fitted "
        "to DATA; extra teacher), an .onnx, OpenVINO's .xml or .keras file, a preset or training run; none: not even "
        "that of a latent cache",
    )
    group.add_argument(
        "--teacher-size", type=int, metavar="N", help="height and width of its images; default: as its file says"
    )
    group.add_argument(
        "--teacher-range",
        type=_pair,
        metavar="LOW,HIGH",
        help="what black and white are for it, such as --teacher-range=-1,1; default: as its file says",
    )
    group.add_argument(
        "--teacher-features",
        type=lambda text: tuple(name for name in text.split(",") if name),
        metavar="NAME,...",
        help="its layers, or its file's outputs, whose feature maps are learned, the finest first, '' for none; "
        "default: outputs called features_*",
    )


def _pair(text):
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"two numbers LOW,HIGH are needed, such as 0,1. Received: {text!r}") from error
    return low, high
