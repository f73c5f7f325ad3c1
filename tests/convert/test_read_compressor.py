"""One parser of a compressor's source, whoever asks."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.convert import CheckpointError, read_compressor, to_compressai
from keras_ci2p.presets import PresetError

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

SMALL = {"num_filters": 8, "latent_channels": 12}


def encode(compressor):
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
    return keras.ops.convert_to_numpy(getattr(compressor, "analysis", compressor)(images))


def classifier(kind, nano):
    sizes = {**nano, "early_dim": 16, "merge_at": 1} if kind is CI2PViTDualScale else nano
    return kind((32, 32, 3), num_classes=3, compressor=SMALL, **sizes)


@pytest.mark.parametrize("is_run", [False, True], ids=["preset", "run"])
@pytest.mark.parametrize("kind", [Compressor, CI2PViT, CI2PViTDualScale])
def test_presets_and_runs_of_either_kind(kind, is_run, nano, tmp_path):
    model = Compressor(quality=None, channels=(8, 12)) if kind is Compressor else classifier(kind, nano)
    model.save_to_preset(tmp_path / "one" / ("best" if is_run else ""))
    found = read_compressor(tmp_path / "one")
    expected = encode(model if kind is Compressor else model.compressor)
    np.testing.assert_array_equal(encode(found), expected)
    assert isinstance(found, Compressor) == (kind is Compressor)
    # As `train` and `cache` use it.
    copy = CI2PViT((32, 32, 3), compressor=found, **nano)
    np.testing.assert_array_equal(encode(copy.compressor), expected)


def test_a_checkpoint_and_none(tmp_path):
    compressor = Compressor(quality=None, channels=(8, 12))
    save_file(to_compressai(compressor), tmp_path / "file.safetensors")
    np.testing.assert_array_equal(encode(read_compressor(tmp_path / "file.safetensors")), encode(compressor))
    assert read_compressor(None) is None and read_compressor("none") is None


def test_what_holds_none(nano, tmp_path):
    ViT((32, 32, 3), **nano).save_to_preset(tmp_path / "vit")
    with pytest.raises(PresetError, match="has no compressor: it is a ViT"):
        read_compressor(tmp_path / "vit")
    with pytest.raises(PresetError, match="Unknown preset 'nobody'"):
        read_compressor("nobody")
    (tmp_path / "file.safetensors").write_text("mine")
    with pytest.raises(CheckpointError, match="no readable|not a readable"):
        read_compressor(tmp_path / "file.safetensors")
