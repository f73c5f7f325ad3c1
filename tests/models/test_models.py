import math
import warnings

import keras
import numpy as np
import pytest
from conftest import once

from keras_ci2p import CI2PViT, CI2PViTDualScale, ViT, models

SMALL_COMPRESSOR = {"num_filters": 8, "latent_channels": 12}
CI2P = ["ci2p", once("ci2p_dual")]


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.fixture(params=[*CI2P, once("vit")])
def make(request, nano):
    def build(image_shape=(64, 96, 3), **kwargs):
        if request.param == "vit":
            return ViT(image_shape, **{**nano, **kwargs})
        if request.param == "ci2p_dual":
            nano.update(early_dim=16, merge_at=1)
        return models.CLASSIFIERS[request.param](image_shape, **{"compressor": SMALL_COMPRESSOR, **nano, **kwargs})

    build.kind = request.param
    return build


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 64, 96, 3)).astype("uint8")


def parameters(weights):
    return sum(math.prod(w.shape) for w in weights if not w.name.startswith("moving_"))


@pytest.mark.once
def test_parameter_counts_of_the_paper():
    model = CI2PViT()
    assert parameters(model.weights) == 88_964_010
    assert parameters(model.trainable_weights) == 87_470_698
    counts = {layer.name: parameters(layer.weights) for layer in model.layers}
    assert counts["compressor"] == 1_493_312
    assert counts["patch_generator"] == 2_407_008
    assert counts["head"] == 7_690
    assert parameters(ViT().weights) == 85_850_890


@pytest.mark.once
def test_parameter_counts_of_the_dual_scale_model():
    model = CI2PViTDualScale()
    assert parameters(model.weights) == 50_939_082
    assert parameters(model.trainable_weights) == 50_939_082 - 1_493_312
    counts = {layer.name: parameters(layer.weights) for layer in model.layers}
    assert counts["compressor"] == 1_493_312
    assert counts["patch_generator"] == 1_202_304
    assert counts["merge"] == 2_677_632
    others = counts["compressor"] + counts["patch_generator"] + counts["head"]
    assert sum(counts.values()) - others == 48_235_776


@pytest.mark.once
def test_layer_names():
    names = [layer.name for layer in CI2PViT(variant="tiny").layers]
    blocks = [f"block_{i}" for i in range(12)]
    assert names == ["images", "compressor", "patch_generator", *blocks, "norm", "pool", "head"]
    names = [layer.name for layer in CI2PViTDualScale(variant="tiny").layers]
    blocks.insert(6, "merge")
    assert names == ["images", "compressor", "patch_generator", "position_embedding", *blocks, "norm", "pool", "head"]


@pytest.mark.once
@pytest.mark.parametrize("variant", ["tiny", "small", "base_8"])
@pytest.mark.parametrize(
    ("model_class", "variants"), [(CI2PViT, models.VARIANTS), (CI2PViTDualScale, models.DUAL_SCALE_VARIANTS)]
)
def test_variants(variant, model_class, variants):
    sizes = variants[variant]
    backbone = model_class(variant=variant).backbone
    assert {key: getattr(backbone, key) for key in sizes} == sizes


@pytest.mark.once
def test_dual_scale_blocks_keep_head_width_and_mlp_ratio():
    for variant, sizes in models.DUAL_SCALE_VARIANTS.items():
        assert sizes["merge_at"] == sizes["num_layers"] / 2
        model = CI2PViTDualScale((32, 32, 3), variant=variant, num_layers=2, merge_at=1)
        early, late = model.get_layer("block_0"), model.get_layer("block_1")
        assert (late.num_heads, late.mlp_dim) == (sizes["num_heads"], sizes["mlp_dim"])
        narrowing = sizes["hidden_dim"] / sizes["early_dim"]
        assert (early.num_heads, early.mlp_dim) == (late.num_heads / narrowing, late.mlp_dim / narrowing)


@pytest.mark.parametrize("make", ["ci2p_dual"], indirect=True)
def test_scales_that_do_not_fit(make):
    for merge_at in (0, 2, "1"):
        with pytest.raises(ValueError, match="merge_at"):
            make(merge_at=merge_at)
    # Heads are 16 wide; a MLP of 47 / 2 is none.
    for wrong in ({"early_dim": 24}, {"early_dim": "16"}, {"early_dim": 0}, {"mlp_dim": 47}):
        with pytest.raises(ValueError, match="early_dim"):
            make(**wrong)


def test_stochastic_depth_rises_linearly(make):
    model = make((32, 32, 3), num_layers=3, drop_path_rate=0.2)
    rates = [model.get_layer(f"block_{i}").drop_path_rate for i in range(3)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2])


def test_initial_weights():
    """Standard deviations that the paper's code leaves (its runner's initialisation)."""
    model = CI2PViT(variant="base", num_layers=1)
    block, generator = model.get_layer("block_0"), model.patch_generator
    expected = [
        (generator.refine.expand.kernel, math.sqrt(2 / 768)),
        (generator.refine.depthwise.kernel, 0.0170),
        (generator.reduce.depthwise.kernel, 0.00833),
        (generator.refine.squeeze.kernel, math.sqrt(2 / 192)),
        (generator.refine.excite.kernel, math.sqrt(2 / 768)),
        (generator.reduce.project.kernel, math.sqrt(2 / 768)),
        (block.qkv.kernel, 0.02),
        (block.attention_output.kernel, 0.02),
        (block.mlp_hidden.kernel, math.sqrt(2 / (768 + 3072))),
        (block.mlp_hidden.bias, 1e-6),
        (model.head.kernel, 0.01),
    ]
    for variable, deviation in expected:
        assert abs(to_numpy(variable).std() / deviation - 1) < 0.05, variable.path
    vit = ViT((256, 256, 3), num_layers=1)
    assert abs(to_numpy(vit.get_layer("patch_embedding").kernel).std() / 0.0361 - 1) < 0.05
    assert abs(to_numpy(vit.get_layer("position_embedding").embedding).std() / 0.02 - 1) < 0.05
    dual = CI2PViTDualScale((256, 256, 3), num_layers=2, merge_at=1)
    early, late = dual.get_layer("block_0"), dual.get_layer("block_1")
    expected = [
        (dual.patch_generator.reduce.depthwise.kernel, 0.0170),
        (dual.get_layer("position_embedding").embedding, 0.02),
        (dual.get_layer("merge").reduce.depthwise.kernel, 0.0120),
        (early.qkv.kernel, 0.02),
        (early.leff.expand.kernel, 0.02),
        (early.leff.project.kernel, 0.02),
        (late.attention_output.kernel, 0.02),
        # Uniform up to a third.
        (late.leff.depthwise.kernel, 1 / 3 / math.sqrt(3)),
    ]
    for variable, deviation in expected:
        assert abs(to_numpy(variable).std() / deviation - 1) < 0.05, variable.path
    assert not to_numpy(early.leff.expand.bias).any()
    # Normal, not truncated at two deviations.
    assert np.abs(to_numpy(block.qkv.kernel)).max() > 0.06


def test_uint8_and_float_images_agree(make, images):
    model = make()
    logits = to_numpy(model(images))
    assert logits.shape == (3, 10)
    np.testing.assert_array_equal(to_numpy(model(images.astype("float32"))), logits)
    np.testing.assert_allclose(model.predict(images, verbose=0), logits, atol=1e-4)


def test_activation_and_class_names(make, images):
    model = make(num_classes=2, class_names=["cat", "dog"], activation="softmax")
    np.testing.assert_allclose(to_numpy(model(images)).sum(1), 1, rtol=1e-5)
    clone = type(model).from_config(model.get_config())
    assert clone.class_names == ["cat", "dog"] and clone.activation == "softmax"
    with pytest.raises(ValueError, match="class_names"):
        make(num_classes=3, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="num_classes"):
        make(num_classes=0)


@pytest.mark.parametrize("shape", [(64, 72, 3), (64, 64, 1), (64, 64), (0, 64, 3)])
def test_bad_image_shapes(make, shape):
    with pytest.raises(ValueError, match="shape"):
        make(shape)


def test_bad_batches(make):
    model = make()
    for shape in [(2, 64, 96, 4), (64, 96, 3), (2, 64, 100, 3)]:
        with pytest.raises(ValueError):
            model(np.zeros(shape, "float32"))


def test_unknown_variant(make):
    with pytest.raises(ValueError, match="tiny, small, base"):
        make(variant="huge")


@pytest.mark.once
def test_any_size(nano, images):
    model = CI2PViT((None, None, 3), compressor=SMALL_COMPRESSOR, **nano)
    fixed = CI2PViT((64, 96, 3), compressor=SMALL_COMPRESSOR, **nano)
    fixed.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(model(images)), to_numpy(fixed(images)), atol=1e-5)
    assert model(images[:, :32, :64]).shape == (3, 10)
    assert model.predict(images, verbose=0).shape == (3, 10)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(np.zeros((1, 40, 64, 3), "float32"))
    for model_class in (ViT, CI2PViTDualScale):
        with pytest.raises(ValueError, match="fixed"):
            model_class((None, None, 3))


def test_order_of_tokens_does_not_matter_to_the_classifier(nano, images):
    """No position embedding: swapping halves of the latents that the patch generator cannot connect changes nothing."""
    model = CI2PViT((64, 96, 3), compressor=SMALL_COMPRESSOR, **nano)
    tokens = to_numpy(model.patch_generator(model.compressor.encode(images)))
    inputs = outputs = keras.Input(tokens.shape[1:])
    for layer in model.layers[3:]:
        outputs = layer(outputs)
    rest = keras.Model(inputs, outputs)
    np.testing.assert_allclose(to_numpy(rest(tokens)), to_numpy(rest(tokens[:, ::-1].copy())), atol=1e-5)


class TestFreezing:
    def make(self, nano, **kwargs):
        return CI2PViT((32, 32, 3), num_classes=2, compressor=SMALL_COMPRESSOR, **nano, **kwargs)

    def fit(self, model):
        images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
        before = [to_numpy(w) for w in model.compressor.weights]
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(images, np.array([0, 1, 0, 1]), verbose=0)
        return [bool((to_numpy(w) != b).any()) for w, b in zip(model.compressor.weights, before, strict=True)]

    def test_frozen_by_default(self, nano):
        model = self.make(nano)
        model.trainable = True
        with pytest.warns(UserWarning, match="random weights"):
            assert not any(self.fit(model))

    @pytest.mark.once
    def test_unfrozen_learns_and_does_not_warn(self, nano):
        model = self.make(nano)
        model.freeze_compressor = False
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*random weights")
            changed = self.fit(model)
        assert all(changed)
        model.freeze_compressor = True
        assert not any(self.fit(model))

    @pytest.mark.once
    def test_a_loaded_compressor_does_not_warn(self, nano):
        other = self.make(nano)
        model = self.make(nano)
        model.compressor.set_weights(other.compressor.get_weights())
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*random weights")
            self.fit(model)


@pytest.mark.parametrize("make", CI2P, indirect=True)
@pytest.mark.parametrize("frozen", [True, once(False)])
def test_freezing_survives_files(make, frozen, tmp_path):
    model = make((32, 32, 3), freeze_compressor=not frozen)
    model.freeze_compressor = frozen
    model.save(tmp_path / "model.keras")
    model.save_to_preset(tmp_path / "preset")
    for loaded in (
        keras.saving.load_model(tmp_path / "model.keras"),
        type(model).from_preset(tmp_path / "preset"),
    ):
        assert loaded.freeze_compressor is frozen
        assert bool(loaded.compressor.trainable_weights) is not frozen


@pytest.mark.once
@pytest.mark.parametrize("make", CI2P, indirect=True)
def test_latent_classifier_shares_the_weights(make, images):
    model = make(num_classes=2)
    classifier = model.latent_classifier
    assert model.latent_classifier is classifier
    assert classifier.input_shape == (None, 4, 6, 12)
    latents = to_numpy(model.compressor.encode(images))
    np.testing.assert_allclose(to_numpy(classifier(latents)), to_numpy(model(images)), atol=1e-5)
    before = to_numpy(model(images))
    classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    classifier.fit(latents, np.array([0, 1, 0]), verbose=0)
    after = to_numpy(model(images))
    assert (before != after).any()
    np.testing.assert_allclose(to_numpy(classifier(latents)), after, atol=1e-5)


def test_keras_file_round_trip(make, images, tmp_path):
    model = make(num_classes=2, class_names=["cat", "dog"])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(to_numpy(loaded(images)), to_numpy(model(images)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", once("bfloat16")])
def test_16_bit_policies(make, images, policy):
    reference = make()
    model = make(dtype=policy)
    model.set_weights(reference.get_weights())
    logits = model(images)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert model.get_layer("block_0").compute_dtype == "bfloat16"
    np.testing.assert_allclose(to_numpy(logits), to_numpy(reference(images)), atol=0.05)
    assert type(model).from_config(model.get_config()).dtype_policy.name == policy


@pytest.mark.once
def test_learns(make, rng):
    """Bright or dark: a training that works gets it right."""
    labels = np.arange(16) % 2
    images = rng.uniform(0, 100, (16, 32, 32, 3)) + 150 * labels[:, None, None, None]
    kwargs = {"freeze_compressor": False} if make.kind in CI2P else {}
    model = make((32, 32, 3), num_classes=2, **kwargs)
    model.compile(
        keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    history = model.fit(images, labels, batch_size=8, epochs=15, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["accuracy"][-1] == 1
