"""Our bitstreams against the real CompressAI's, in both directions; `run.sh` sets up the environment.

1. The coder alone: CompressAI's C++ and ours on the same tables and integers, with escapes.
2. Compressors of all eight qualities on 24 images of many sizes: each reads what the other writes, and the bytes are
   the same wherever the integers are. (Latents of two frameworks can fall on two sides of a half.)
3. MS-SSIM against pytorch-msssim.

`python tests/oracle/bitstreams.py --write` writes `tests/golden/bitstreams.npz`, to which every backend is compared.
"""

import warnings

import keras
import numpy as np
import oracle
import torch
from compressai import ans
from compressai._CXX import pmf_to_quantized_cdf
from golden_weights import GOLDEN
from pytorch_msssim import ms_ssim as real_ms_ssim

from keras_ci2p import Compressor
from keras_ci2p.codec.ms_ssim import ms_ssim
from keras_ci2p.codec.rans import decode_symbols, encode_symbols
from keras_ci2p.codec.tables import EntropyTables, quantize_cdf
from keras_ci2p.convert import from_compressai, to_compressai

FILE = GOLDEN / "bitstreams.npz"
NAME = "bmshj2018-factorized-1"
# Of the last kernel of its analysis transform.
SCALE = 15
# Of crops of the golden image; those of CompressAI are multiples of 16.
SIZES = ((128, 192), (64, 80), (48, 16), (16, 32))
PAIRS = ((161, 175), (200, 333), (256, 256))
TABLES = ("_quantized_cdf", "_cdf_length", "_offset")


def random_probabilities(rng):
    """Float32 of 2..300 symbols, some of them zero, the tail's last."""
    values = rng.exponential(size=rng.integers(2, 300)) ** rng.uniform(0.5, 6)
    values[rng.random(len(values)) < rng.choice([0, 0.3])] = 0
    values[0] += 1e-3
    return (values / values.sum()).astype("float32")


def random_symbols(rng, tables, count):
    """`(symbols, indexes)`: mostly in the tables, some escaped, a few of them far away."""
    indexes = rng.integers(len(tables.offset), size=count).astype("int32")
    inside = rng.random(count) * (tables.cdf_length[indexes] - 2) + tables.offset[indexes]
    spread = np.where(rng.random(count) < 0.02, 2.0 ** rng.uniform(1, 26, count) * rng.choice([-1, 1], count), 0)
    return np.floor(inside + spread).astype("int32"), indexes


def coder_arguments(tables):
    rows = [row[:length] for row, length in zip(tables.quantized_cdf.tolist(), tables.cdf_length, strict=True)]
    return rows, tables.cdf_length.tolist(), tables.offset.tolist()


def real_encode(symbols, indexes, tables):
    return ans.RansEncoder().encode_with_indexes(symbols.tolist(), indexes.tolist(), *coder_arguments(tables))


def real_decode(string, indexes, tables):
    return ans.RansDecoder().decode_with_indexes(string, indexes.tolist(), *coder_arguments(tables))


def as_tables(rows, offsets):
    lengths = np.array([len(row) for row in rows], "int32")
    cdf = np.zeros((len(rows), lengths.max()), "int32")
    for values, row in zip(cdf, rows, strict=True):
        values[: len(row)] = row
    return EntropyTables(cdf, lengths, np.asarray(offsets, "int32"))


def compare_coders():
    """Four hundred tables, and two hundred sequences by them."""
    rng = np.random.default_rng(0)
    probabilities = [random_probabilities(rng) for _ in range(400)]
    rows = [pmf_to_quantized_cdf(values.tolist(), 16) for values in probabilities]
    for values, row in zip(probabilities, rows, strict=True):
        np.testing.assert_array_equal(quantize_cdf(values), row)
    tables = as_tables(rows, rng.integers(-100, 100, len(rows)))
    escaped = 0
    for count in (0, 1, 2, *rng.integers(10, 3000, 197)):
        symbols, indexes = random_symbols(rng, tables, count)
        slots = symbols - tables.offset[indexes]
        escaped += int(((slots < 0) | (slots >= tables.cdf_length[indexes] - 2)).sum())
        string = encode_symbols(symbols, indexes, tables)
        # CompressAI's buffer is too small for one or two operations.
        if count > 100:
            assert string == real_encode(symbols, indexes, tables)
        np.testing.assert_array_equal(decode_symbols(string, indexes, tables), symbols)
        np.testing.assert_array_equal(real_decode(string, indexes, tables), symbols)
    print(f"coder: 400 tables and 200 sequences are CompressAI's, with {escaped} escapes")


def spread_out(compressor, spread):
    """Random weights whose latents use over 50 symbols of each channel, and the escape."""
    last = compressor.analysis.stages[-1]
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), "uint8")
    deviation = float(np.std(keras.ops.convert_to_numpy(compressor.encode(images))))
    last.kernel.assign(last.kernel * (spread / deviation))
    bottleneck = compressor.entropy_bottleneck
    rng = np.random.default_rng(2)
    median = rng.normal(size=(bottleneck.quantiles.shape[0], 1, 1))
    bottleneck.quantiles.assign(median + np.array([-40, 0, 40]) * rng.uniform(0.7, 1, median.shape))
    bottleneck.matrices[0].assign(bottleneck.matrices[0] - 1.2)


@torch.no_grad()
def compare_models():
    rng = np.random.default_rng(3)
    streams = same = escapes = worst = 0
    for quality in range(1, 9):
        keras.utils.set_random_seed(quality)
        architecture = "bmshj2018-factorized-relu" if quality == 3 else "bmshj2018-factorized"
        ours = Compressor(architecture, quality=quality)
        spread_out(ours, 15)
        real = oracle.REAL[architecture](ours.num_filters, ours.latent_channels).eval()
        real.load_state_dict({key: torch.tensor(value) for key, value in to_compressai(ours).items()}, strict=True)
        assert not real.update(), "it has our tables already"
        assert min(ours.entropy_tables.cdf_length) > 52
        check_own_tables(real, ours)
        for _ in range(3):
            height, width = (int(side) for side in rng.integers(1, 150, 2))
            image = rng.integers(0, 256, (1, height, width, 3), "uint8")
            image = np.clip(image // 4 + 150 * np.sin(np.arange(width)[:, None] / 9) ** 2, 0, 255).astype("uint8")
            (symbols,), _ = ours.encode_images(image)
            slots = symbols - ours.entropy_tables.offset
            escapes += int(((slots < 0) | (slots >= ours.entropy_tables.cdf_length - 2)).sum())
            mine = ours.compress(image)
            padded = np.pad(
                image, [(0, 0), *((-side % 16 // 2, (-side % 16 + 1) // 2) for side in (height, width)), (0, 0)], "edge"
            )
            theirs = real.compress(torch.tensor(padded).permute(0, 3, 1, 2) / 255)
            assert tuple(theirs["shape"]) == mine["shape"]
            latents = real.g_a(torch.tensor(padded).permute(0, 3, 1, 2) / 255)
            medians = real.entropy_bottleneck._get_medians()[:, 0, 0][None, :, None, None]
            their_symbols = oracle.channels_last(real.entropy_bottleneck.quantize(latents, "symbols", medians))
            is_equal = np.array_equal(their_symbols, symbols)
            assert np.abs(their_symbols - symbols).max() <= 1
            assert not is_equal or theirs["strings"] == mine["strings"]
            streams, same = streams + 1, same + is_equal
            for strings in (mine["strings"], theirs["strings"]):
                unclipped = real.g_s(real.entropy_bottleneck.decompress(strings[0], mine["shape"]))
                actual, expected = ours.decompress(strings, mine["shape"]), real.decompress(strings, mine["shape"])
                worst = max(worst, oracle.restored_difference(actual, expected["x_hat"], unclipped))
    print(f"models: {streams} images, {same} with the same integers and bytes, each read by both; {escapes} escapes")
    print(f"  restored: largest relative difference {worst:.1e}")
    assert worst < 1e-5
    assert streams >= 20 and same > streams / 2 and escapes > 100


def check_own_tables(real, ours):
    """The tables that CompressAI's `update` makes of the same weights."""
    real.update(force=True)
    state = {key: value.numpy() for key, value in real.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = from_compressai(state)
    arrays = [state[f"entropy_bottleneck.{name}"] for name in TABLES]
    assert EntropyTables(*arrays).crc == back.entropy_tables.crc
    assert back.entropy_tables.is_close(ours.entropy_tables)
    different = int((back.entropy_tables.quantized_cdf != ours.entropy_tables.quantized_cdf).sum())
    print(f"  tables: {different} of {ours.entropy_tables.cdf_length.sum()} counts differ from CompressAI's")
    real.load_state_dict({key: torch.tensor(value) for key, value in to_compressai(ours).items()}, strict=True)


def image_pair(seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).cumsum(axis=1) % 256
    return image.astype("uint8"), np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype("uint8")


def similarities():
    values = []
    for seed, (height, width) in enumerate(PAIRS):
        tensors = [torch.tensor(x).permute(2, 0, 1)[None].float() for x in image_pair(seed, height, width)]
        values.append(float(real_ms_ssim(*tensors, data_range=255)))
    return values


@torch.no_grad()
def golden():
    """Small streams of CompressAI with seeded weights."""
    real = oracle.real_model(NAME)
    # So that the latents use the escape.
    real.g_a[6].weight.mul_(SCALE)
    real.update(force=True)
    bottleneck = real.entropy_bottleneck
    images = np.load(GOLDEN / "compressai_zoo.npz")["images"]
    numbers = {f"tables/{name}": getattr(bottleneck, name).numpy() for name in TABLES}
    for i, (height, width) in enumerate(SIZES):
        x = torch.tensor(images[:, :height, :width]).permute(0, 3, 1, 2) / 255
        compressed = real.compress(x)
        latents = real.g_a(x)
        medians = bottleneck._get_medians()[:, 0, 0][None, :, None, None]
        symbols = oracle.channels_last(bottleneck.quantize(latents, "symbols", medians))
        numbers[f"{i}/string"] = np.frombuffer(compressed["strings"][0][0], "uint8")
        numbers[f"{i}/symbols"] = symbols[0].astype("int16")
        x_hat = oracle.channels_last(real.decompress(**compressed)["x_hat"])[0]
        numbers[f"{i}/x_hat"] = x_hat[::4, ::4].astype("float32")
    rng = np.random.default_rng(4)
    probabilities = [random_probabilities(rng) for _ in range(40)]
    rows = [pmf_to_quantized_cdf(values.tolist(), 16) for values in probabilities]
    numbers["coder/probabilities"] = np.concatenate(probabilities)
    numbers["coder/lengths"] = np.array([len(values) for values in probabilities], "int32")
    numbers["coder/cdfs"] = np.concatenate(rows).astype("int32")
    numbers["coder/offsets"] = rng.integers(-100, 100, len(rows)).astype("int32")
    tables = as_tables(rows, numbers["coder/offsets"])
    numbers["coder/symbols"], numbers["coder/indexes"] = random_symbols(rng, tables, 3000)
    string = real_encode(numbers["coder/symbols"], numbers["coder/indexes"], tables)
    numbers["coder/string"] = np.frombuffer(string, "uint8")
    numbers["ms_ssim"] = np.array(similarities())
    return numbers


def main():
    """All comparisons; `AssertionError` where one fails."""
    compare_coders()
    compare_models()
    for seed, ((height, width), value) in enumerate(
        zip([(161, 175), (200, 333), (256, 256)], similarities(), strict=True)
    ):
        assert abs(ms_ssim(*image_pair(seed, height, width)) - value) < 1e-5
    stored = np.load(FILE)
    for name, value in golden().items():
        np.testing.assert_allclose(value, stored[name], atol=1e-4 if name.endswith("x_hat") else 1e-5, err_msg=name)
    print("golden numbers: the same; MS-SSIM: that of pytorch-msssim")


if __name__ == "__main__":
    oracle.write_or_compare(FILE, golden, main)
