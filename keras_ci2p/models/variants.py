"""Sizes of the transformers, by name."""

VARIANTS = {
    "tiny": {"hidden_dim": 192, "num_layers": 12, "num_heads": 3, "mlp_dim": 768},
    "small": {"hidden_dim": 384, "num_layers": 12, "num_heads": 6, "mlp_dim": 1536},
    "base": {"hidden_dim": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072},
    "large": {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    # mmpretrain's "small", with which the paper's FLOPs table was also made.
    "base_8": {"hidden_dim": 768, "num_layers": 8, "num_heads": 8, "mlp_dim": 2304},
}


def transformer_sizes(variant, **overrides):
    """The sizes of `variant`, with those of `overrides` that are not None in their place.

    Raises:
        ValueError: Unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}. Received: variant={variant!r}")
    return {**VARIANTS[variant], **{key: value for key, value in overrides.items() if value is not None}}
