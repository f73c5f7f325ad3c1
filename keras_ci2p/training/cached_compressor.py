"""The compressor of a latent cache as a preset directory."""

import keras

from keras_ci2p.layers import AnalysisTransform
from keras_ci2p.layers.ci2p_patch_embedding import compressor_config
from keras_ci2p.models import Compressor
from keras_ci2p.presets import WEIGHTS, open_preset, write_preset

_ANALYSIS = keras.saving.get_registered_name(AnalysisTransform)


def analysis_of(compressor):
    """The `AnalysisTransform` of a `Compressor`; one that is given as it is."""
    return compressor.analysis if isinstance(compressor, Compressor) else compressor


def write_compressor(directory, compressor):
    """Writes a `Compressor`, or an `AnalysisTransform` where there is no more, as a preset."""
    if isinstance(compressor, Compressor):
        compressor.save_to_preset(directory)
        return
    config = {"registered_name": _ANALYSIS, "config": compressor_config(compressor)}
    write_preset(directory, config, None, {WEIGHTS: _as_model(compressor).save_weights}, metadata={})


def cached_compressor(cache):
    """The compressor that made a latent cache, as `CI2PViT(compressor=...)` takes it.

    Args:
        cache: `keras_ci2p.data.LatentCache`.

    Returns:
        `Compressor`, or `AnalysisTransform` where only that was known.

    Raises:
        keras_ci2p.presets.PresetError: It is missing or damaged.
        DataError: It is not the one that made the latents.
    """
    preset = open_preset(cache.compressor_preset)
    if preset.registered_name() == _ANALYSIS:
        compressor = AnalysisTransform(**preset.config(_ANALYSIS, "an AnalysisTransform"))
        model = _as_model(compressor)
        with preset.reading(WEIGHTS) as path:
            model.load_weights(path)
    else:
        compressor = Compressor.from_preset(preset)
    cache.check_compressor(analysis_of(compressor))
    return compressor


def _as_model(transform):
    """Layers have no weight files of their own."""
    images = keras.Input((None, None, 3), name="images")
    return keras.Model(images, transform(images))
