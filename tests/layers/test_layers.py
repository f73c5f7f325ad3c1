"""Each layer alone: round trip through config and files, shapes, dtypes, its formula."""

import keras
import numpy as np
import pytest
from keras.src import testing

from keras_ci2p import layers


class LayerTests(testing.TestCase):
    def check(self, layer_class, kwargs, input_shape, output_shape, trainable, non_trainable=0, seeds=0, **options):
        self.run_layer_test(
            layer_class,
            init_kwargs=kwargs,
            input_shape=input_shape,
            expected_output_shape=output_shape,
            expected_num_trainable_weights=trainable,
            expected_num_non_trainable_weights=non_trainable,
            expected_num_seed_generators=seeds,
            supports_masking=False,
            **options,
        )

    def test_symmetric_conv(self):
        for strides, size in ((1, (7, 6)), (2, (4, 3))):
            kwargs = {"filters": 4, "kernel_size": 5, "strides": strides}
            self.check(layers.SymmetricConv2D, kwargs, (2, 7, 6, 3), (2, *size, 4), 2)

    def test_symmetric_depthwise_conv(self):
        for strides, size in ((1, (7, 6)), (2, (4, 3))):
            kwargs = {"kernel_size": 3, "strides": strides}
            self.check(layers.SymmetricDepthwiseConv2D, kwargs, (2, 7, 6, 3), (2, *size, 3), 2)

    def test_inverted_residual(self):
        kwargs = {"filters": 6, "expanded_filters": 24, "kernel_size": 3, "strides": 1}
        self.check(layers.InvertedResidual, kwargs, (2, 8, 8, 6), (2, 8, 8, 6), 13, 6)
        kwargs = {"filters": 8, "expanded_filters": 36, "kernel_size": 5, "strides": 2}
        self.check(layers.InvertedResidual, kwargs, (2, 8, 6, 6), (2, 4, 3, 8), 13, 6)

    def test_drop_path(self):
        self.check(layers.DropPath, {"rate": 0.0}, (2, 3, 4), (2, 3, 4), 0)
        self.check(layers.DropPath, {"rate": 0.5, "seed": 1}, (2, 3, 4), (2, 3, 4), 0, seeds=1)

    def test_transformer_block(self):
        self.check(layers.TransformerBlock, {"num_heads": 2, "mlp_dim": 12}, (2, 5, 8), (2, 5, 8), 12)
        kwargs = {"num_heads": 4, "mlp_dim": 12, "drop_path_rate": 0.2, "seed": 3}
        self.check(layers.TransformerBlock, kwargs, (2, 5, 8), (2, 5, 8), 12, seeds=1)

    def test_position_embedding(self):
        self.check(layers.PositionEmbedding, {"grid": (2, 3)}, (2, 6, 4), (2, 6, 4), 1)

    def test_image_normalization(self):
        self.check(layers.ImageNormalization, {}, (2, 4, 4, 3), (2, 4, 4, 3), 0, run_training_check=False)

    def test_patch_generator(self):
        self.check(layers.PatchGenerator, {"hidden_dim": 10}, (2, 6, 4, 4), (2, 6, 10), 26, 12)

    # JAX compiles slowly: what is trained as part of another layer is not trained alone.
    def test_fine_patch_generator(self):
        kwargs = {"hidden_dim": 10, "strides": 1}
        self.check(layers.PatchGenerator, kwargs, (2, 3, 4, 4), (2, 12, 10), 26, 12, run_training_check=False)

    def test_fine_patch_generator_of_0_1_0(self):
        """Its name and its configuration, which had no strides."""
        config = {"hidden_dim": 10, "name": "patches"}
        saved = {"module": None, "class_name": "FinePatchGenerator", "registered_name": "keras_ci2p>FinePatchGenerator"}
        for make in (
            lambda: layers.FinePatchGenerator(**config),
            lambda: keras.saving.deserialize_keras_object({**saved, "config": config}),
        ):
            layer = make()
            assert layer.strides == 1 and layer.compute_output_shape((2, 3, 4, 6)) == (2, 12, 10)
            assert isinstance(layer, layers.PatchGenerator)
        assert layers.PatchGenerator.from_config(config).strides == 2
        with pytest.raises(ValueError, match="`strides` must be 1 or 2. Received: strides=3"):
            layers.PatchGenerator(10, strides=3)

    def test_the_public_names(self):
        assert len(layers.__all__) == 22 and "FinePatchGenerator" not in layers.__all__
        assert layers.ResidualBlock and layers.SymmetricConv2DTranspose, "importable as in 0.1.0"

    def test_leff(self):
        kwargs = {"mlp_dim": 12, "grid": (2, 3)}
        self.check(layers.LeFF, kwargs, (2, 6, 8), (2, 6, 8), 11, 6, run_training_check=False)

    def test_leff_block(self):
        kwargs = {"num_heads": 2, "mlp_dim": 12, "grid": (2, 3), "drop_path_rate": 0.2, "seed": 3}
        self.check(layers.LeFFBlock, kwargs, (2, 6, 8), (2, 6, 8), 19, 6, seeds=1)

    def test_patch_merging(self):
        kwargs = {"hidden_dim": 10, "grid": (3, 4)}
        self.check(layers.PatchMerging, kwargs, (2, 12, 4), (2, 4, 10), 13, 6, run_training_check=False)

    def test_analysis_transform(self):
        for architecture, trainable in (("bmshj2018-factorized", 14), ("bmshj2018-factorized-relu", 8)):
            kwargs = {"architecture": architecture, "num_filters": 4, "latent_channels": 6}
            self.check(layers.AnalysisTransform, kwargs, (2, 32, 16, 3), (2, 2, 1, 6), trainable)
        kwargs["frozen"] = True
        self.check(layers.AnalysisTransform, kwargs, (2, 32, 16, 3), (2, 2, 1, 6), 0, 8, run_training_check=False)

    def test_residual_blocks(self):
        self.check(layers.ResidualBlock, {"filters": 4}, (2, 6, 5, 4), (2, 6, 5, 4), 4)
        self.check(layers.StridedResidualBlock, {"filters": 6}, (2, 6, 5, 4), (2, 3, 3, 6), 8)
        self.check(layers.ResidualUnit, {"filters": 4}, (2, 6, 5, 4), (2, 6, 5, 4), 6)
        self.check(layers.AttentionBlock, {"filters": 4}, (2, 4, 4, 4), (2, 4, 4, 4), 38)

    def test_synthesis_transform(self):
        self.check(layers.SymmetricConv2DTranspose, {"filters": 4}, (2, 3, 2, 5), (2, 6, 4, 4), 2)
        for activation, trainable in (("gdn", 14), ("relu", 8)):
            kwargs = {"activation": activation, "num_filters": 4, "latent_channels": 6}
            # Pixels are float32 under every policy, so Keras's check for 16-bit outputs does not apply.
            shapes = (2, 2, 1, 6), (2, 32, 16, 3)
            self.check(layers.SynthesisTransform, kwargs, *shapes, trainable, run_mixed_precision_check=False)
            half = layers.SynthesisTransform(**kwargs, dtype="mixed_bfloat16")(np.zeros(shapes[0], "float32"))
            assert keras.backend.standardize_dtype(half.dtype) == "float32"

    def test_cheng_analysis_transforms(self):
        for architecture, trainable in (("cheng2020-anchor", 38), ("cheng2020-attn", 114)):
            layer = layers.AnalysisTransform(architecture, num_filters=4, latent_channels=4)
            assert layer(np.zeros((1, 32, 48, 3), "float32")).shape == (1, 2, 3, 4)
            assert len(layer.trainable_weights) == trainable
            assert layer.is_randomly_initialized

    def test_ci2p_patch_embedding(self):
        kwargs = {"hidden_dim": 10, "compressor": {"num_filters": 4, "latent_channels": 6}}
        self.check(layers.CI2PPatchEmbedding, kwargs, (2, 64, 32, 3), (2, 2, 10), 26, 26)
        kwargs["freeze_compressor"] = False
        self.check(layers.CI2PPatchEmbedding, kwargs, (2, 64, 32, 3), (2, 2, 10), 40, 12)


def test_symmetric_conv_pads_all_sides_alike():
    """An impulse in each corner of an even image is seen from a mirrored output position, even at stride 2."""
    layer = layers.SymmetricConv2D(1, 5, strides=2, use_bias=False, kernel_initializer="ones")
    image = np.zeros((1, 8, 8, 1), "float32")
    image[0, 0, 0] = 1
    seen = keras.ops.convert_to_numpy(layer(image))[0, :, :, 0]
    # Output i covers rows 2i-2 .. 2i+2; TensorFlow's "same" would cover 2i-1 .. 2i+3.
    expected = np.zeros((4, 4))
    expected[:2, :2] = 1
    np.testing.assert_array_equal(seen, expected)


def test_inverted_residual_adds_its_input_only_where_shapes_agree(rng):
    x = rng.standard_normal((1, 4, 4, 6)).astype("float32")
    with_residual = layers.InvertedResidual(6, 24)
    with_residual.build(x.shape)
    with_residual.project_norm.gamma.assign(np.zeros(6))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(with_residual(x)), x)
    for other in (layers.InvertedResidual(6, 24, strides=2), layers.InvertedResidual(8, 24)):
        other.build(x.shape)
        other.project_norm.gamma.assign(np.zeros(other.filters))
        assert not keras.ops.convert_to_numpy(other(x)).any()


@pytest.mark.parametrize(("channels", "width"), [(768, 192), (1152, 288), (1536, 384), (8, 8), (60, 16), (148, 40)])
def test_squeeze_width(channels, width):
    from keras_ci2p.layers.embedding import squeeze_width

    assert squeeze_width(channels) == width


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = layers.DropPath(0.3, seed=1)
    x = np.ones((4000, 2, 3), "float32")
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    per_sample = y.reshape(4000, -1)
    assert (per_sample == per_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_sample), [0, 1 / 0.7], rtol=1e-6)
    assert abs(y.mean() - 1) < 0.05
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), x)
    with pytest.raises(ValueError, match="rate"):
        layers.DropPath(1.0)


def test_heads_must_divide_the_width():
    for block in (layers.TransformerBlock(3, 8), layers.LeFFBlock(3, 8, (2, 2))):
        with pytest.raises(ValueError, match="num_heads"):
            block(np.zeros((1, 4, 8), "float32"))


def test_tokens_must_fill_the_grid():
    for layer in (layers.LeFF(8, (2, 3)), layers.LeFFBlock(2, 8, (2, 3)), layers.PatchMerging(8, (2, 3))):
        with pytest.raises(ValueError, match=r"grid of \(2, 3\)"):
            layer(np.zeros((1, 5, 8), "float32"))


def test_leff_sees_the_neighbours_in_the_grid(rng):
    """Row 1, column 2 of 4 x 5 tokens reaches the tokens around it and no others."""
    layer = layers.LeFF(12, (4, 5))
    tokens = rng.standard_normal((1, 20, 6)).astype("float32")
    before = keras.ops.convert_to_numpy(layer(tokens))
    tokens[0, 1 * 5 + 2] += 1
    changed = (keras.ops.convert_to_numpy(layer(tokens)) != before).any(-1).reshape(4, 5)
    expected = np.zeros((4, 5), bool)
    expected[0:3, 1:4] = True
    np.testing.assert_array_equal(changed, expected)


def test_leff_ends_with_a_gelu(rng):
    layer = layers.LeFF(12, (2, 2))
    layer.build((None, 4, 6))
    layer.project_norm.gamma.assign(np.full(6, 100.0))
    outputs = keras.ops.convert_to_numpy(layer(rng.standard_normal((8, 4, 6)).astype("float32"), training=True))
    assert outputs.max() > 10
    assert -0.17 < outputs.min() < 0


def test_patch_merging_works_on_the_grid(rng):
    x = rng.standard_normal((2, 4, 6, 3)).astype("float32")
    layer = layers.PatchMerging(5, (4, 6))
    merged = keras.ops.convert_to_numpy(layer(x.reshape(2, 24, 3)))
    assert layer.merged_grid == (2, 3)
    np.testing.assert_allclose(merged.reshape(2, 2, 3, 5), keras.ops.convert_to_numpy(layer.reduce(x)), atol=1e-6)


def test_blocks_drop_both_branches(rng):
    """Nearly every branch is dropped: what is left is the input."""
    x = rng.standard_normal((4, 6, 8)).astype("float32")
    for block in (
        layers.TransformerBlock(2, 12, drop_path_rate=0.999, seed=1),
        layers.LeFFBlock(2, 12, (2, 3), drop_path_rate=0.999, seed=1),
    ):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(block(x, training=True)), x)
        assert (keras.ops.convert_to_numpy(block(x, training=False)) != x).any()


class TestAnalysisTransform:
    def make(self, **kwargs):
        return layers.AnalysisTransform(num_filters=4, latent_channels=6, **kwargs)

    def test_uint8_and_float_images_give_the_same_latents(self, rng):
        images = rng.integers(0, 256, (1, 32, 48, 3)).astype("uint8")
        encoder = self.make()
        latents = keras.ops.convert_to_numpy(encoder.encode(images))
        assert latents.shape == (1, 2, 3, 6)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(encoder.encode(images.astype("float32"))), latents)

    def test_pixels_are_scaled_in_float32_under_16_bit_policies(self):
        """Of 64 to 127, x + 0.3 and x + 0.7 are one bfloat16 number, but (x + 0.3)/255 and (x + 0.7)/255 are two."""
        encoder = self.make(dtype="mixed_bfloat16")
        images = np.random.default_rng(0).integers(64, 128, (1, 64, 64, 3)).astype("float32") + 0.3
        low, high = (keras.ops.convert_to_numpy(keras.ops.cast(encoder(x), "float32")) for x in (images, images + 0.4))
        assert (low != high).any()

    def test_initial_weights_are_those_of_torch(self):
        encoder = layers.AnalysisTransform()
        encoder.build((None, None, None, 3))
        for conv, fan_in in zip(encoder.stages[::2], (75, 3200, 3200, 3200), strict=True):
            for variable in (conv.kernel, conv.bias):
                values = keras.ops.convert_to_numpy(variable)
                assert 0.9 < np.abs(values).max() * np.sqrt(fan_in) <= 1
                assert abs(values.std() * np.sqrt(3 * fan_in) - 1) < 0.15

    def test_frozen_stays_frozen(self):
        encoder = self.make(frozen=True)
        encoder.build((None, 32, 32, 3))
        encoder.trainable = True
        assert not encoder.trainable_weights
        clone = layers.AnalysisTransform.from_config(encoder.get_config())
        clone.build((None, 32, 32, 3))
        assert clone.frozen and not clone.trainable_weights
        encoder.frozen = False
        assert len(encoder.trainable_weights) == 14

    def test_random_initialisation_is_recognised(self):
        encoder, other = self.make(), self.make()
        for layer in (encoder, other):
            layer.build((None, 32, 32, 3))
            assert layer.is_randomly_initialized
        encoder.set_weights(other.get_weights())
        assert not encoder.is_randomly_initialized

    @pytest.mark.parametrize("shape", [(1, 32, 40, 3), (1, 32, 32, 4), (32, 32, 3), (1, 0, 32, 3)])
    def test_bad_images(self, shape):
        with pytest.raises(ValueError, match="shape="):
            self.make().encode(np.zeros(shape, "uint8"))

    def test_unknown_architecture(self):
        with pytest.raises(ValueError, match="bmshj2018-factorized-relu"):
            layers.AnalysisTransform("jpeg")


def test_patch_embedding_copies_a_compressor(rng):
    encoder = layers.AnalysisTransform(num_filters=4, latent_channels=6)
    images = rng.integers(0, 256, (1, 64, 64, 3)).astype("uint8")
    latents = keras.ops.convert_to_numpy(encoder.encode(images))
    embedding = layers.CI2PPatchEmbedding(10, compressor=encoder)
    assert embedding(images).shape == (1, 4, 10)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(embedding.compressor.encode(images)), latents)
    assert embedding.compressor.frozen and not encoder.frozen
    with pytest.raises(ValueError, match="multiples of 32"):
        embedding(images[:, :48])
    with pytest.raises(ValueError, match="AnalysisTransform"):
        layers.CI2PPatchEmbedding(10, compressor="some name")


def test_channels_first_configuration_changes_nothing(rng):
    images = rng.integers(0, 256, (1, 64, 32, 3)).astype("uint8")
    embedding = layers.CI2PPatchEmbedding(10, compressor={"num_filters": 4, "latent_channels": 6})
    expected = keras.ops.convert_to_numpy(embedding(images))
    before = keras.config.image_data_format()
    try:
        keras.config.set_image_data_format("channels_first")
        other = layers.CI2PPatchEmbedding(10, compressor={"num_filters": 4, "latent_channels": 6})
        other.build(images.shape)
        other.set_weights(embedding.get_weights())
        np.testing.assert_allclose(keras.ops.convert_to_numpy(other(images)), expected, atol=1e-5)
    finally:
        keras.config.set_image_data_format(before)
