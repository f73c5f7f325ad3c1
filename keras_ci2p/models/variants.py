"""Names of the models, sizes of their transformers, kinds of activations and compressors. Imports no Keras."""

# Classes of `keras_ci2p.models` by the names of the command line's `--model`.
MODELS = {"ci2p": "CI2PViT", "ci2p_dual": "CI2PViTDualScale", "vit": "ViT"}

VARIANTS = {
    "tiny": {"hidden_dim": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "small": {"hidden_dim": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "base": {"hidden_dim": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "large": {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    # mmpretrain's "small", with which the paper's FLOPs table was also made.
    "base_8": {"hidden_dim": 768, "num_layers": 8, "num_heads": 8, "mlp_dim": 2304},
}

# CI2P-ViT-ds, with "base" as in the paper: half of the blocks come before the merge, a quarter as wide as the others,
# rounded up to whole heads.
DUAL_SCALE_VARIANTS = {
    "tiny": {**VARIANTS["tiny"], "early_dim": 64, "merge_at": 6},
    "small": {**VARIANTS["small"], "early_dim": 128, "merge_at": 6},
    "base": {**VARIANTS["base"], "early_dim": 192, "merge_at": 6},
    "large": {**VARIANTS["large"], "early_dim": 256, "merge_at": 12},
    "base_8": {**VARIANTS["base_8"], "early_dim": 192, "merge_at": 4},
}

# CompressAI's architectures whose prior is the entropy bottleneck alone; and those with a hyperprior that is decoded
# at once, without a loop over pixels.
FACTORIZED = ("bmshj2018-factorized", "bmshj2018-factorized-relu")
HYPERPRIORS = ("bmshj2018-hyperprior", "mbt2018-mean")
# Those with both transforms and their prior: they can be trained, and code.
WHOLE = FACTORIZED + HYPERPRIORS
QUALITIES = range(1, 9)
# What compressors are trained for beside few bits.
METRICS = ("mse", "ms-ssim")
# CompressAI's `examples/train.py`.
AUXILIARY_LEARNING_RATE = 1e-3
CLIP_NORM = 1.0

# Activations of heads that give probabilities.
PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid", "sparse_sigmoid", "sparsemax")
