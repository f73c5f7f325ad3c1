"""The classifiers: CI2P-ViT, CI2P-ViT-ds (sections 3.2 and 3.3), and ViT; and what loads any model by its preset."""

from typing import Any

import keras

from keras_ci2p.layers.core import ImageNormalization, VarianceScaling
from keras_ci2p.layers.embedding import PATCH_SIZE, FinePatchGenerator, PatchGenerator, PositionEmbedding
from keras_ci2p.models.backbone import (
    Backbone,
    CompressorLike,
    CompressorMixin,
    check_image_shape,
    compressor_layer,
    dual_scale_encoder,
    transformer_encoder,
)
from keras_ci2p.models.compressor import Compressor
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.names import DUAL_SCALE_VARIANTS, MODELS, VARIANTS
from keras_ci2p.presets import Preset, PresetError, open_preset
from keras_ci2p.utils import PathLike, Shape


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTBackbone(CompressorMixin, Backbone):
    """Images to tokens: compressor, patch generator, transformer blocks, norm.

    Args:
        image_shape: `(height, width, 3)`; multiples of 32, or None for any size.
        hidden_dim, num_layers, num_heads, mlp_dim: Sizes of the transformer.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 in the first (paper: 0.1).
        compressor: A `Compressor`, its preset's name or directory, or an `AnalysisTransform`: the weights are copied.
            Or the configuration of the latter as a dict, or None for the paper's (bmshj2018-factorized, 128 and 192
            channels): randomly initialised.
        freeze_compressor: Whether to keep the compressor from training; survives save and load.
        dtype: Dtype policy of the layers.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Examples:
        >>> backbone = keras_ci2p.CI2PViTBackbone(
        ...     image_shape=(64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64
        ... )
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 32)
    """

    def __init__(
        self,
        image_shape: Shape = (256, 256, 3),
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        drop_path_rate: float = 0.1,
        compressor: CompressorLike | None = None,
        freeze_compressor: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
        name: str = "ci2p_vit_backbone",
    ) -> None:
        # === Layers ===
        image_shape = check_image_shape(image_shape, PATCH_SIZE, type(self).__name__)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        compressor = compressor_layer(compressor, freeze_compressor, policy)
        patch_generator = PatchGenerator(hidden_dim, dtype=policy, name="patch_generator")

        # === Functional model ===
        # A uint8 Input would silently truncate floats; this one accepts both.
        images = keras.Input(image_shape, dtype="float32", name="images")
        tokens = patch_generator(compressor(images))
        features = transformer_encoder(tokens, num_layers, num_heads, mlp_dim, drop_path_rate, policy)
        super().__init__(images, features, policy, name)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViT(CompressorMixin, ImageClassifier):
    """CI2P-ViT, the image classifier of arXiv 2502.10120.

    A frozen learned image compressor encodes the image to a sixteenth of its size, a small convolutional patch
    generator makes tokens of the latents, a Vision Transformer without class token and position embedding
    follows, and the mean of the tokens is classified.

    Layers by name: `compressor`, `patch_generator`, `block_0`, ..., `norm`, `pool`, `head`.

    Args:
        image_shape, num_classes, variant, class_names, activation, dtype, name: As in `ImageClassifier`; height and
            width are multiples of 32, or None for any size.
        **backbone_arguments: Of `CI2PViTBackbone`, sizes in place of the variant's: `compressor`, `freeze_compressor`,
            `drop_path_rate`, `hidden_dim`, `num_layers`, `num_heads`, `mlp_dim`.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, channels last.
    Output shape: `(batch, num_classes)`, logits.

    Examples:
        >>> model = keras_ci2p.CI2PViT(variant="tiny", num_classes=3)
        >>> model(np.zeros((1, 256, 256, 3), "uint8")).shape
        (1, 3)
    """

    backbone_cls = CI2PViTBackbone
    variants = VARIANTS
    default_name = "ci2p_vit"


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTDualScaleBackbone(CompressorMixin, Backbone):
    """Images to tokens: compressor, patch generator, position embedding, blocks, merge, blocks, norm.

    Args:
        image_shape: `(height, width, 3)`; multiples of 32.
        hidden_dim, num_heads, mlp_dim: Sizes of the blocks after the merge.
        num_layers: Number of all blocks.
        early_dim: Width before the merge. The blocks there have the same head width and MLP ratio as the others.
        merge_at: Number of the block before which the tokens are merged.
        drop_path_rate, compressor, freeze_compressor, dtype: As in `CI2PViTBackbone`.

    Input shape: `(batch, height, width, 3)`, RGB in 0..255.
    Output shape: `(batch, height / 32 * width / 32, hidden_dim)`.

    Raises:
        ValueError: `early_dim` or `merge_at` that do not fit the other sizes; a size that is no multiple of 32.

    Examples:
        >>> backbone = keras_ci2p.CI2PViTDualScaleBackbone(
        ...     (64, 64, 3), hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64, early_dim=16, merge_at=1
        ... )
        >>> backbone(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 32)
    """

    def __init__(
        self,
        image_shape: Shape = (256, 256, 3),
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        early_dim: int = 192,
        merge_at: int = 6,
        drop_path_rate: float = 0.1,
        compressor: CompressorLike | None = None,
        freeze_compressor: bool = True,
        dtype: str | keras.DTypePolicy | None = None,
        name: str = "ci2p_vit_dual_scale_backbone",
    ) -> None:
        # === Layers ===
        image_shape = check_image_shape(image_shape, PATCH_SIZE, type(self).__name__)
        if None in image_shape:
            raise ValueError(
                f"CI2P-ViT-ds's position embedding needs a fixed height and width. Received: image_shape={image_shape}"
            )
        _check_scales(hidden_dim, num_layers, num_heads, mlp_dim, early_dim, merge_at)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        compressor = compressor_layer(compressor, freeze_compressor, policy)
        # Not `PatchGenerator(strides=1)`: Keras's weight files find a layer by its class.
        patch_generator = FinePatchGenerator(early_dim, dtype=policy, name="patch_generator")

        # === Functional model ===
        images = keras.Input(image_shape, dtype="float32", name="images")
        latents = compressor(images)
        grid = latents.shape[1:3]
        tokens = PositionEmbedding(grid, dtype=policy, name="position_embedding")(patch_generator(latents))
        features = dual_scale_encoder(
            tokens, grid, hidden_dim, num_layers, num_heads, mlp_dim, merge_at, drop_path_rate, policy
        )
        super().__init__(images, features, policy, name)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class CI2PViTDualScale(CompressorMixin, ImageClassifier):
    """CI2P-ViT-ds, the dual-scale image classifier of arXiv 2502.10120.

    A frozen learned image compressor encodes the image to a sixteenth of its size and a small convolutional patch
    generator makes a token of each position. Narrow transformer blocks work on these, a convolutional merge makes a
    quarter as many wide tokens for the other blocks, and the mean of the tokens is classified. The blocks' MLP is
    CeiT's LeFF; the first tokens get a learned position embedding; there is no class token.

    Layers by name: `compressor`, `patch_generator`, `position_embedding`, `block_0`, ..., `merge`, ..., `norm`, `pool`,
    `head`.

    Args:
        image_shape, num_classes, variant, class_names, activation, dtype, name: As in `ImageClassifier`; height and
            width are multiples of 32, the variants are `DUAL_SCALE_VARIANTS`.
        **backbone_arguments: Of `CI2PViTDualScaleBackbone`, sizes in place of the variant's: `compressor`,
            `freeze_compressor`, `drop_path_rate`, `hidden_dim`, `num_layers`, `num_heads`, `mlp_dim`, `early_dim`,
            `merge_at`.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255, channels last.
    Output shape: `(batch, num_classes)`, logits.

    Examples:
        >>> model = keras_ci2p.CI2PViTDualScale(variant="tiny", num_classes=3)
        >>> model(np.zeros((1, 256, 256, 3), "uint8")).shape
        (1, 3)
    """

    backbone_cls = CI2PViTDualScaleBackbone
    variants = DUAL_SCALE_VARIANTS
    default_name = "ci2p_vit_dual_scale"


def _check_scales(
    hidden_dim: int, num_layers: int, num_heads: int, mlp_dim: int, early_dim: int, merge_at: int
) -> None:
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


# Classes by the names of the command line's `--model`.
CLASSIFIERS = dict[str, Any](zip(MODELS, (CI2PViT, CI2PViTDualScale, ViT), strict=True))

# By what a preset says of its class.
_CLASSES: dict[str | None, Any] = {
    f"keras_ci2p>{model_class.backbone_cls.__name__}": model_class for model_class in CLASSIFIERS.values()
}
_CLASSES["keras_ci2p>Compressor"] = Compressor


def load_preset(name: PathLike | Preset, **arguments: Any) -> ImageClassifier | Compressor:
    """Loads a model: a `CI2PViT`, `CI2PViTDualScale`, `ViT` or `Compressor`, as the preset says.

    Args:
        name: A name of `keras_ci2p.list_presets()`, a name of CompressAI's zoo, a preset directory, or the directory of
            a training run, whose best model is loaded.
        **arguments: Of the class's `from_preset`.

    Returns:
        The model.

    Raises:
        keras_ci2p.presets.PresetError: No such preset, a damaged one, or one of an unknown class.
        TypeError: An argument that the class's `from_preset` does not take.
        OSError: A published compressor could not be downloaded.

    Examples:
        >>> keras_ci2p.load_preset("animals10").class_names[:2]
        ['butterfly', 'cat']
    """
    return open_preset_model(name, **arguments)[0]


def open_preset_model(name: PathLike | Preset, **arguments: Any) -> tuple[Any, Preset]:
    """Loads a model as `load_preset` does, also of a `Preset`; returns it with its `Preset`, `(model, preset)`."""
    preset = open_preset(name)
    return preset_class(preset).from_preset(preset, **arguments), preset


def open_classifier(name: PathLike | Preset, **arguments: Any) -> tuple[ImageClassifier, Preset]:
    """Loads a model as `open_preset_model` does; PresetError for a compressor."""
    preset = open_preset(name)
    if is_compressor(preset):
        raise PresetError(f"{preset.directory} is a compressor; this takes a classifier.")
    return open_preset_model(preset, **arguments)


def preset_class(preset: Preset) -> Any:
    """Returns the class of a `Preset`'s model; PresetError if this package has none for it."""
    model_class = _CLASSES.get(preset.registered_name())
    if model_class is None:
        raise PresetError(
            f"{preset.directory} is of a class that keras_ci2p does not know: {preset.registered_name()!r}."
        )
    return model_class


def is_compressor(preset: Preset) -> bool:
    """Whether a `Preset` is of a `Compressor`, not of a classifier."""
    return preset_class(preset) is Compressor
