"""Our compressors against the real CompressAI; `run.sh` sets up the environment.

1. Regenerates the golden numbers of `tests/golden/compressai_zoo.npz` with CompressAI and compares them.
2. Sends compressors through `to_compressai` into CompressAI and compares what both compute; and back, bit for bit.
"""

import sys

import torch

# torchvision's CPU operators are not built for this torch: CompressAI imports them, and uses none.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import compressai  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from compressai.models import FactorizedPrior, FactorizedPriorReLU  # noqa: E402
from compressai.zoo.image import cfgs, model_architectures  # noqa: E402
from golden_weights import GOLDEN, compressai_state_dict  # noqa: E402

from keras_ci2p import Compressor  # noqa: E402
from keras_ci2p.convert import from_compressai, to_compressai  # noqa: E402
from keras_ci2p.convert.compressai import normalise_keys  # noqa: E402

REAL = {"bmshj2018-factorized": FactorizedPrior, "bmshj2018-factorized-relu": FactorizedPriorReLU}


def model_class(architecture):
    return REAL.get(architecture) or model_architectures[architecture]


ROUND_TRIPS = [("bmshj2018-factorized", 1), ("bmshj2018-factorized", 8), ("bmshj2018-factorized-relu", 5)]


def real_model(name):
    """CompressAI's model with the golden weights."""
    architecture, quality = name.rsplit("-", 1)
    model = model_class(architecture)(*cfgs[architecture][int(quality)]).eval()
    golden = compressai_state_dict(name)
    # CompressAI's versions name the bottleneck's parameters differently; its `load_state_dict` knows the older names.
    state = normalise_keys(model.state_dict())
    used = [key for key in state if key in golden and key.startswith(("g_a.", "g_s.", "entropy_bottleneck."))]
    state.update({key: torch.tensor(golden[key]) for key in used})
    model.load_state_dict(state, strict=True)
    return model


def difference(actual, expected):
    actual, expected = (np.asarray(keras.ops.convert_to_numpy(x), "float64") for x in (actual, expected))
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))


def restored_difference(images, expected, unclipped):
    """Of our images [0, 255] from CompressAI's [0, 1], beside the largest value of the latter before it was clipped.

    Random weights' pictures reach some hundred times white, and rounding errors grow with them.
    """
    largest = max(1, float(unclipped.abs().max()))
    return float(np.abs(images / 255 - channels_last(expected)).max()) / largest


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def golden_numbers():
    zoo = np.load(GOLDEN / "compressai_zoo.npz")
    images = torch.tensor(zoo["images"]).permute(0, 3, 1, 2) / 255
    worst = 0
    for name in sorted({key.split("/")[0] for key in zoo.files if "/" in key}):
        model = real_model(name)
        latent = model.g_a(images)
        numbers = {"latent": channels_last(latent)[..., ::4]}
        if f"{name}/reconstruction" in zoo.files:
            numbers["reconstruction"] = channels_last(model.g_s(torch.round(latent)))[:, ::8, ::8]
        if f"{name}/bpp" in zoo.files:
            outputs = model(images)
            likelihoods = outputs["likelihoods"]["y"]
            numbers["y_likelihood"] = channels_last(likelihoods)[..., ::4]
            numbers["bpp"] = -float(torch.log2(likelihoods).sum()) / images[0, 0].numel()
            numbers["aux_loss"] = float(model.aux_loss())
        differences = {key: difference(value, zoo[f"{name}/{key}"]) for key, value in numbers.items()}
        # CompressAI >= 1.2.5 takes the difference of sigmoids that are both nearly one: improbable values lose their
        # likelihood to float32 and count 30 bits. 1.2.4, which made the golden numbers, mirrored them first, as we do.
        worst = max(worst, *(value for key, value in differences.items() if key != "bpp"))
        assert differences.get("bpp", 0) < 0.02
        print(f"{name:28}", ", ".join(f"{key} {value:.1e}" for key, value in differences.items()), flush=True)
    return worst


@torch.no_grad()
def round_trip():
    worst = 0
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)).astype("uint8")
    for architecture, quality in (
        ("bmshj2018-factorized", 1),
        ("bmshj2018-factorized", 8),
        ("bmshj2018-factorized-relu", 5),
    ):
        keras.utils.set_random_seed(quality)
        ours = Compressor(architecture, quality=quality)
        state = to_compressai(ours)
        real = REAL[architecture](ours.num_filters, ours.latent_channels).eval()
        real.load_state_dict({key: torch.tensor(value) for key, value in state.items()}, strict=True)
        expected = real(torch.tensor(images).permute(0, 3, 1, 2) / 255)
        actual = ours(images)
        worst = max(
            worst,
            difference(actual["x_hat"] / 255, channels_last(expected["x_hat"])),
            difference(actual["likelihoods"], channels_last(expected["likelihoods"]["y"])),
        )
        back = from_compressai(real.state_dict(), quality=quality)
        for a, b in zip(back.weights, ours.weights, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
        real.update()
        strings = real.compress(torch.tensor(images).permute(0, 3, 1, 2) / 255)["strings"][0]
        print(
            f"{architecture}-{quality}: loads strictly, comes back bit for bit, compresses to {len(strings[0])} bytes"
        )
    return worst


def write_or_compare(file, golden, compare):
    """What the other scripts do by themselves: with `--write` they write their golden numbers."""
    if "--write" in sys.argv:
        np.savez_compressed(file, **golden())
        print(f"written: {file}")
    else:
        compare()


def main():
    """All comparisons; `AssertionError` where one fails."""
    print(f"compressai {compressai.__version__}, torch {torch.__version__}, numpy {np.__version__}")
    results = {"golden numbers": golden_numbers(), "round trip": round_trip()}
    for what, worst in results.items():
        print(f"{what}: largest relative difference {worst:.1e}")
        assert worst < 1e-4
