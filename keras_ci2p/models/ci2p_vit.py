"""CI2P-ViT and CI2P-ViT-ds, the dual-scale form (sections 3.2 and 3.3)."""

import keras

from keras_ci2p.layers.compression_transforms import check_images
from keras_ci2p.layers.embedding import PATCH_SIZE, PatchGenerator, PositionEmbedding
from keras_ci2p.models.backbone import (
    CI2PBackbone,
    CI2PClassifier,
    dual_scale_encoder,
    model_compressor,
    transformer_encoder,
)
from keras_ci2p.models.variants import DUAL_SCALE_VARIANTS, transformer_sizes


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTBackbone(CI2PBackbone):
    """Images to tokens: compressor, patch generator, transformer blocks, norm.

    Args: As in `CI2PViT`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.
    """

    def __init__(
        self,
        image_shape=(256, 256, 3),
        hidden_dim=768,
        num_layers=12,
        num_heads=12,
        mlp_dim=3072,
        drop_path_rate=0.1,
        compressor=None,
        freeze_compressor=True,
        dtype=None,
        name="ci2p_vit_backbone",
    ):
        # === Layers ===
        check_images((None, *image_shape), PATCH_SIZE, type(self).__name__)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        compressor = model_compressor(compressor, freeze_compressor, policy)
        patch_generator = PatchGenerator(hidden_dim, dtype=policy, name="patch_generator")

        # === Functional model ===
        # A uint8 Input would silently truncate floats; this one accepts both.
        images = keras.Input(image_shape, dtype="float32", name="images")
        latents = compressor(images)
        tokens = patch_generator(latents)
        features = transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, policy)
        super().__init__(
            images,
            features,
            name,
            policy,
            image_shape=tuple(image_shape),
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            drop_path_rate=drop_path_rate,
        )


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViT(CI2PClassifier):
    """CI2P-ViT, the image classifier of arXiv 2502.10120.

    A frozen learned image compressor encodes the image to a sixteenth of its size, a small convolutional patch
    generator makes tokens of the latents, a Vision Transformer without class token and position embedding
    follows, and the mean of the tokens is classified.

    Layers by name: `compressor`, `patch_generator`, `block_0`, ..., `norm`, `pool`, `head`.

    Args:
        image_shape: `(height, width, 3)`; multiples of 32, or None for any size.
        num_classes: Number of classes.
        variant: Size of the transformer: "tiny", "small", "base", "large" or "base_8" (`VARIANTS`).
        freeze_compressor: Whether to keep the compressor from training; survives save and load.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 in the first (paper: 0.1).
        class_names: Names of the classes, or None.
        activation: Activation of the head, None for logits.
        hidden_dim, num_layers, num_heads, mlp_dim: In place of the variant's.
        compressor: A `Compressor` or `AnalysisTransform` whose weights are copied, the configuration of the latter as a
            dict, or None for the paper's (bmshj2018-factorized, 128 and 192 channels), randomly initialised.
        dtype: Dtype policy of the layers. The head computes in float32 under 16-bit policies.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, channels last.
    Output shape: `(batch, num_classes)`, logits.

    Raises:
        ValueError: A size that is no multiple of 32, wrong channels, unknown variant, `class_names` that do not fit
            `num_classes`.

    Example:
        >>> model = keras_ci2p.CI2PViT(variant="tiny", num_classes=3)
        >>> model(np.zeros((1, 256, 256, 3), "uint8")).shape
        (1, 3)
    """

    backbone_class = CI2PViTBackbone

    def __init__(
        self,
        image_shape=(256, 256, 3),
        num_classes=10,
        variant="base",
        freeze_compressor=True,
        drop_path_rate=0.1,
        class_names=None,
        activation=None,
        hidden_dim=None,
        num_layers=None,
        num_heads=None,
        mlp_dim=None,
        compressor=None,
        dtype=None,
        name="ci2p_vit",
    ):
        sizes = transformer_sizes(
            variant, hidden_dim=hidden_dim, num_layers=num_layers, num_heads=num_heads, mlp_dim=mlp_dim
        )
        backbone = CI2PViTBackbone(
            image_shape=image_shape,
            **sizes,
            drop_path_rate=drop_path_rate,
            compressor=compressor,
            freeze_compressor=freeze_compressor,
            dtype=dtype,
        )
        super().__init__(backbone, num_classes, class_names, activation, name=name)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTDualScaleBackbone(CI2PBackbone):
    """Images to tokens: compressor, patch generator, position embedding, blocks, merge, blocks, norm.

    Args: As in `CI2PViTDualScale`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.
    """

    def __init__(
        self,
        image_shape=(256, 256, 3),
        hidden_dim=768,
        num_layers=12,
        num_heads=12,
        mlp_dim=3072,
        early_dim=192,
        merge_at=6,
        drop_path_rate=0.1,
        compressor=None,
        freeze_compressor=True,
        dtype=None,
        name="ci2p_vit_dual_scale_backbone",
    ):
        # === Layers ===
        check_images((None, *image_shape), PATCH_SIZE, type(self).__name__)
        if None in image_shape:
            raise ValueError(
                "CI2P-ViT-ds's position embedding needs a fixed height and width. "
                f"Received: image_shape={tuple(image_shape)}"
            )
        _check_scales(hidden_dim, num_layers, num_heads, mlp_dim, early_dim, merge_at)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        compressor = model_compressor(compressor, freeze_compressor, policy)
        patch_generator = PatchGenerator(early_dim, strides=1, dtype=policy, name="patch_generator")

        # === Functional model ===
        images = keras.Input(image_shape, dtype="float32", name="images")
        latents = compressor(images)
        grid = latents.shape[1:3]
        tokens = patch_generator(latents)
        tokens = PositionEmbedding(grid, dtype=policy, name="position_embedding")(tokens)
        features = dual_scale_encoder(
            tokens, grid, hidden_dim, num_layers, num_heads, mlp_dim, merge_at, drop_path_rate, policy
        )
        super().__init__(
            images,
            features,
            name,
            policy,
            image_shape=tuple(image_shape),
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            early_dim=early_dim,
            merge_at=merge_at,
            drop_path_rate=drop_path_rate,
        )


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTDualScale(CI2PClassifier):
    """CI2P-ViT-ds, the dual-scale image classifier of arXiv 2502.10120.

    A frozen learned image compressor encodes the image to a sixteenth of its size and a small convolutional patch
    generator makes a token of each position. Narrow transformer blocks work on these, a convolutional merge makes a
    quarter as many wide tokens for the other blocks, and the mean of the tokens is classified. The blocks' MLP is
    CeiT's LeFF; the first tokens get a learned position embedding; there is no class token.

    Layers by name: `compressor`, `patch_generator`, `position_embedding`, `block_0`, ..., `merge`, ..., `norm`, `pool`,
    `head`.

    Args:
        image_shape: `(height, width, 3)`; multiples of 32.
        num_classes: Number of classes.
        variant: Size of the transformer: "tiny", "small", "base", "large" or "base_8" (`DUAL_SCALE_VARIANTS`).
        freeze_compressor: Whether to keep the compressor from training; survives save and load.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 in the first (paper: 0.1).
        class_names: Names of the classes, or None.
        activation: Activation of the head, None for logits.
        hidden_dim, num_layers, num_heads, mlp_dim: In place of the variant's; of the blocks after the merge, but
            `num_layers` counts all.
        early_dim: Width before the merge, in place of the variant's. The blocks there have the same head width and
            MLP ratio as the others.
        merge_at: Number of the block before which the tokens are merged, in place of the variant's.
        compressor: A `Compressor` or `AnalysisTransform` whose weights are copied, the configuration of the latter as a
            dict, or None for the paper's (bmshj2018-factorized, 128 and 192 channels), randomly initialised.
        dtype: Dtype policy of the layers. The head computes in float32 under 16-bit policies.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, channels last.
    Output shape: `(batch, num_classes)`, logits.

    Raises:
        ValueError: A size that is no multiple of 32, wrong channels, unknown variant, `early_dim` or `merge_at` that do
            not fit the other sizes, `class_names` that do not fit `num_classes`.

    Example:
        >>> model = keras_ci2p.CI2PViTDualScale(variant="tiny", num_classes=3)
        >>> model(np.zeros((1, 256, 256, 3), "uint8")).shape
        (1, 3)
    """

    backbone_class = CI2PViTDualScaleBackbone

    def __init__(
        self,
        image_shape=(256, 256, 3),
        num_classes=10,
        variant="base",
        freeze_compressor=True,
        drop_path_rate=0.1,
        class_names=None,
        activation=None,
        hidden_dim=None,
        num_layers=None,
        num_heads=None,
        mlp_dim=None,
        early_dim=None,
        merge_at=None,
        compressor=None,
        dtype=None,
        name="ci2p_vit_dual_scale",
    ):
        sizes = transformer_sizes(
            variant,
            DUAL_SCALE_VARIANTS,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            early_dim=early_dim,
            merge_at=merge_at,
        )
        backbone = CI2PViTDualScaleBackbone(
            image_shape=image_shape,
            **sizes,
            drop_path_rate=drop_path_rate,
            compressor=compressor,
            freeze_compressor=freeze_compressor,
            dtype=dtype,
        )
        super().__init__(backbone, num_classes, class_names, activation, name=name)


def _check_scales(hidden_dim, num_layers, num_heads, mlp_dim, early_dim, merge_at):
    if not isinstance(merge_at, int) or not 0 < merge_at < num_layers:
        raise ValueError(
            "`merge_at` must be the number of a block after the first: an integer in 1..num_layers - 1. "
            f"Received: merge_at={merge_at!r}, num_layers={num_layers}"
        )
    if not isinstance(early_dim, int) or early_dim < 1 or any(early_dim * n % hidden_dim for n in (num_heads, mlp_dim)):
        raise ValueError(
            "`early_dim` must be a multiple of the head width hidden_dim / num_heads, and its share of `mlp_dim` an "
            f"integer. Received: early_dim={early_dim!r}, hidden_dim={hidden_dim}, num_heads={num_heads}, "
            f"mlp_dim={mlp_dim}"
        )
