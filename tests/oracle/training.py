"""CompressAI's training, as its `examples/train.py` does it: twenty steps with given noise.

`python tests/oracle/training.py` writes `tests/golden/compressor_steps.npz`, to which every backend is compared.
"""

import math

import numpy as np
import oracle
import torch
from compressor_steps import (
    AUXILIARY_LEARNING_RATE,
    CLIP_NORM,
    LEARNING_RATE,
    LMBDA,
    make_batches,
    make_compressor,
)
from golden_weights import GOLDEN

from keras_ci2p.convert import to_compressai

FILE = GOLDEN / "compressor_steps.npz"


def train():
    """dict of the numbers of each step, and the latents at the end."""
    ours = make_compressor()
    model = oracle.FactorizedPrior(ours.num_filters, ours.latent_channels)
    model.load_state_dict({key: torch.tensor(value) for key, value in to_compressai(ours).items()}, strict=True)
    bottleneck = model.entropy_bottleneck
    main = [p for name, p in model.named_parameters() if not name.endswith("quantiles")]
    optimizer = torch.optim.Adam(main, lr=LEARNING_RATE)
    auxiliary = torch.optim.Adam([bottleneck.quantiles], lr=AUXILIARY_LEARNING_RATE)
    numbers = {"cost": [], "bpp": [], "auxiliary": []}
    for images, noise in make_batches():
        x = torch.tensor(images).permute(0, 3, 1, 2) / 255
        # As CompressAI lays them out: a channel, then all its values.
        values = torch.tensor(noise.transpose(3, 0, 1, 2).reshape(noise.shape[-1], 1, -1))
        bottleneck.quantize = lambda inputs, mode, means=None, values=values: inputs + values
        outputs = model(x)
        del bottleneck.quantize
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        bpp = -outputs["likelihoods"]["y"].log().sum() / (math.log(2) * pixels)
        cost = LMBDA * 255**2 * torch.nn.functional.mse_loss(outputs["x_hat"], x) + bpp
        optimizer.zero_grad()
        auxiliary.zero_grad()
        cost.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        loss = model.aux_loss()
        numbers["auxiliary"].append(float(loss.detach()))
        optimizer.step()
        loss = model.aux_loss()
        loss.backward()
        auxiliary.step()
        numbers["cost"].append(float(cost.detach()))
        numbers["bpp"].append(float(bpp.detach()))
    with torch.no_grad():
        latents = oracle.channels_last(model.g_a(x))
    return {**numbers, "latents": latents, "quantiles": bottleneck.quantiles.detach().numpy()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: np.asarray(value, "float32") for name, value in train().items()})
    print(f"written: {FILE}")
