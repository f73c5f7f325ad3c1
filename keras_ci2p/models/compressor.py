"""Learned image compressors of CompressAI's zoo: analysis transform, entropy bottleneck, synthesis transform."""

from typing import Any, Self

import keras
from keras import ops

from keras_ci2p import presets
from keras_ci2p.layers.compression_layers import EntropyBottleneck, GaussianConditional
from keras_ci2p.layers.compression_transforms import (
    AnalysisTransform,
    HyperAnalysis,
    HyperSynthesis,
    SynthesisTransform,
    check_images,
)
from keras_ci2p.models.coding import CodingModel
from keras_ci2p.models.rate_distortion import distortion_and_rate
from keras_ci2p.names import HYPERPRIORS, WHOLE
from keras_ci2p.presets import Preset
from keras_ci2p.utils import PathLike, Shape, Tensor, without_arrays, wrong_choice


def _by_quality(first: int, low: tuple[int, int], high: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Qualities 1..`first` have the channels `low`, those above `high`."""
    return {quality: low if quality <= first else high for quality in range(1, 9)}


_FACTORIZED = _by_quality(5, (128, 192), (192, 320))
_CHENG = {quality: (128, 128) if quality <= 3 else (192, 192) for quality in range(1, 7)}

# (N, M) by architecture and quality, as in CompressAI's zoo.
CHANNELS = {
    "bmshj2018-factorized": _FACTORIZED,
    "bmshj2018-factorized-relu": _FACTORIZED,
    "bmshj2018-hyperprior": _FACTORIZED,
    "mbt2018-mean": _by_quality(4, (128, 192), (192, 320)),
    "mbt2018": _by_quality(4, (192, 192), (192, 320)),
    "cheng2020-anchor": _CHENG,
    "cheng2020-attn": _CHENG,
}
WITHOUT_SYNTHESIS = ("cheng2020-anchor", "cheng2020-attn")


@keras.saving.register_keras_serializable(package="keras_ci2p")
class Compressor(CodingModel):
    """A learned image compressor: images to latents and back.

    `compressor(images)` returns a dict: `latents`; `x_hat`, the images after quantisation (uniform noise in training),
    not clipped, where there is a synthesis transform; and `likelihoods` of the quantised latents, shaped as these,
    where the prior is factorized, or a hyperprior that needs no loop over pixels (`bmshj2018-hyperprior`,
    `mbt2018-mean`). These two also give `hyper_likelihoods`, of the hyper-latents, a quarter as high and as wide.

    Those with likelihoods can be trained: `compile()`, then `fit(images)`; `compile` tells of the loss.

    Args:
        architecture: One of CompressAI's zoo (`CHANNELS`).
        quality: 1..8 (cheng2020: 1..6), which sets the channels; None where `channels` are given and it is unknown.
        channels: (N, M), between the convolutions and of the latent; None for those of `quality`.
        source: Where the weights are from, a dict of plain values (`name`, `sha256`), or None.
        dtype: Dtype policy of the transforms.
        name: Name of the model.
        origin: `source` as configurations call it.

    Input shape: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 16, of a
    hyperprior 64 (`encode` alone: 16). Or a dict of such `images`, and of `noise` and `hyper_noise` as in `call`.

    Raises:
        ValueError: Unknown architecture or quality; channels that contradict the quality.

    Examples:
        >>> compressor = keras_ci2p.Compressor("bmshj2018-factorized", quality=5)
        >>> compressor.encode(np.zeros((1, 64, 64, 3), "uint8")).shape
        (1, 4, 4, 192)
    """

    def __init__(
        self,
        architecture: str = "bmshj2018-factorized",
        quality: int | None = 5,
        channels: tuple[int, int] | None = None,
        source: dict[str, Any] | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        name: str = "compressor_model",
        origin: dict[str, Any] | None = None,
    ) -> None:
        quality, channels, source, origin = without_arrays((quality, channels, source, origin))
        channels = compressor_channels(architecture, quality, channels)
        super().__init__(name=name)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        self.dtype_policy = policy
        self.architecture = architecture
        self.quality = quality
        self.num_filters, self.latent_channels = channels
        self.source = origin if source is None else source
        self.analysis = AnalysisTransform(
            architecture, self.num_filters, self.latent_channels, source=self.source, dtype=policy, name="analysis"
        )
        self.entropy_bottleneck = self.hyper_analysis = self.hyper_synthesis = self.gaussian_conditional = None
        if architecture in WHOLE:
            self.entropy_bottleneck = EntropyBottleneck(dtype=policy, name="entropy_bottleneck")
        if architecture in HYPERPRIORS:
            sizes: dict[str, Any] = {
                "num_filters": channels[0],
                "latent_channels": channels[1],
                "means": architecture == "mbt2018-mean",
            }
            self.hyper_analysis = HyperAnalysis(**sizes, dtype=policy, name="hyper_analysis")
            self.hyper_synthesis = HyperSynthesis(**sizes, dtype=policy, name="hyper_synthesis")
            self.gaussian_conditional = GaussianConditional(dtype=policy, name="gaussian_conditional")
        self.synthesis = None
        if architecture not in WITHOUT_SYNTHESIS:
            activation = "relu" if architecture.endswith("-relu") else "gdn"
            self.synthesis = SynthesisTransform(
                activation, self.num_filters, self.latent_channels, dtype=policy, name="synthesis"
            )
        self.build((None, None, None, 3))

    def build(self, input_shape: Shape) -> None:
        latent_shape = (None, None, None, self.latent_channels)
        hyper_shape = (None, None, None, self.num_filters)
        self.analysis.build((None, None, None, 3))
        is_factorized = self.hyper_analysis is None
        for layer, shape in (
            (self.entropy_bottleneck, latent_shape if is_factorized else hyper_shape),
            (self.synthesis, latent_shape),
            (self.hyper_analysis, latent_shape),
            (self.hyper_synthesis, hyper_shape),
            (self.gaussian_conditional, latent_shape),
        ):
            if layer is not None:
                layer.build(shape)
        self.built = True

    def call(
        self,
        images: Tensor | dict[str, Tensor],
        noise: Tensor | None = None,
        training: bool = False,
        hyper_noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Images through the whole compressor.

        Args:
            images: As the class says.
            noise: What stands for rounding in training, shaped as the latents, in (-1/2, 1/2); None to draw it. The
                backends draw differently, so equal results on all of them need equal noise.
            training: Whether to add noise, else to round.
            hyper_noise: What `noise` is, of the hyper-latents.
        """
        if isinstance(images, dict):
            noise, hyper_noise = images.get("noise", noise), images.get("hyper_noise", hyper_noise)
            images = images["images"]
        check_images(images.shape, self.downsampling_factor, self.name)
        latents = self.analysis(images)
        outputs = {"latents": latents}
        if self.entropy_bottleneck is None:
            quantised = ops.round(latents)
        elif self.hyper_analysis is None:
            quantised, outputs["likelihoods"] = self.entropy_bottleneck(latents, noise=noise, training=training)
        else:
            hyper_latents, outputs["hyper_likelihoods"] = self.entropy_bottleneck(
                self.hyper_analysis(latents), noise=hyper_noise, training=training
            )
            quantised, outputs["likelihoods"] = self.gaussian_conditional(
                latents, self.hyper_synthesis(hyper_latents), noise=noise, training=training
            )
        if self.synthesis is not None:
            outputs["x_hat"] = self.synthesis(quantised)
        return outputs

    @property
    def origin(self) -> dict[str, Any] | None:
        """The former name of `source`."""
        return self.source

    def encode(self, images: Tensor) -> Tensor:
        """Latents of a batch of images, not quantised.

        Args:
            images: `(batch, height, width, 3)`, uint8 or float, RGB in 0..255; height and width multiples of 16.

        Returns:
            Backend tensor `(batch, height / 16, width / 16, M)`.

        Raises:
            ValueError: Wrong rank, channels or size.
        """
        return self.analysis.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images of a batch of latents.

        Args:
            latents: `(batch, height, width, M)`, quantised or not.

        Returns:
            Backend tensor `(batch, 16 * height, 16 * width, 3)`, RGB in 0..255, not clipped.

        Raises:
            ValueError: The architecture's synthesis transform is not part of this package; a wrong shape.
        """
        if self.synthesis is None:
            raise ValueError(f"{self.architecture} has no synthesis transform here: it encodes only.")
        latents = ops.convert_to_tensor(latents)
        if len(latents.shape) != 4 or latents.shape[-1] != self.latent_channels:
            raise ValueError(
                f"Latents have the shape (batch, height, width, {self.latent_channels}). "
                f"Received: shape={tuple(latents.shape)}"
            )
        return self.synthesis(latents, training=False)

    def bits_per_pixel(self, images: Tensor) -> float:
        """Bits per pixel that a batch of images takes, by the likelihoods of its latents and hyper-latents.

        Args:
            images: `(batch, height, width, 3)`, as the class says.

        Returns:
            float, the mean over the batch.

        Raises:
            ValueError: The architecture's prior is not part of this package; wrong rank, channels or size.
        """
        self._check_prior()
        images = ops.convert_to_tensor(images)
        check_images(images.shape, self.downsampling_factor, self.name)
        _, bits = distortion_and_rate(images, self(images, training=False))
        return float(ops.convert_to_numpy(ops.mean(bits)))

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "architecture": self.architecture,
            "quality": self.quality,
            "channels": (self.num_filters, self.latent_channels),
            "origin": self.source,
            "dtype": self.dtype_policy.name,
            **presets.frozen_config(self),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return presets.freeze_as(config, lambda arguments: cls(**arguments))

    def save_to_preset(
        self,
        preset_dir: PathLike,
        metadata: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
        storage: str = "float32",
    ) -> None:
        """Writes architecture, weights and tables of the entropy coder as a preset directory, aside and renamed.

        Args:
            preset_dir: Directory to write; an existing preset there is replaced.
            metadata: Further entries of `metadata.json`, values that JSON can hold.
            files: Further files, as a dict of name to bytes.
            storage: "float32", "float16" or "int8", as in `keras_ci2p.presets.compact_weights`; what is loaded from it
                is float32 again.

        Raises:
            FileExistsError: `preset_dir` exists and is no preset.
            ValueError: Unknown storage.
        """
        tables = self.tables_file()
        stored = {} if tables is None else {presets.TABLES: tables}
        presets.save_preset(
            preset_dir,
            config=presets.serialize_model(self),
            task=None,
            weights={presets.WEIGHTS: self._uncompiled().save_weights},
            metadata={"parameter_count": self.count_params(), **(metadata or {})},
            files={**(files or {}), **stored},
            storage=storage,
        )

    def _uncompiled(self) -> Self:
        """Itself or a copy: Keras writes a compiled model's optimizer into weight files too."""
        if not self.compiled:
            return self
        copy = type(self).from_config(self.get_config())
        for ours, theirs in zip(copy.weights, self.weights, strict=True):
            ours.assign(theirs)
        return copy

    @classmethod
    def from_preset(cls, preset: PathLike | Preset, dtype: str | keras.DTypePolicy | None = None) -> Self:
        """The compressor of a preset.

        Args:
            preset: A preset directory, a name of `keras_ci2p.list_presets()`, or a name of CompressAI's zoo such as
                "bmshj2018-factorized-mse-5", which is downloaded once.
            dtype: Dtype policy in place of the preset's.

        Raises:
            keras_ci2p.presets.PresetError: Unknown name, missing, truncated or foreign file.
            OSError: The published file could not be downloaded, or is not the published one.
        """
        files = presets.open_preset(preset)
        config = files.config(keras.saving.get_registered_name(cls), f"a {cls.__name__}")
        config = {**config, "dtype": dtype or config.get("dtype")}
        if dtype is not None:
            # Its own error, in place of one of the preset's.
            keras.dtype_policies.get(dtype)
        try:
            compressor = cls(**config)
        except (TypeError, ValueError) as error:
            raise presets.PresetError(
                f"The configuration in {files.directory} does not fit a Compressor: {error}"
            ) from error
        with files.reading(presets.WEIGHTS) as path:
            compressor.load_weights(path)
        if presets.TABLES in files.metadata["files"] and compressor.entropy_bottleneck is not None:
            compressor.load_tables((files.directory / presets.TABLES).read_bytes())
        name = presets.preset_name(files.directory)
        if name is not None and compressor.source is None:
            # A preset cannot hold its own hash.
            source = {"name": name, "sha256": files.metadata["files"][presets.WEIGHTS]}
            compressor.source = compressor.analysis.source = source
        return compressor


def compressor_channels(architecture: str, quality: int, channels: tuple[int, int]) -> tuple[int, int]:
    """(N, M) of a compressor.

    Raises:
        ValueError: Unknown architecture or quality; neither quality nor channels; channels that contradict the quality.
    """
    if architecture not in CHANNELS:
        raise ValueError(wrong_choice("architecture", architecture, CHANNELS))
    known = CHANNELS[architecture]
    if quality is None:
        if channels is None:
            raise ValueError("Give the `quality` or the `channels` (N, M). Received: quality=None, channels=None")
        if not isinstance(channels, (list, tuple)) or len(channels) != 2:
            raise ValueError(f"`channels` must be two integers, (N, M). Received: channels={channels!r}")
        return tuple(channels)
    if quality not in known:
        raise ValueError(
            f"`quality` of {architecture} must be in {min(known)}..{max(known)}. Received: quality={quality!r}"
        )
    if channels is not None and tuple(channels) != known[quality]:
        raise ValueError(
            f"{architecture} at quality {quality} has the channels (N, M) = {known[quality]}. "
            f"Received: channels={tuple(channels)}"
        )
    return known[quality]
