"""CI2P-ViT (arXiv 2502.10120): a frozen image compressor and a patch generator in front of a Vision Transformer."""

import keras

from keras_ci2p.layers.analysis_transform import check_images
from keras_ci2p.layers.ci2p_patch_embedding import PATCH_SIZE
from keras_ci2p.layers.patch_generator import PatchGenerator
from keras_ci2p.models.ci2p_classifier import CI2PBackbone, CI2PClassifier, model_compressor
from keras_ci2p.models.encoder import transformer_encoder
from keras_ci2p.models.variants import transformer_sizes


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
