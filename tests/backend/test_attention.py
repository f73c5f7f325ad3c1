"""Attention by plain products is the fused one."""

import keras
import numpy as np
import pytest

from keras_ci2p import backend

if keras.backend.backend() != "torch":
    pytest.skip("of torch alone", allow_module_level=True)

from keras_ci2p.backend import torch as torch_kernels


def attended(attention, arrays):
    """Result and gradients of `sum(result * weight)`."""
    import torch

    tensors = [torch.tensor(array, requires_grad=True) for array in arrays[:3]]
    result = attention(*tensors)
    (result * torch.tensor(arrays[3])).sum().backward()
    return [result.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def fused(query, key, value):
    return keras.ops.dot_product_attention(query, key, value)


@pytest.mark.parametrize("shape", [(2, 4, 3, 8), (1, 64, 2, 5), (3, 1, 1, 16)])
def test_short_attention(rng, shape):
    arrays = [rng.normal(size=shape).astype("float32") for _ in range(4)]
    for one, two in zip(attended(torch_kernels.short_attention, arrays), attended(fused, arrays), strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, atol=1e-6, rtol=1e-5)


def test_which_one_is_used(rng, monkeypatch):
    calls = []
    short = torch_kernels.short_attention
    monkeypatch.setattr(torch_kernels, "short_attention", lambda *args: calls.append(args[0].shape[1]) or short(*args))
    for tokens, dtype in ((64, "float32"), (65, "float32"), (4, "bfloat16"), (4, "float64")):
        x = keras.ops.convert_to_tensor(rng.normal(size=(1, tokens, 2, 4)), dtype)
        assert keras.backend.standardize_dtype(backend.attention(x, x, x).dtype) == dtype
    assert calls == [64]
