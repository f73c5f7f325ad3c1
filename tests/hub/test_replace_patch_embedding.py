"""CI2P in place of the patch embedding of a KerasHub ViT."""

import keras
import keras_hub
import numpy as np
import pytest
from nano_models import COMPRESSOR, VIT, assert_same_weights, to_numpy

from keras_ci2p import Compressor
from keras_ci2p.hub import replace_patch_embedding
from keras_ci2p.layers.embedding import resize_position_embedding


def make_vit(**arguments):
    return keras_hub.models.ViTBackbone(**{**VIT, **arguments})


def make_classifier(backbone, **arguments):
    converter = keras_hub.layers.ViTImageConverter(image_size=(64, 64), scale=1 / 127.5, offset=-1)
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)
    return keras_hub.models.ViTImageClassifier(backbone=backbone, num_classes=2, preprocessor=preprocessor, **arguments)


@pytest.mark.once
def test_weights_of_the_size_of_a_pretrained_vit():
    """ViT-B/16 at 224 px, but for the number of its blocks."""
    vit = make_vit(image_shape=(224, 224, 3), hidden_dim=768, num_heads=12, mlp_dim=3072, num_layers=2)
    replaced = replace_patch_embedding(vit)
    assert vit.output.shape == (None, 14 * 14 + 1, 768)
    assert replaced.output.shape == (None, 7 * 7 + 1, 768)
    assert_same_weights(replaced.get_layer("vit_encoder"), vit.get_layer("vit_encoder"))

    theirs, ours = vit.get_layer("vit_patching_and_embedding"), replaced.get_layer("class_token_and_positions")
    np.testing.assert_array_equal(to_numpy(ours.class_token), to_numpy(theirs.class_token))
    rows = to_numpy(theirs.position_embedding.embeddings)[None]
    positions = to_numpy(ours.position_embedding)
    np.testing.assert_array_equal(positions[:, :1], rows[:, :1])
    np.testing.assert_array_equal(positions[:, 1:], resize_position_embedding(rows[:, 1:], (14, 14), (7, 7)))


@pytest.mark.once
def test_it_computes_what_the_vit_does_from_the_same_tokens():
    """Patches of 32 pixels, so that no position is resized: the new embedding gets the old one's tokens."""
    vit = make_vit(patch_size=32)
    replaced = replace_patch_embedding(vit, {**COMPRESSOR})
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype("float32")
    convolution = vit.get_layer("vit_patching_and_embedding").patch_embedding
    tokens = keras.ops.reshape(convolution(images), (2, 4, 32))
    positions, encoder = (replaced.get_layer(name) for name in ("class_token_and_positions", "vit_encoder"))
    np.testing.assert_allclose(to_numpy(encoder(positions(tokens))), to_numpy(vit(images)), atol=1e-5)


@pytest.mark.once
def test_fit_of_a_classifier(tmp_path):
    before = make_classifier(make_vit(), intermediate_dim=8)
    compressor = Compressor(quality=None, channels=(8, 12))
    after = replace_patch_embedding(before, compressor)
    assert_same_weights(after.intermediate_layer, before.intermediate_layer)
    assert_same_weights(after.output_dense, before.output_dense)
    assert_same_weights(after.backbone.get_layer("patch_embedding").compressor, compressor.analysis)
    assert after.preprocessor.image_size == (64, 64)
    np.testing.assert_array_equal(to_numpy(after.preprocessor(np.full((1, 64, 64, 3), 200.0))), 200)
    assert before.preprocessor.image_converter.offset == -1

    # Two classes, dark and bright.
    labels = np.array([0, 1] * 8)
    noise = np.random.default_rng(0).uniform(0, 100, (16, 80, 64, 3)).astype("float32")
    images = noise + 150 * labels[:, None, None, None].astype("float32")
    kept = [to_numpy(weight) for weight in before.weights]
    after.compile(
        keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    losses = after.fit(images, labels, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert_same_weights(after.backbone.get_layer("patch_embedding").compressor, compressor.analysis)
    for weight, expected in zip(before.weights, kept, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), expected)

    expected = after.predict(images[:2], verbose=0)
    after.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(images[:2], verbose=0), expected)
    after.save_to_preset(tmp_path / "preset")
    loaded = keras_hub.models.ViTImageClassifier.from_preset(str(tmp_path / "preset"))
    np.testing.assert_array_equal(loaded.predict(images[:2], verbose=0), expected)
    assert loaded.backbone.get_layer("patch_embedding").freeze_compressor


def test_without_class_token_and_preprocessor():
    backbone = make_vit(use_class_token=False, image_shape=(96, 64, 3))
    classifier = keras_hub.models.ViTImageClassifier(backbone=backbone, num_classes=2, pooling="gap")
    replaced = replace_patch_embedding(classifier, COMPRESSOR, freeze_compressor=False)
    assert replaced.preprocessor is None
    assert replaced.backbone.output.shape == (None, 6, 32)
    assert not replaced.backbone.get_layer("patch_embedding").freeze_compressor


def test_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        replace_patch_embedding(make_vit(image_shape=(48, 48, 3)))
    with pytest.raises(ValueError, match="Received: model=Sequential"):
        replace_patch_embedding(keras.Sequential())
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="data_format='channels_first'"):
            replace_patch_embedding(make_vit(image_shape=(3, 64, 64), data_format="channels_first"))
