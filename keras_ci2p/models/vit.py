"""The paper's baseline: ViT-B/16 without class token, with learned position embedding and mean pooling."""

import keras

from keras_ci2p.annotations import Shape
from keras_ci2p.layers.core import ImageNormalization, VarianceScaling
from keras_ci2p.layers.embedding import PositionEmbedding
from keras_ci2p.models.backbone import Backbone, check_image_shape, transformer_encoder
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.models.variants import VARIANTS


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ViTBackbone(Backbone):
    """Images to tokens: normalisation, patch convolution, position embedding, transformer blocks, norm.

    Args:
        image_shape: `(height, width, 3)`, multiples of `patch_size`.
        patch_size: Height and width of a patch in pixels.
        hidden_dim, num_layers, num_heads, mlp_dim: Sizes of the transformer.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 in the first (paper: 0.1).
        dtype: Dtype policy of the layers.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255.
    Output shape: `(batch, height / patch_size * width / patch_size, hidden_dim)`.

    Examples:
        >>> backbone = keras_ci2p.ViTBackbone((64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64)
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 16, 32)
    """

    def __init__(
        self,
        image_shape: Shape = (256, 256, 3),
        patch_size: int = 16,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        drop_path_rate: float = 0.1,
        dtype: str | keras.DTypePolicy | None = None,
        name: str = "vit_backbone",
    ) -> None:
        # === Layers ===
        image_shape = check_image_shape(image_shape, patch_size, type(self).__name__)
        if None in image_shape:
            raise ValueError(
                f"ViT's position embedding needs a fixed height and width. Received: image_shape={image_shape}"
            )
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        normalization = ImageNormalization(dtype=policy, name="normalization")
        patch_embedding = keras.layers.Conv2D(
            hidden_dim,
            patch_size,
            strides=patch_size,
            kernel_initializer=VarianceScaling(1.0, "fan_in", "untruncated_normal"),
            data_format="channels_last",
            dtype=policy,
            name="patch_embedding",
        )
        flatten = keras.layers.Reshape((-1, hidden_dim), dtype=policy, name="flatten")
        grid = (image_shape[0] // patch_size, image_shape[1] // patch_size)
        position_embedding = PositionEmbedding(grid, dtype=policy, name="position_embedding")

        # === Functional model ===
        images = keras.Input(image_shape, dtype="float32", name="images")
        tokens = flatten(patch_embedding(normalization(images)))
        tokens = position_embedding(tokens)
        features = transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, policy)
        super().__init__(images, features, policy, name)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class ViT(ImageClassifier):
    """ViT-B/16 as the paper compares with it, and its other sizes.

    No class token; learned position embedding; the mean of the tokens is classified.
    Layers by name: `normalization`, `patch_embedding`, `flatten`, `position_embedding`, `block_0`, ..., `norm`, `pool`,
    `head`.

    Args:
        image_shape, num_classes, variant, class_names, activation, dtype, name: As in `ImageClassifier`; height and
            width are multiples of `patch_size`.
        **backbone_arguments: Of `ViTBackbone`, sizes in place of the variant's: `drop_path_rate`, `hidden_dim`,
            `num_layers`, `num_heads`, `mlp_dim`, `patch_size`.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, channels last.
    Output shape: `(batch, num_classes)`, logits.

    Examples:
        >>> model = keras_ci2p.ViT((64, 64, 3), variant="tiny", class_names=["cat", "dog"])
        >>> model(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 2)
    """

    backbone_cls = ViTBackbone
    variants = VARIANTS
    default_name = "vit"
    patch_size = 16
