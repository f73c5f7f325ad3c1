"""CI2P in place of the patch embedding of a KerasHub ViT."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ci2p.hub.models import keras_hub, register
from keras_ci2p.layers.compression_transforms import check_images
from keras_ci2p.layers.core import RandomNormal
from keras_ci2p.layers.embedding import PATCH_SIZE, CI2PPatchEmbedding, resize_position_embedding
from keras_ci2p.models.backbone import CompressorLike, compressor_layer
from keras_ci2p.utils import Shape, Tensor


def replace_patch_embedding(
    model: keras.Model, compressor: CompressorLike | None = None, freeze_compressor: bool = True
) -> keras.Model:
    """A KerasHub ViT with `CI2PPatchEmbedding` in place of its patch embedding, which makes tokens of 32x32 pixels.

    All other weights are copied: the encoder's, the class token's, those of a classifier's head. The position embedding
    is resized bicubically to the new grid; the class token's own row is kept. The patch generator is new, so the model
    must be trained.

    The new model takes RGB in 0..255: of a classifier's preprocessor the new one has the resizing, without scale and
    offset. A classifier is compiled as KerasHub compiles a new one.

    Args:
        model: `keras_hub.models.ViTBackbone` or `ViTImageClassifier`, channels last; it stays as it is.
        compressor: As in `keras_ci2p.CI2PViTBackbone`.
        freeze_compressor: Whether to keep the compressor from training; survives save and load.

    Returns:
        For a classifier a `ViTImageClassifier`; for a backbone a functional `keras.Model` that stands for it, with the
        layers "patch_embedding", "class_token_and_positions" and "vit_encoder".

    Raises:
        ValueError: Another kind of model; images that are not channels last, or have no multiples of 32 as height and
            width.

    Examples:
        >>> import keras_hub
        >>> vit = keras_hub.models.ViTBackbone(
        ...     image_shape=(64, 64, 3), patch_size=16, hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64
        ... )
        >>> keras_ci2p.hub.replace_patch_embedding(vit).output.shape
        (None, 5, 32)
    """
    if isinstance(model, keras_hub.models.ViTImageClassifier):
        return _replace_in_classifier(model, compressor, freeze_compressor)
    if isinstance(model, keras_hub.models.ViTBackbone):
        return _replace_in_backbone(model, compressor, freeze_compressor)
    raise ValueError(
        f"`model` must be a keras_hub ViTBackbone or ViTImageClassifier. Received: model={type(model).__name__}"
    )


@register
class ClassTokenAndPositions(keras.layers.Layer):
    """Prepends a learned class token, if wanted, and adds a learned position embedding, as KerasHub's ViT does.

    Args:
        use_class_token: Whether to prepend a class token.

    Input shape: `(batch, tokens, hidden_dim)`, float. Output shape: the same, with one token more for the class token.

    Examples:
        >>> keras_ci2p.hub.ClassTokenAndPositions()(np.zeros((1, 4, 32), "float32")).shape
        (1, 5, 32)
    """

    def __init__(self, use_class_token: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_class_token = use_class_token

    def build(self, input_shape: Shape) -> None:
        _, tokens, hidden_dim = self.compute_output_shape(input_shape)
        if self.use_class_token:
            self.class_token = self.add_weight(
                shape=(1, 1, hidden_dim), initializer=RandomNormal(stddev=0.02), name="class_token"
            )
        self.position_embedding = self.add_weight(
            shape=(1, tokens, hidden_dim),
            initializer=RandomNormal(stddev=0.02),
            name="position_embedding",
        )

    def call(self, tokens: Tensor) -> Tensor:
        if self.use_class_token:
            class_tokens = ops.tile(ops.cast(self.class_token, tokens.dtype), (ops.shape(tokens)[0], 1, 1))
            tokens = ops.concatenate([class_tokens, tokens], axis=1)
        return tokens + ops.cast(self.position_embedding, tokens.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, tokens, hidden_dim = input_shape
        return (batch, tokens + self.use_class_token, hidden_dim)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(use_class_token=self.use_class_token)
        return config


def _replace_in_backbone(
    backbone: keras.Model, compressor: CompressorLike | None, freeze_compressor: bool
) -> keras.Model:
    if backbone.data_format != "channels_last":
        raise ValueError(f"CI2P takes images channels last. Received: data_format={backbone.data_format!r}")
    check_images((None, *backbone.image_shape), PATCH_SIZE, "CI2PPatchEmbedding")
    old_embedding = backbone.get_layer("vit_patching_and_embedding")
    old_encoder = backbone.get_layer("vit_encoder")

    # === Layers ===
    dtype = old_encoder.dtype_policy
    patch_embedding = CI2PPatchEmbedding(
        backbone.hidden_dim,
        compressor_layer(compressor, freeze_compressor, dtype),
        freeze_compressor,
        dtype=dtype,
        name="patch_embedding",
    )
    positions = ClassTokenAndPositions(backbone.use_class_token, dtype=dtype, name="class_token_and_positions")
    encoder = type(old_encoder).from_config(old_encoder.get_config())

    # === Functional model ===
    images = keras.Input(backbone.image_shape, dtype="float32", name="images")
    tokens = patch_embedding(images)
    outputs = encoder(positions(tokens))

    # === Weights ===
    height, width, _ = backbone.image_shape
    patch_height, patch_width = backbone.patch_size
    old_grid, grid = (height // patch_height, width // patch_width), (height // PATCH_SIZE, width // PATCH_SIZE)
    # Through NumPy: JAX would otherwise share the arrays, and training deletes them.
    rows = ops.convert_to_numpy(old_embedding.position_embedding.embeddings)[None]
    special = int(backbone.use_class_token)
    resized = resize_position_embedding(rows[:, special:], old_grid, grid)
    positions.position_embedding.assign(np.concatenate([rows[:, :special], resized], axis=1))
    if backbone.use_class_token:
        positions.class_token.assign(ops.convert_to_numpy(old_embedding.class_token))
    encoder.set_weights(old_encoder.get_weights())
    return keras.Model(images, outputs, name=f"ci2p_{backbone.name}")


def _replace_in_classifier(
    classifier: keras.Model, compressor: CompressorLike | None, freeze_compressor: bool
) -> keras.Model:
    backbone = _replace_in_backbone(classifier.backbone, compressor, freeze_compressor)
    arguments = classifier.get_config()
    arguments.update(backbone=backbone, preprocessor=_without_scaling(classifier.preprocessor))
    replaced = type(classifier)(**arguments)
    for layer, old in zip(replaced.layers, classifier.layers, strict=True):
        if layer is not backbone:
            layer.set_weights(old.get_weights())
    return replaced


def _without_scaling(preprocessor: Any) -> Any:
    """A copy that leaves values in 0..255; what is no KerasHub preprocessor of images is the caller's to change."""
    if getattr(preprocessor, "image_converter", None) is None:
        return preprocessor
    copy = type(preprocessor).from_config(preprocessor.get_config())
    copy.image_converter.scale = copy.image_converter.offset = None
    return copy
