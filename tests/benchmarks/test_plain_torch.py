"""The hand-written PyTorch model of the benchmarks is the model that it stands for."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.convert import to_mmpretrain

pytestmark = pytest.mark.once


@pytest.fixture
def models(monkeypatch, nano):
    """`(ours, plain)` with the same weights, no two of them equal."""
    import torch

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import plain_torch

    compressor = Compressor(quality=None, channels=(8, 32))
    ours = CI2PViT((64, 96, 3), num_classes=5, compressor=compressor, drop_path_rate=0.0, **nano)
    rng = np.random.default_rng(0)
    for weight in ours.weights:
        value = keras.ops.convert_to_numpy(weight)
        weight.assign(value + np.abs(rng.normal(0, 0.05, value.shape)))
    plain = plain_torch.CI2PViT(5, **nano, drop_path_rate=0.0, compressor_channels=(8, 32))
    state = {key: torch.from_numpy(np.array(value)) for key, value in to_mmpretrain(ours).items()}
    plain.load_state_dict({key: value for key, value in state.items() if "_reparam." not in key})
    return ours, plain


@pytest.mark.parametrize("training", [False, True])
def test_same_logits_and_gradients(models, training):
    import torch

    ours, plain = models
    images = np.random.default_rng(1).uniform(0, 255, (3, 64, 96, 3)).astype("float32")
    plain.train(training)
    logits = plain(torch.from_numpy(images).permute(0, 3, 1, 2))
    own = ours(images, training=training).cpu()
    assert logits.shape == (3, 5) and float(logits.detach().std()) > 0.01
    np.testing.assert_allclose(own.detach().numpy(), logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    for result in (own, logits):
        torch.nn.functional.cross_entropy(result, torch.tensor([0, 1, 2])).backward()
    kernel = ours.patch_generator.refine.expand.kernel.value.grad.cpu()
    other = plain.backbone["to_patch_embedding"].patchReshape[0].expand_conv.conv.weight.grad
    np.testing.assert_allclose(kernel[0, 0].T, other[:, :, 0, 0], atol=1e-3 * float(other.abs().max()))
    assert all(p.grad is None for p in plain.backbone["to_patch_embedding"].compressai.parameters())
