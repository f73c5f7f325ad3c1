"""CompressAI's training, as its `examples/train.py` does it: first steps with given noise.

`python tests/oracle/training.py` writes `tests/golden/compressor_steps.npz`, to which every backend is compared.
"""

import numpy as np
import oracle
import torch
from compressai.losses import RateDistortionLoss
from compressor_steps import AUXILIARY_LEARNING_RATE, CASES, CLIP_NORM, LEARNING_RATE, make_batches, make_compressor
from golden_weights import GOLDEN

from keras_ci2p.convert import to_compressai

FILE = GOLDEN / "compressor_steps.npz"


def with_noise(entropy_model, values):
    """Lets a model of CompressAI take given noise in the place of its own."""
    entropy_model.quantize = lambda inputs, mode, means=None: inputs + values


def train(case):
    """dict of the numbers of each step, and the latents at the end."""
    ours = make_compressor(case)
    model = oracle.model_class(case.architecture)(ours.num_filters, ours.latent_channels)
    model.load_state_dict({key: torch.tensor(value) for key, value in to_compressai(ours).items()}, strict=True)
    bottleneck = model.entropy_bottleneck
    criterion = RateDistortionLoss(case.lmbda, case.metric)
    main = [p for name, p in model.named_parameters() if not name.endswith("quantiles")]
    optimizer = torch.optim.Adam(main, lr=LEARNING_RATE)
    auxiliary = torch.optim.Adam([bottleneck.quantiles], lr=AUXILIARY_LEARNING_RATE)
    numbers = {"cost": [], "bpp": [], "auxiliary": []}
    for batch in make_batches(case):
        x = torch.tensor(batch["images"]).permute(0, 3, 1, 2) / 255
        noises = [batch["noise"]]
        if "hyper_noise" in batch:
            with_noise(model.gaussian_conditional, torch.tensor(noises.pop()).permute(0, 3, 1, 2))
            noises = [batch["hyper_noise"]]
        # As CompressAI lays them out: a channel, then all its values.
        with_noise(bottleneck, torch.tensor(noises[0].transpose(3, 0, 1, 2).reshape(noises[0].shape[-1], 1, -1)))
        losses = criterion(model(x), x)
        optimizer.zero_grad()
        auxiliary.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        loss = model.aux_loss()
        numbers["auxiliary"].append(float(loss.detach()))
        optimizer.step()
        loss = model.aux_loss()
        loss.backward()
        auxiliary.step()
        numbers["cost"].append(float(losses["loss"].detach()))
        numbers["bpp"].append(float(losses["bpp_loss"].detach()))
    with torch.no_grad():
        latents = oracle.channels_last(model.g_a(x))[:, ::3, ::3]
    return {**numbers, "latents": latents, "quantiles": bottleneck.quantiles.detach().numpy()}


if __name__ == "__main__":
    numbers = {
        f"{case.name}/{key}": np.asarray(value, "float32") for case in CASES for key, value in train(case).items()
    }
    np.savez_compressed(FILE, **numbers)
    print(f"written: {FILE}")
