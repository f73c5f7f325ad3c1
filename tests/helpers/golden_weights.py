"""Reproducible weights: each tensor is a function of its state-dict key, its PyTorch shape and the seed.

The files in `golden/` hold what the paper's PyTorch code computes with them, so that the tests need no checkpoint.
"""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
PEDESTAL = 2.0**-36
NO_WEIGHTS = ("num_batches_tracked", "pedestal", "bound")


def golden_weight(key, shape, seed=1):
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_mean":
        # The reference numbers were computed with running means of zero.
        weight = np.zeros(shape)
    elif leaf == "running_var":
        weight = rng.uniform(0.5, 1.5, shape)
    elif leaf == "beta":
        weight = np.sqrt(rng.uniform(0.5, 1.5, shape) + PEDESTAL)
    elif leaf == "gamma":
        weight = np.sqrt(0.1 * np.eye(shape[0]) + 0.02 * rng.random(shape) + PEDESTAL)
        u = rng.random(shape)
        weight = np.where(u < 0.01, 0.0, np.where(u < 0.02, -0.05, weight))
    elif leaf == "quantiles":
        median = 0.3 * rng.standard_normal((*shape[:2], 1))
        weight = np.concatenate([np.full_like(median, -10.0), median, np.full_like(median, 10.0)], -1)
    elif leaf.startswith("_matrix"):
        weight = 0.5 + 0.3 * rng.standard_normal(shape)
    elif leaf.startswith("_factor"):
        weight = 0.1 * rng.standard_normal(shape)
    elif leaf.startswith("_bias"):
        weight = rng.uniform(-0.5, 0.5, shape)
    elif leaf == "pos_embed":
        weight = 0.3 * rng.standard_normal(shape)
    elif leaf == "bias":
        weight = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        weight = rng.uniform(0.5, 1.5, shape)
    else:
        weight = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
    return weight.astype("float32")


def golden_state_dict(name):
    """The state dict of the reference model `name`: "base_gdn", "dual_scale" or "vit_b16"."""
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())[name]
    return {
        key: np.zeros(shape, "float32") if key.endswith(NO_WEIGHTS) else golden_weight(key, shape)
        for key, shape in shapes.items()
    }


# So that latents and hyper-latents, and the scales of the former, are spread over many numbers, and use the escape.
_SPREAD = {"g_a.6.weight": 15, "h_a.4.weight": 4, "h_s.4.weight": 4, "h_s.4.bias": 60}


def hyperprior_state_dict(state):
    """Such weights in the place of those of a whole hyperprior, a state dict of `to_compressai`; without tables."""
    parts = ("g_a.", "g_s.", "h_a.", "h_s.", "entropy_bottleneck.")
    made = {}
    for key, value in state.items():
        if key.endswith(("_quantized_cdf", "_cdf_length", "_offset")):
            made[key] = np.array([], "int32")
        elif key.startswith(parts) and not key.endswith((*NO_WEIGHTS, "target")):
            made[key] = golden_weight(key, value.shape) * np.float32(_SPREAD.get(key, 1))
        else:
            made[key] = value
    return made


def compressai_state_dict(name):
    """The state dict of CompressAI's model `name`, such as "bmshj2018-factorized-1"; zeros elsewhere."""
    shapes = json.loads((GOLDEN / "compressai_shapes.json").read_text())[name]
    golden = ("g_a.", "g_s.", "entropy_bottleneck.")
    return {
        key: golden_weight(key, tuple(shape)) if key.startswith(golden) else np.zeros(shape, "float32")
        for key, shape in shapes.items()
    }
