"""What is frozen: it stays so in Keras's files, and training says where that leaves nothing to learn from."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
from conftest import once
from nano_models import our_model, to_numpy

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.layers import AnalysisTransform, CI2PPatchEmbedding
from keras_ci2p.models.augmented_classifier import AugmentedClassifier

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
LABELS = np.array([0, 1])
COMPRESSOR = {"num_filters": 8, "latent_channels": 12}
RANDOM = "random weights"


def make(model_class, nano):
    if model_class is ViT:
        return ViT((64, 64, 3), 3, **nano)
    return our_model(model_class)


def state(model):
    """`trainable` of the model and of each layer with weights, and what of it learns."""
    layers = {layer.path: layer.trainable for layer in model._flatten_layers(include_self=False) if layer.weights}
    return model.trainable, layers, [variable.path for variable in model.trainable_variables]


def freeze_a_block(model):
    model.get_layer("block_0").trainable = False


def freeze_parts_of_blocks(model):
    model.get_layer("block_0").trainable = False
    model.get_layer("block_0").qkv.trainable = True
    model.get_layer("block_1").attention_norm.trainable = False


def freeze_all_but_the_head(model):
    model.backbone.trainable = False


def freeze_the_model(model):
    model.trainable = False
    model.head.trainable = True


def freeze_within_a_learning_compressor(model):
    if hasattr(model, "compressor"):
        model.freeze_compressor = False
        model.compressor.stages[0].trainable = False


@pytest.mark.parametrize(
    "freeze",
    [
        freeze_a_block,
        freeze_parts_of_blocks,
        freeze_all_but_the_head,
        freeze_the_model,
        freeze_within_a_learning_compressor,
    ],
)
@pytest.mark.parametrize("model_class", [CI2PViT, *map(once, (CI2PViTDualScale, ViT))])
def test_configurations_keep_what_is_frozen(model_class, freeze, nano):
    model = make(model_class, nano)
    assert not {"trainable", "frozen_layers"} & set(model.get_config())
    fresh = state(model)
    freeze(model)
    expected = state(model)
    assert expected != fresh or not hasattr(model, "compressor")
    assert len({layer.path for layer in model._flatten_layers() if layer.weights}) == len(expected[1]) + 1
    for other in (
        type(model).from_config(model.get_config()),
        keras.models.model_from_json(model.to_json()),
    ):
        assert state(other) == expected
    if freeze in (freeze_a_block, freeze_all_but_the_head):
        # A plain functional model of the same layers, of each of which Keras keeps the outer flag.
        assert state(keras.models.clone_model(model)) == expected
    # The backbone by itself, with its own part.
    assert state(type(model.backbone).from_config(model.backbone.get_config())) == state(model.backbone)


@pytest.mark.once
def test_files_keep_what_is_frozen(tmp_path, nano):
    """With the optimizer's state, which is of what learns."""
    model = our_model()
    freeze_parts_of_blocks(model)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(IMAGES, LABELS, verbose=0)
        model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert state(loaded) == state(model)
    for variable, expected in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), to_numpy(expected))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert state(other) == state(model)
    # A preset is to be trained by others.
    model.save_to_preset(tmp_path / "preset")
    fresh = state(CI2PViT.from_preset(tmp_path / "preset"))
    assert fresh == state(our_model())


def test_compressors_keep_what_is_frozen(tmp_path):
    compressor = Compressor(quality=None, channels=(8, 12))
    compressor.analysis.trainable = False
    compressor.save(tmp_path / "compressor.keras")
    for other in (
        Compressor.from_config(compressor.get_config()),
        keras.saving.load_model(tmp_path / "compressor.keras"),
    ):
        assert state(other) == state(compressor) and not other.analysis.trainable_variables
    compressor.save_to_preset(tmp_path / "preset")
    assert Compressor.from_preset(tmp_path / "preset").analysis.trainable
    layer = AnalysisTransform(**COMPRESSOR, trainable=False)
    assert not AnalysisTransform.from_config(layer.get_config()).trainable
    layer = AnalysisTransform(**COMPRESSOR, frozen=True)
    layer.trainable = True
    assert not layer.trainable


def embedding_alone():
    embedding = CI2PPatchEmbedding(32, COMPRESSOR)
    return keras.Sequential([keras.Input((64, 64, 3)), embedding, keras.layers.GlobalAveragePooling1D()]), embedding


def in_a_sequence():
    model = our_model()
    return keras.Sequential([keras.Input((64, 64, 3)), model, keras.layers.Dense(2)]), model


def in_a_functional_model():
    model, inputs = our_model(CI2PViTDualScale), keras.Input((64, 64, 3))
    return keras.Model(inputs, keras.layers.Dense(2)(model(inputs))), model


def backbone_in_a_functional_model():
    model, inputs = our_model(), keras.Input((64, 64, 3))
    return keras.Model(inputs, keras.layers.Flatten()(model.backbone(inputs))), model


def augmented():
    model = our_model()
    return AugmentedClassifier(model, (64, 64)), model


def on_latents():
    model = our_model()
    return model.latent_classifier, model


def fit(model, images):
    if model.name == "latent_classifier":
        images = np.zeros((2, 4, 4, 12), "float32")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(images, LABELS, verbose=0)


@pytest.mark.once
@pytest.mark.parametrize(
    "wrap",
    [
        augmented,
        in_a_sequence,
        embedding_alone,
        in_a_functional_model,
        backbone_in_a_functional_model,
        on_latents,
    ],
)
def test_a_random_frozen_compressor_is_told_of(wrap):
    """Once, wherever it is trained."""
    outer, inner = wrap()
    with pytest.warns(UserWarning, match=RANDOM) as caught:
        fit(outer, IMAGES)
    assert len([warning for warning in caught if RANDOM in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{RANDOM}")
        # Not of one that learns, that was trained, or that predicts.
        inner.freeze_compressor = False
        fit(outer, IMAGES)
        inner.freeze_compressor = True
        inner.compressor.set_weights([to_numpy(weight) + 1 for weight in inner.compressor.weights])
        fit(outer, IMAGES)
        other, _ = wrap()
        if other.name != "latent_classifier":
            other.predict(IMAGES, verbose=0)


def test_weights_that_came_before_fit():
    """Of the whole model, past the compressor's own methods."""
    outer, inner = in_a_sequence()
    outer.set_weights([to_numpy(weight) + 1 for weight in outer.weights])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{RANDOM}")
        fit(outer, IMAGES)


def custom_step(model):
    """One step of the backend's own loop."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        values = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]

        def loss(values):
            return model.stateless_call(values, others, IMAGES, training=True)[0].sum()

        return jax.jit(jax.grad(loss))(values)
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(IMAGES, training=True))
            return tape.gradient(loss, model.trainable_variables)

        return step()
    return model(IMAGES, training=True).sum().backward()


def test_a_loop_of_ones_own():
    model = our_model()
    with pytest.warns(UserWarning, match=RANDOM):
        custom_step(model)
    model = our_model()
    model.compressor.set_weights([to_numpy(weight) + 1 for weight in model.compressor.weights])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{RANDOM}")
        custom_step(model)


@pytest.mark.once
@pytest.mark.parametrize("model_class", [CI2PViT, CI2PViTDualScale, ViT])
def test_a_quantised_model_does_not_train(model_class, nano):
    def quantised():
        model = make(model_class, nano)
        model.quantize("int8")
        return model

    # Alone last: after an error within a step, JAX's trainer has lost the weights of whatever model.
    model = quantised()
    for trained in (keras.Sequential([keras.Input((64, 64, 3)), quantised()]), model):
        trained.compile("sgd", "mse")
        with pytest.raises(ValueError, match="is quantised.*do not learn"):
            trained.fit(IMAGES, np.zeros((2, 3)), verbose=0)
    assert np.isfinite(model.evaluate(IMAGES, np.zeros((2, 3)), verbose=0))
    # The rest learns where the quantised layers are not asked to.
    for layer in model.layers[1:-1]:
        layer.trainable = False
    model.compile("sgd", "mse")
    before = to_numpy(model.head.kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(IMAGES, np.zeros((2, 3)), verbose=0)
    assert (to_numpy(model.head.kernel) != before).any()
