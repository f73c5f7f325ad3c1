"""Photos a second on one core, ours beside timm's Pillow pipeline with the same steps."""

import contextlib
import random
import time

import numpy as np
from input_common import AUGMENTATION, in_batches, spread
from PIL import Image, ImageFilter, ImageOps

from keras_ci2p.data import load_image
from keras_ci2p.data.transforms import FILL, augment


def ours(paths, size, rng):
    for some in in_batches(paths):
        np.stack([augment(load_image(path), size, rng, AUGMENTATION) for path in some], dtype="float32")


def measure_contestants(paths, size, repeats):
    """Photos a second of one core: `{name: {median, least, most}}`."""
    contestants = {"keras_ci2p": ours, **timm_contestants(size)}
    rates = {name: [] for name in contestants}
    for repeat in range(repeats):
        # Each begins in turn.
        names = list(contestants)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            random.seed(repeat)
            np.random.seed(repeat)
            began = time.process_time()
            contestants[name](paths, size, np.random.default_rng(repeat))
            rates[name].append(len(paths) / (time.process_time() - began))
    return {name: spread(values) for name, values in rates.items()}


def timm_contestants(size):
    """timm's Pillow pipeline with the recipe's steps; and without those that its loader may leave to a GPU."""
    try:
        import torch

        define_torchvision_operators(torch)
        import timm  # noqa: F401
        from torchvision import transforms
    except ImportError as error:
        print(f"Without timm, which is not installed whole ({error}): pip install timm torchvision")
        return {}
    from timm.data import auto_augment
    from timm.data.random_erasing import RandomErasing
    from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation

    torch.set_num_threads(1)
    # Pillow 13 refuses to keep no bit, which timm asks of it once in a few thousand photos.
    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **kwargs: posterize(
        image, max(1, bits), **kwargs
    )
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    pictures = [
        RandomResizedCropAndInterpolation(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bicubic"),
        transforms.RandomHorizontalFlip(0.5),
        auto_augment.rand_augment_transform("rand-m9-n2-mstd0.5-inc1", hparams),
        transforms.RandomGrayscale(0.2),
        sometimes(0.1, lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))),
        sometimes(0.2, ImageOps.solarize),
    ]
    erasing = RandomErasing(0.25, min_area=0.02, max_area=1 / 3, min_aspect=0.3, mode="pixel", device="cpu")

    def contestant(steps):
        steps = transforms.Compose(steps)

        def run(paths, size, rng):
            torch.manual_seed(0)
            for some in in_batches(paths):
                torch.stack([steps(Image.open(path).convert("RGB")) for path in some])

        return run

    return {
        "timm": contestant([*pictures, transforms.ToTensor(), erasing]),
        "timm without erasing, uint8": contestant([*pictures, MaybePILToTensor()]),
    }


def define_torchvision_operators(torch):
    """torchvision without its compiled part imports only where somebody has named these."""
    with contextlib.suppress(RuntimeError):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        define_torchvision_operators.kept = library


def sometimes(probability, function):
    return lambda image: function(image) if random.random() < probability else image
