"""What a student learns from a teacher, against formulas in numpy."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from keras_ci2p import CI2PViT, CI2PViTDualScale, ViT
from keras_ci2p.data import image_folder
from keras_ci2p.data.augmentation import target_arrays
from keras_ci2p.training import DistilledClassifier
from keras_ci2p.training.distillation import guided_layers
from keras_ci2p.training.optim import SoftTargetCrossentropy

to_numpy = keras.ops.convert_to_numpy
NAMES = ("bird", "cat", "dog")


def small(model_class, nano, **more):
    if model_class is not ViT:
        more["compressor"] = {"num_filters": 4, "latent_channels": 6}
    return model_class((64, 64, 3), num_classes=3, **{**nano, "num_layers": 4}, **more)


class TestGuidedLayers:
    @pytest.mark.parametrize(
        ("model_class", "more", "blocks"),
        [
            (ViT, {}, (0, 1, 2, 3)),
            (CI2PViT, {}, (0, 1, 2, 3)),
            # The first block's tokens are four times as many.
            (CI2PViTDualScale, {"early_dim": 16, "merge_at": 1}, (1, 2, 3)),
        ],
    )
    def test_by_depth(self, nano, model_class, more, blocks):
        model = small(model_class, nano, **more)
        first, middle = f"block_{blocks[0]}", {4: "block_2", 3: "block_2"}[len(blocks)]
        second, third = {4: ("block_1", "block_3"), 3: ("block_2", "block_3")}[len(blocks)]
        learners = [model] if model_class is ViT else [model, model.latent_classifier]
        for learner in learners:
            assert guided_layers(learner, 0) == []
            assert guided_layers(learner, 1) == ["norm"]
            assert guided_layers(learner, 2) == [middle, "norm"]
            assert guided_layers(learner, 3) == [first, middle, "norm"]
            assert guided_layers(learner, 4) == [first, second, third, "norm"]
            tokens = 16 if model_class is ViT else 4
            shapes = {learner.get_layer(name).output.shape for name in guided_layers(learner, 4)}
            assert shapes == {(None, tokens, nano["hidden_dim"])}

    @pytest.mark.once
    def test_of_a_shallow_model_a_layer_may_learn_two_maps(self, nano):
        model = CI2PViTDualScale(
            (64, 64, 3), 3, compressor={"num_filters": 4, "latent_channels": 6}, **nano, early_dim=16, merge_at=1
        )
        names = guided_layers(model, 3)
        assert names == ["block_1", "norm", "norm"]
        student = DistilledClassifier(model, names, (5, 6, 7), feature_weights=(1, 1, 1))
        outputs = student(np.zeros((2, 64, 64, 3), "uint8"), training=True)
        assert [tuple(x.shape) for x in outputs["features"]] == [(2, 4, 5), (2, 4, 6), (2, 4, 7)]


def tiny_classifier():
    """Tokens are two by two pixels; its layers follow one another."""
    inputs = x = keras.Input((4, 6, 3), name="images")
    x = keras.layers.Reshape((6, 12))(x)
    x = keras.layers.Dense(8, activation="tanh", name="early")(x)
    x = keras.layers.Dense(8, activation="tanh", name="late")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head", kernel_initializer="random_normal")(x))


def compiled(model, **optimizer):
    metrics = [keras.metrics.CategoricalAccuracy(name="top1")]
    model.compile(keras.optimizers.SGD(**optimizer), SoftTargetCrossentropy(0.1), weighted_metrics=metrics)
    return model


def distilled(classifier=None, **arguments):
    arguments = {"layers": ("early", "late"), "channels": (5, 4), "feature_weights": (2.0, 0.5), **arguments}
    return compiled(DistilledClassifier(classifier or tiny_classifier(), **arguments))


@pytest.fixture
def batch(rng):
    """Two halves of different logits, mixed as Mixup does it."""
    images = rng.normal(size=(8, 4, 6, 3)).astype("float32")
    labels = np.eye(3, dtype="float32")[rng.integers(3, size=8)]
    features = [rng.normal(size=(8, 2, 3, channels)).astype("float32") for channels in (5, 4)]
    targets = {"labels": labels, **target_arrays(rng.normal(0, 3, (8, 3)).astype("float32"), features, 2.0)}
    return images, {name: 0.7 * array + 0.3 * array[::-1] for name, array in targets.items()}


class TestDistilledClassifier:
    @pytest.mark.parametrize("alpha", [0, 0.3, 1])
    @pytest.mark.parametrize("temperature", [1, 2])
    def test_loss(self, batch, alpha, temperature):
        images, targets = batch
        model = distilled(alpha=alpha, temperature=temperature)
        outputs = model(images, training=True)
        loss = float(to_numpy(model.compute_loss(images, targets, outputs)))

        logits = model.classifier.predict(images, verbose=0).astype("float64")
        labels = 0.9 * targets["labels"] + 0.1 / 3
        of_labels = -(labels * log_softmax(logits, -1)).sum(-1).mean()
        said = targets["teacher"].astype("float64")
        divergence = (said * (np.log(said) - log_softmax(logits / temperature, -1))).sum(-1).mean()
        of_features = []
        for i, (layer, head) in enumerate(zip(("early", "late"), model.heads, strict=True)):
            tokens = keras.Model(model.classifier.input, model.classifier.get_layer(layer).output)
            kernel, bias = head.get_weights()
            predicted = tokens.predict(images, verbose=0) @ kernel + bias
            of_features.append(np.square(predicted - targets[f"features_{i}"].reshape(8, 6, -1)).mean())
        taught = temperature**2 * divergence
        expected = (1 - alpha) * of_labels + alpha * taught + 2 * of_features[0] + 0.5 * of_features[1]
        assert loss == pytest.approx(expected, rel=1e-4)
        logged = {tracker.name: float(tracker.result()) for tracker in model.trackers}
        parts = {"teacher_loss": taught, "features_0_loss": of_features[0], "features_1_loss": of_features[1]}
        assert logged == pytest.approx(parts, rel=1e-4)

    def test_it_is_probabilities_that_diverge(self):
        """By its name Keras's divergence takes logits for probabilities, and finds none between negative ones."""
        logits, said = np.array([[-5.0, -1.0]], "float32"), np.array([[0.9, 0.1]], "float32")
        inputs = keras.Input((2,))
        model = DistilledClassifier(keras.Model(inputs, keras.layers.Identity()(inputs)))
        model.compile("sgd", SoftTargetCrossentropy())
        targets = {"labels": said, "teacher": said}
        loss = model.compute_loss(logits, targets, model(logits, training=True))
        expected = (said * (np.log(said) - np.log(softmax(logits)))).sum()
        assert float(to_numpy(loss)) == pytest.approx(expected, rel=1e-5) and expected > 1

    def test_everything_that_is_taught_learns(self, batch):
        images, targets = batch
        model = distilled(alpha=0.5)
        assert all(ours is theirs for ours, theirs in zip(model.weights, model.classifier.weights, strict=False))
        count = len(model.classifier.trainable_weights)
        assert len(model.trainable_weights) == count + 4
        before = [to_numpy(weight).copy() for weight in model.trainable_weights]
        first = model.train_on_batch(images, targets, return_dict=True)
        for weight, old in zip(model.trainable_weights, before, strict=True):
            assert np.abs(to_numpy(weight) - old).max() > 1e-6, weight.path
        # The features alone reach the layers below them, but not the head.
        model = distilled(alpha=0.0)
        head, early = (model.classifier.get_layer(name).get_weights()[0] for name in ("head", "early"))
        model.compile(keras.optimizers.SGD(), lambda labels, logits: 0 * logits[:, 0])
        model.train_on_batch(images, targets)
        np.testing.assert_array_equal(model.classifier.get_layer("head").get_weights()[0], head)
        assert np.abs(model.classifier.get_layer("early").get_weights()[0] - early).max() > 1e-6
        assert set(first) == {"loss", "top1", "teacher_loss", "features_0_loss", "features_1_loss"}

    def test_plain_labels_are_judged_as_by_the_classifier(self, batch, rng):
        images, targets = batch
        labels = np.eye(3, dtype="float32")[targets["labels"].argmax(-1)]
        classifier = compiled(tiny_classifier())
        model = distilled(classifier)
        for weights in (None, rng.uniform(0, 2, 8).astype("float32")):
            options = {"sample_weight": weights, "batch_size": 3, "return_dict": True, "verbose": 0}
            judged = model.evaluate(images, labels, **options)
            assert judged == pytest.approx(classifier.evaluate(images, labels, **options), rel=1e-5)
            assert set(judged) == {"loss", "top1"}
        np.testing.assert_allclose(model.predict(images, verbose=0), classifier.predict(images, verbose=0), atol=1e-6)

    def test_config_and_file_give_it_back(self, batch, tmp_path):
        images, targets = batch
        model = distilled(alpha=0.25, temperature=3.0)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
        assert again.get_config() == model.get_config()
        assert (again.alpha, again.logits_loss.temperature, again.feature_weights) == (0.25, 3.0, [2.0, 0.5])
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
        outputs = [m(images, training=True) for m in (model, loaded)]
        for one, two in zip(*(keras.tree.flatten(output) for output in outputs), strict=True):
            np.testing.assert_allclose(to_numpy(one), to_numpy(two), atol=1e-6)

    def test_sixteen_bits(self, nano, rng):
        classifier = ViT((32, 32, 3), 3, dtype="mixed_bfloat16", **{**nano, "num_layers": 1})
        model = compiled(DistilledClassifier(classifier, ["block_0", "norm"], (5, 4), feature_weights=(1, 1)))
        images = rng.uniform(0, 255, (4, 32, 32, 3)).astype("float32")
        outputs = model(images, training=True)
        assert {keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(outputs)} == {"float32"}
        assert classifier.get_layer("block_0").compute_dtype == "bfloat16"
        features = [rng.normal(size=(4, 2, 2, channels)).astype("float32") for channels in (5, 4)]
        targets = {"labels": np.eye(3, dtype="float32")[[0, 1, 2, 0]]}
        targets.update(target_arrays(rng.normal(size=(4, 3)).astype("float32"), features, 1.0))
        losses = [model.train_on_batch(images, targets, return_dict=True)["loss"] for _ in range(3)]
        assert np.isfinite(losses).all() and losses[2] < losses[0]

    def test_fit_on_photos(self, photos, nano):
        def targets(images):
            assert images.shape[1:] == (32, 32, 3) and images.max() > 1
            features = images.reshape(-1, 2, 16, 2, 16, 3).mean((2, 4)) / 255
            return target_arrays(images.mean((1, 2)) / 10, [features], 1.0)

        size = {"image_size": 32, "batch_size": 8}
        train = image_folder(photos, targets=targets, mixup=0.8, cutmix=1.0, **size)
        validation = image_folder(photos, split="val", targets=targets, **size)
        assert all(set(labels) == {"labels", "teacher", "features_0"} for _, labels in train)
        assert all(labels.shape[1:] == (3,) for _, labels in validation), "no teacher is asked of these"
        model = DistilledClassifier(
            ViT((32, 32, 3), 3, **{**nano, "num_layers": 1}), ["norm"], [3], feature_weights=[1.0]
        )
        compiled(model, learning_rate=0.05)
        steps = {"steps_per_epoch": 3, "validation_steps": validation.steps_per_epoch, "epochs": 3}
        history = model.fit(
            train.repeat(), validation_data=validation.repeat(), shuffle=False, verbose=0, **steps
        ).history
        assert set(history) == {"loss", "top1", "teacher_loss", "features_0_loss", "val_loss", "val_top1"}
        assert history["features_0_loss"][-1] < history["features_0_loss"][0]

    def test_errors(self):
        with pytest.raises(
            ValueError,
            match=r"must be of one length. Received: layers=\['early'\], channels=\[\], feature_weights=\[\]",
        ):
            DistilledClassifier(tiny_classifier(), ["early"])
        with pytest.raises(ValueError, match="`alpha` must be in 0..1. Received: alpha=2"):
            DistilledClassifier(tiny_classifier(), alpha=2)
