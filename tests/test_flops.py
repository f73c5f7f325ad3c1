"""`count_macs`: the published table, other counts of the same, and what cannot be counted."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT, count_macs, layers


@pytest.fixture
def without_weights():
    """Models that are made there need no memory."""
    with keras.StatelessScope(initialize_variables=False):
        yield


# G at 256, 384 and 512 px, from the paper's tool (mmengine) on the authors' code.
PUBLISHED = {
    "ViT-B/16": (ViT, "base", (23.127, 55.433, 107.003)),
    "CI2P-ViT": (CI2PViT, "base", (8.477, 19.284, 34.810)),
    "CI2P-ViT-ds": (CI2PViTDualScale, "base", (6.700, 15.603, 29.058)),
    "ViT, 8 layers": (ViT, "base_8", (13.053, 31.633, 61.874)),
    "CI2P-ViT, 8 layers": (CI2PViT, "base_8", (6.034, 13.716, 24.736)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table(name, without_weights):
    model_class, variant, published = PUBLISHED[name]
    counted = [count_macs(model_class((size, size, 3), variant=variant)).paper_flops for size in (256, 384, 512)]
    np.testing.assert_allclose(np.array(counted) / 1e9, published, rtol=2e-4)


def test_the_papers_reduction(without_weights):
    vit, base, dual = (count_macs(model()) for model in (ViT, CI2PViT, CI2PViTDualScale))
    assert round(100 * (1 - base.paper_flops / vit.paper_flops), 2) == 63.35
    assert round(100 * (1 - dual.paper_flops / vit.paper_flops), 2) == 71.03
    assert round(vit.macs / 1e9, 4) == 23.1022 and round(base.macs / 1e9, 4) == 8.4687
    assert round(vit.training / base.training, 2) == 3.49
    assert base.parts["compressor"].macs == base.parts["compressor"].training == 2_764_046_336
    assert list(base.parts) == ["compressor", "patch_generator", "transformer", "head"]
    assert list(dual.parts) == ["compressor", "patch_generator", "transformer", "merge", "head"]
    assert sum(part.macs for part in dual.parts.values()) == dual.macs


# PyTorch's own counter.
@pytest.mark.once
@pytest.mark.parametrize("model_class", [CI2PViT, CI2PViTDualScale, ViT])
def test_as_pytorch_counts(model_class, nano):
    from torch.utils.flop_counter import FlopCounterMode

    scales = {"early_dim": 16, "merge_at": 1} if model_class is CI2PViTDualScale else {}
    model = model_class((64, 96, 3), **nano, **scales)
    with FlopCounterMode(display=False) as counter:
        model(np.zeros((1, 64, 96, 3), "float32"))
    # So few tokens attend by plain products; PyTorch's counter does not see its fused attention on a CPU.
    assert count_macs(model).macs == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    "layer, macs",
    [
        (layers.SymmetricConv2D(5, 3, strides=2), 4 * 3 * 3 * 3 * 6 * 5),
        (layers.SymmetricDepthwiseConv2D(5), 8 * 6 * 5 * 5 * 6),
        (keras.layers.Conv2D(4, 3, groups=2, data_format="channels_last"), 6 * 4 * 3 * 3 * 3 * 4),
        (layers.SymmetricConv2DTranspose(5), 8 * 6 * 5 * 5 * 6 * 5),
        (keras.layers.Dense(7), 8 * 6 * 6 * 7),
        (layers.GDN(), 8 * 6 * 6 * 6),
        (layers.ResidualUnit(6), 8 * 6 * (6 * 3 + 3 * 3 * 3 * 3 + 3 * 6)),
        (layers.StridedResidualBlock(6), 4 * 3 * (6 * 6 * (9 + 9 + 1) + 6 * 6)),
        (layers.InvertedResidual(10, 24, 3), 8 * 6 * (6 * 24 + 9 * 24 + 24 * 10) + 2 * 24 * 8),
        (layers.EntropyBottleneck(), 8 * 6 * 6 * 2 * (3 + 9 + 9 + 9 + 3)),
        (layers.ImageNormalization(mean=[0] * 6, std=[1] * 6), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers(layer, macs, without_weights):
    layer.build((None, 8, 6, 6))
    layer.built = True
    assert count_macs(layer, (8, 6, 6)).macs == macs


def test_paper_flops_of_norms_and_averages():
    inputs = keras.Input((8, 6))
    x = keras.layers.LayerNormalization()(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling1D(data_format="channels_last", name="pool")(x)
    count = count_macs(keras.Model(inputs, x))
    assert count.macs == 0 and count.paper_flops == 8 * 6 * (5 + 2 + 1)
    assert count.parts["head"].paper_flops == 8 * 6


def test_compressors(without_weights):
    parts = count_macs(Compressor(quality=None, channels=(8, 12)), (64, 64, 3)).parts
    # Mirror images of each other.
    assert parts["analysis"].macs == parts["synthesis"].macs > 0
    assert parts["entropy_bottleneck"].macs == 4 * 4 * 12 * 66
    parts = count_macs(Compressor("mbt2018-mean", quality=None, channels=(8, 12)), (64, 64, 3)).parts
    assert parts["hyper_analysis"].macs == 16 * 9 * 12 * 8 + (4 + 1) * 25 * 8 * 8
    assert parts["hyper_synthesis"].macs == 25 * 8 * 12 + 4 * 25 * 12 * 18 + 16 * 9 * 18 * 24
    attention = Compressor("cheng2020-attn", quality=None, channels=(8, 8)).analysis
    assert {"strided_0", "residual_0", "attention_0", "conv"} < set(count_macs(attention, (64, 64, 3)).parts)


class Twice(keras.layers.Layer):
    """Calls a layer of its own twice, and then computes a product of two tensors."""

    def build(self, input_shape):
        self.dense = keras.layers.Dense(input_shape[-1])
        self.dense.build(input_shape)

    def call(self, x):
        x = self.dense(self.dense(x))
        return ops.matmul(x, ops.transpose(x, (0, 2, 1)))


def test_layers_are_looked_into():
    layer = Twice()
    layer.build((None, 4, 6))
    assert count_macs(layer, (4, 6)).macs == 2 * 4 * 6 * 6 + 4 * 4 * 6


class OwnProduct(keras.layers.Layer):
    """A dense layer by hand, of which nothing is known but its call."""

    def build(self, input_shape):
        self.matrix = self.add_weight(shape=(input_shape[-1], 3))

    def call(self, x):
        return ops.matmul(x, self.matrix)


class OwnScale(OwnProduct):
    def call(self, x):
        return x * ops.sum(self.matrix)


def built(layer, input_shape):
    layer.build(input_shape)
    layer.built = True
    return layer


def test_own_products():
    assert count_macs(built(OwnProduct(), (None, 5)), (5,)).training == 3 * 5 * 3


@pytest.mark.parametrize(
    "layer, message",
    [
        (built(OwnScale(name="scale"), (None, 5)), r"what scale \(OwnScale\) multiplies with its weights scale/"),
        (built(keras.layers.EinsumDense("ab,bc->ac", 3), (None, 5)), "cannot count the operation Einsum"),
        (built(keras.layers.GroupNormalization(1), (None, 5)), "GroupNormalization"),
        (keras.Sequential([keras.layers.Dense(3, name="last")]), "not built"),
    ],
)
def test_what_cannot_be_counted_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        count_macs(layer, (5,))
    # Keras is as it was.
    assert keras.layers.Dense(2)(np.zeros((1, 3), "float32")).shape == (1, 2)


def test_training_counts_what_is_trained(nano, without_weights):
    model = CI2PViT((64, 64, 3), **nano)
    parts = count_macs(model).parts
    assert all(parts[name].training == 3 * parts[name].macs for name in ("patch_generator", "transformer", "head"))
    model.freeze_compressor = False
    count = count_macs(model)
    assert count.training == 3 * count.macs
    model.freeze_compressor = True
    for layer in model.layers:
        layer.trainable = layer.name == "patch_generator"
    parts = count_macs(model).parts
    # Gradients pass the frozen head; in the blocks, the products of attention have two factors that depend on images.
    assert parts["head"].training == 2 * parts["head"].macs
    attention = 2 * 2 * 4 * 4 * 32
    assert parts["transformer"].training == 2 * parts["transformer"].macs + attention
    model.trainable = False
    count = count_macs(model)
    assert count.training == count.macs


def test_image_shape(nano, without_weights):
    any_size = CI2PViT((None, None, 3), **nano)
    assert count_macs(any_size, (64, 96, 3)).parts == count_macs(CI2PViT((64, 96, 3), **nano)).parts
    assert count_macs(any_size, (64, 96, 3)).image_shape == (64, 96, 3)
    with pytest.raises(ValueError, match="takes any size: give `image_shape`"):
        count_macs(any_size)
    with pytest.raises(ValueError, match="multiples of 32"):
        count_macs(any_size, (64, 65, 3))
    with pytest.raises(ValueError, match=r"takes inputs of the shape \(64, 64, 3\)"):
        count_macs(ViT((64, 64, 3), **nano), (96, 96, 3))


def test_counting_leaves_nothing_behind(nano, without_weights):
    model = CI2PViT((64, 64, 3), **nano)
    block = model.get_layer("block_0")
    calls = [len(layer._inbound_nodes) for layer in (model, block, block.qkv)]
    assert count_macs(model) == count_macs(model)
    assert [len(layer._inbound_nodes) for layer in (model, block, block.qkv)] == calls


def test_latent_classifier_and_precision(nano, without_weights):
    model = CI2PViT((64, 64, 3), dtype="mixed_bfloat16", **nano)
    count = count_macs(model)
    assert count == count_macs(CI2PViT((64, 64, 3), **nano))
    assert count_macs(model.latent_classifier).macs == count.macs - count.parts["compressor"].macs
