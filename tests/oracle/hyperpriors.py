"""Our hyperpriors against the real CompressAI's; `run.sh` sets up the environment.

1. Compressors of all eight qualities go into CompressAI and come back bit for bit; both compute the same.
2. On images of many sizes each reads what the other writes, and the bytes are the same wherever the integers are. For
   that the scales and means come from CompressAI's network in both: two frameworks' floats may differ in a scale, which
   then makes the other's strings unreadable. How often ours gives the same bytes by itself is counted.
3. Our integers for files against CompressAI's floats.

`python tests/oracle/hyperpriors.py --write` writes `tests/golden/hyperpriors.npz`, to which every backend is compared.
"""

import warnings

import bitstreams
import keras
import numpy as np
import oracle
import torch
from golden_weights import GOLDEN, hyperprior_state_dict
from training import with_noise

from keras_ci2p import Compressor
from keras_ci2p.codec import ImageCodec
from keras_ci2p.codec.tables import SCALES, EntropyTables, scale_indexes
from keras_ci2p.convert import from_compressai, to_compressai

FILE = GOLDEN / "hyperpriors.npz"
ARCHITECTURES = ("bmshj2018-hyperprior", "mbt2018-mean")
CHANNELS = (8, 12)
# Of crops of the golden image.
SIZES = ((64, 64), (128, 192))
to_numpy = keras.ops.convert_to_numpy


def channels_first(x):
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def real_model(ours):
    """CompressAI's model with the weights and tables of ours."""
    model = oracle.model_class(ours.architecture)(ours.num_filters, ours.latent_channels).eval()
    state = {key: torch.tensor(value) for key, value in to_compressai(ours).items()}
    model.load_state_dict(state, strict=True)
    return model


def real_synthesis(model):
    """CompressAI's hyper-synthesis in the place of ours."""
    medians = model.entropy_bottleneck._get_medians()[:, 0, 0].numpy()

    def synthesis(symbols):
        hyper_latents = (symbols + medians).astype("float32")
        return oracle.channels_last(model.h_s(channels_first(hyper_latents[None])))[0]

    return synthesis


def real_symbols(model, x):
    """The integers that CompressAI codes: of latents, and of hyper-latents."""
    y = model.g_a(x)
    z = model.h_a(y if "Mean" in type(model).__name__ else torch.abs(y))
    medians = model.entropy_bottleneck._get_medians()[:, 0, 0][None, :, None, None]
    z_symbols = model.entropy_bottleneck.quantize(z, "symbols", medians)
    parameters = model.h_s(z_symbols + medians)
    means = parameters.chunk(2, 1)[1] if parameters.shape[1] > y.shape[1] else None
    symbols = model.gaussian_conditional.quantize(y, "symbols", means)
    return tuple(oracle.channels_last(some) for some in (symbols, z_symbols))


def spread_out(compressor):
    """Random weights whose latents and hyper-latents use many symbols, scales and the escape."""
    bitstreams.spread_out(compressor, 15)
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 128, 3), "uint8")
    last = compressor.hyper_analysis.stages[-1]
    deviation = float(np.std(to_numpy(compressor.hyper_analysis(compressor.encode(images)))))
    last.kernel.assign(last.kernel * (12 / deviation))
    last = next(layer for layer in compressor.hyper_synthesis.stages if layer.name == "conv_2")
    bias = np.random.default_rng(5).normal(0, 4, last.bias.shape)
    # The scales are those of the latents, mostly.
    bias[: compressor.latent_channels] = np.exp(bias[: compressor.latent_channels] / 3 + 2)
    last.kernel.assign(3 * last.kernel)
    last.bias.assign(bias)


@torch.no_grad()
def compare_models(architecture):
    rng = np.random.default_rng(3)
    counts = dict.fromkeys(("images", "same integers", "same bytes by ourselves", "escapes"), 0)
    worst = {"forward": 0.0, "restored": 0.0, "integers": 0.0}
    flipped = total = rounded = 0
    for quality in range(1, 9):
        keras.utils.set_random_seed(quality)
        ours = Compressor(architecture, quality=quality)
        spread_out(ours)
        real = real_model(ours)
        assert not real.update(), "it has our tables already"
        back = from_compressai(real.state_dict(), quality=quality)
        for a, b in zip(back.weights, ours.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
        check_own_tables(real)
        real = real_model(ours)
        worst["forward"] = max(worst["forward"], compare_forward(real, ours))
        synthesis = real_synthesis(real)
        for _ in range(3):
            height, width = (int(side) for side in rng.integers(1, 200, 2))
            image = rng.integers(0, 256, (1, height, width, 3), "uint8")
            image = np.clip(image // 4 + 150 * np.sin(np.arange(width)[:, None] / 9) ** 2, 0, 255).astype("uint8")
            padding = [(-side % 64 // 2, (-side % 64 + 1) // 2) for side in (height, width)]
            x = channels_first(np.pad(image, [(0, 0), *padding, (0, 0)], "edge")) / 255
            symbols, strings = ours.encode_images(image, synthesis)
            theirs, their_symbols = real.compress(x), real_symbols(real, x)
            shape = symbols[1].shape[1:3]
            assert tuple(theirs["shape"]) == shape
            is_equal = all(np.array_equal(*pair) for pair in zip(symbols, their_symbols, strict=True))
            assert np.abs(their_symbols[1] - symbols[1]).max() <= 1
            assert not is_equal or theirs["strings"] == strings
            if np.array_equal(symbols[1], their_symbols[1]):
                # What lies on a half, the two frameworks may round to either side.
                assert np.abs(their_symbols[0] - symbols[0]).max() <= 1
                rounded += int((their_symbols[0] != symbols[0]).sum())
            for some in (strings, theirs["strings"]):
                _, latents = ours.decode_strings(some, shape, synthesis)
                restored, expected = ours.restore_images(latents), real.decompress(some, shape)["x_hat"]
                error = oracle.restored_difference(restored, expected, real.g_s(channels_first(latents)))
                worst["restored"] = max(worst["restored"], error)
            exact, floats = ours.integer_synthesis()(symbols[1][0]), synthesis(symbols[1][0])
            indexes = [scale_indexes(some[..., : ours.latent_channels]) for some in (exact, floats)]
            # A Gaussian table is as long to one side of the mean as to the other.
            counts["escapes"] += int((np.abs(symbols[0][0]) > -ours.gaussian_tables.offset[indexes[1]]).sum())
            counts["images"] += 1
            counts["same integers"] += is_equal
            counts["same bytes by ourselves"] += ours.compress(image)["strings"] == theirs["strings"]
            if architecture == "bmshj2018-hyperprior":
                exact = np.maximum(exact, 0)
            worst["integers"] = max(worst["integers"], oracle.difference(exact, floats))
            flipped += int((indexes[0] != indexes[1]).sum())
            total += indexes[0].size
    print(f"{architecture}:", ", ".join(f"{value} {name}" for name, value in counts.items()))
    print(
        f"  largest relative difference: forward {worst['forward']:.1e}, restored {worst['restored']:.1e}, integers "
        f"{worst['integers']:.1e}; another table for {flipped} of {total} latents; {rounded} rounded to the other side"
    )
    assert counts["same integers"] > counts["images"] / 8 and counts["escapes"] > 100
    assert rounded < 1e-4 * total
    # Where scales are small, likelihoods show ten times the differences of the latents.
    # Without AVX-512, CompressAI's floats are 6e-6 from the integers.
    assert worst["forward"] < 1e-3 and worst["restored"] < 1e-5 and worst["integers"] < 3e-5
    assert flipped < 1e-3 * total


def check_own_tables(real):
    """The tables that CompressAI's `update` makes of the same weights."""
    real.update(force=True)
    state = {key: value.numpy() for key, value in real.state_dict().items()}
    np.testing.assert_allclose(state["gaussian_conditional.scale_table"], SCALES, rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = from_compressai(state)
    for part, tables in (("entropy_bottleneck", back.entropy_tables), ("gaussian_conditional", back.gaussian_tables)):
        assert EntropyTables(*(state[f"{part}.{name}"] for name in bitstreams.TABLES)).crc == tables.crc
    again = to_compressai(back)
    assert all(np.array_equal(again[key], state[key]) for key in state if key.endswith(bitstreams.TABLES))


@torch.no_grad()
def compare_forward(real, ours):
    """The pass of training, with given noise: where nothing is rounded, no difference is large."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 64, 128, 3)).astype("uint8")
    shapes = (1, 4, 8, ours.latent_channels), (1, 1, 2, ours.num_filters)
    noise, hyper_noise = (rng.uniform(-0.5, 0.5, shape).astype("float32") for shape in shapes)
    actual = ours({"images": images, "noise": noise, "hyper_noise": hyper_noise}, training=True)
    with_noise(real.gaussian_conditional, channels_first(noise))
    with_noise(real.entropy_bottleneck, channels_first(hyper_noise).reshape(ours.num_filters, 1, -1))
    expected = real(channels_first(images) / 255)
    del real.gaussian_conditional.quantize, real.entropy_bottleneck.quantize
    pairs = [(actual["x_hat"] / 255, expected["x_hat"])]
    pairs += [(actual["likelihoods"], expected["likelihoods"]["y"])]
    pairs += [(actual["hyper_likelihoods"], expected["likelihoods"]["z"])]
    return max(oracle.difference(a, oracle.channels_last(b)) for a, b in pairs)


@torch.no_grad()
def golden():
    """What CompressAI computes and writes with golden weights, and a file of ours."""
    images = np.load(GOLDEN / "compressai_zoo.npz")["images"]
    numbers = {}
    for architecture in ARCHITECTURES:
        ours = Compressor(architecture, quality=None, channels=CHANNELS)
        ours = from_compressai(hyperprior_state_dict(to_compressai(ours)))
        real = real_model(ours)
        real.update(force=True)
        x = channels_first(images) / 255
        rng = np.random.default_rng(9)
        # For the second pass, which is training's.
        noises = {"y": (1, 12, 8, 12), "z": (1, 8, 2, 3)}
        noises = {key: torch.tensor(rng.uniform(-0.5, 0.5, shape).astype("float32")) for key, shape in noises.items()}
        for mode in ("evaluation", "training"):
            if mode == "training":
                with_noise(real.gaussian_conditional, noises["y"])
                with_noise(real.entropy_bottleneck, noises["z"].reshape(CHANNELS[0], 1, -1))
            outputs = real(x)
            at = f"{architecture}/{mode}"
            for key, value in outputs["likelihoods"].items():
                numbers[f"{at}/{key}"] = oracle.channels_last(value)
                numbers[f"{at}/noise/{key}"] = oracle.channels_last(noises[key])
            numbers[f"{at}/x_hat"] = oracle.channels_last(outputs["x_hat"])[:, ::8, ::8]
            bits = -sum(float(torch.log2(value).sum()) for value in outputs["likelihoods"].values())
            numbers[f"{at}/bpp"] = np.float32(bits / x[0, 0].numel())
        del real.gaussian_conditional.quantize, real.entropy_bottleneck.quantize
        numbers[f"{architecture}/aux_loss"] = np.float32(float(real.aux_loss()))
        for name in bitstreams.TABLES:
            numbers[f"{architecture}/entropy_bottleneck.{name}"] = getattr(real.entropy_bottleneck, name).numpy()
            # They are the same for all weights.
            numbers[f"gaussian_conditional.{name}"] = getattr(real.gaussian_conditional, name).numpy()
        for i, (height, width) in enumerate(SIZES):
            x = channels_first(images[:, :height, :width]) / 255
            compressed = real.compress(x)
            symbols = real_symbols(real, x)
            scales = real_synthesis(real)(symbols[1][0])[..., :12]
            # Far enough from the next table for every framework's floats.
            margin = np.abs(np.log(np.maximum(scales, 1e-3)[..., None] / SCALES)).min()
            tables = len(np.unique(scale_indexes(scales)))
            print(
                f"{architecture} {height} x {width}: margin {margin:.1e}, {tables} tables, of symbols up to "
                f"{np.abs(symbols[0]).max()} and {np.abs(symbols[1]).max()}"
            )
            at = f"{architecture}/{i}"
            for name, strings, some in zip("yz", compressed["strings"], symbols, strict=True):
                numbers[f"{at}/{name}/string"] = np.frombuffer(strings[0], "uint8")
                numbers[f"{at}/{name}/symbols"] = some[0].astype("int16")
            x_hat = oracle.channels_last(real.decompress(**compressed)["x_hat"])[0]
            numbers[f"{at}/x_hat"] = x_hat[::4, ::4].astype("float32")
        codec = ImageCodec(ours, "golden")
        content = codec.compress(images[0, :100, :150])
        numbers[f"{architecture}/ci2p"] = np.frombuffer(content, "uint8")
        numbers[f"{architecture}/ci2p/latents"] = codec.latents(content)[0]
    return numbers


def main():
    """All comparisons; `AssertionError` where one fails."""
    for architecture in ARCHITECTURES:
        compare_models(architecture)
    stored = np.load(FILE)
    for name, value in golden().items():
        # Processors add in other orders: floats are compared beside the largest, as those of both frameworks above;
        # integers and bytes are equal. Random weights' pictures reach a hundred before they are clipped to 1.
        largest = np.abs(stored[name]).max() if stored[name].dtype.kind == "f" else 0
        is_clipped = name.endswith("/x_hat") and largest == 1
        atol = 1e-2 if is_clipped else 1e-3 * largest
        np.testing.assert_allclose(value, stored[name], rtol=0, atol=atol, err_msg=name)
    print("golden numbers of hyperpriors: the same")


if __name__ == "__main__":
    oracle.write_or_compare(FILE, golden, main)
