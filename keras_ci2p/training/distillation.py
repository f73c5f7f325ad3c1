"""Distillation: a student that learns from a teacher's logits and from its feature maps, token by token.

Logits as in Hinton et al. (arXiv 1503.02531), seen on the very view that the student sees (arXiv 2106.05237). What a
convolutional teacher says within each token (`keras_ci2p.training.teacher_targets`), at several depths, is predicted by
linear heads that are thrown away after training ("locality guidance", arXiv 2207.10026).
"""

import keras
from keras.distillation import FeatureDistillation, LogitsDistillation

from keras_ci2p.layers.transformer_block import TransformerBlock


def guided_layers(classifier, count):
    """Names of the layers that learn from a teacher's `count` feature maps, the finest first.

    Three maps teach the first block, the middle one and the closing norm (arXiv 2207.10026); two the last two of these,
    one the norm. Of a model that merges its tokens on the way, only the blocks after the merge count: the maps have
    its grid.
    """
    blocks = [layer for layer in classifier.layers if isinstance(layer, TransformerBlock)]
    blocks = [block.name for block in blocks if block.output.shape[1] == blocks[-1].output.shape[1]]
    last = len(blocks)
    depths = [last - round(last * (count - 1 - i) / max(2, count - 1)) for i in range(count)]
    return ["norm" if depth == last else blocks[depth] for depth in depths]


def with_features(model, names):
    """A model whose layers follow one another, giving `(output, [outputs of the layers with these names])`."""
    x, outputs = model.inputs[0], {}
    for layer in model.layers[1:]:
        x = outputs[layer.name] = layer(x)
    return keras.Model(model.inputs, (x, [outputs[name] for name in names]), name=f"{model.name}_with_features")


@keras.saving.register_keras_serializable(package="keras_ci2p")
class DistilledClassifier(keras.Model):
    """Trains a classifier on labels and on a teacher's targets; `fit` it in place of the classifier.

    The weights are the classifier's own, so afterwards it is trained, and it is what to save; the heads that predict
    the teacher's features are thrown away. The loss is

        (1 - alpha) loss(labels) + alpha T^2 KL(teacher || student) + sum of w_i MSE(features_i)

    with Keras's `LogitsDistillation` and `FeatureDistillation`. Labels are a dict as `image_folder(targets=...)` and
    `latent_folder(temperature=...)` give it: `labels`, `teacher` (probabilities at the temperature) and `features_0`,
    ...; or labels alone, as in validation, which count as in the classifier itself.

    Args:
        classifier: Keras model whose layers follow one another, to logits `(batch, classes)`.
        layers: Names of the layers that predict the teacher's feature maps.
        channels: Channels of each of these maps.
        alpha: Share of the teacher's probabilities, in 0..1.
        temperature: Of both probabilities, positive.
        feature_weights: `w_i`.
    """

    def __init__(
        self,
        classifier,
        layers=(),
        channels=(),
        alpha=1.0,
        temperature=1.0,
        feature_weights=(),
        name="distilled_classifier",
        **kwargs,
    ):
        if not len(layers) == len(channels) == len(feature_weights):
            raise ValueError(
                "`layers`, `channels` and `feature_weights` must be of one length. Received: "
                f"{list(layers)}, {list(channels)}, {list(feature_weights)}"
            )
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must be in 0..1. Received: alpha={alpha}")
        # autocast=False: 16-bit floats cannot hold pixel values; the classifier casts for itself.
        super().__init__(name=name, autocast=False, **kwargs)
        self.classifier = classifier
        self.guided = list(layers)
        self.alpha = alpha
        self.feature_weights = list(feature_weights)
        # Not by its name, by which Keras 3.15 finds a function, and then compares logits as if they were probabilities.
        self.logits_loss = LogitsDistillation(temperature, keras.losses.KLDivergence())
        self.feature_loss = FeatureDistillation("mse")
        self._with_features = with_features(classifier, self.guided)
        self.heads = [
            keras.layers.Dense(count, dtype="float32", name=f"features_head_{i}") for i, count in enumerate(channels)
        ]
        for head, tokens in zip(self.heads, self._with_features.outputs[1:], strict=True):
            head.build(tokens.shape)
        names = ["teacher_loss", *(f"features_{i}_loss" for i in range(len(self.heads)))]
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self._is_evaluating = False
        self.built = True

    def call(self, inputs, training=None):
        logits, tokens = self._with_features(inputs, training=training)
        if not training:
            return logits
        return {"logits": logits, "features": [head(x) for head, x in zip(self.heads, tokens, strict=True)]}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):
            return super().compute_loss(x, _labels(y), y_pred, sample_weight, training)
        if not isinstance(y, dict):
            return super().compute_loss(x, y, y_pred["logits"], sample_weight, training)
        teacher_loss = self.logits_loss.compute_loss(self._teacher_logits(y["teacher"]), y_pred["logits"])
        losses, weights = [teacher_loss], [self.alpha, *self.feature_weights]
        for i, features in enumerate(y_pred["features"]):
            target = keras.ops.reshape(y[f"features_{i}"], keras.ops.shape(features))
            losses.append(self.feature_loss.compute_loss(target, features))
        for tracker, loss in zip(self.trackers, losses, strict=True):
            tracker.update_state(loss)
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        # With alpha 1 too: it adds the classifier's own regularisation losses.
        label_loss = super().compute_loss(x, y["labels"], y_pred["logits"], sample_weight, training)
        return total + (1 - self.alpha) * label_loss

    def _teacher_logits(self, probabilities):
        """Logits of which `LogitsDistillation` makes these probabilities again: mixed ones have none of their own."""
        return self.logits_loss.temperature * keras.ops.log(keras.ops.maximum(probabilities, keras.config.epsilon()))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logits = y_pred["logits"] if isinstance(y_pred, dict) else y_pred
        return super().compute_metrics(x, _labels(y), logits, sample_weight)

    def evaluate(self, *args, **kwargs):
        self._is_evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._is_evaluating = False

    def get_metrics_result(self):
        results = super().get_metrics_result()
        # Nothing of a teacher is known there.
        unknown = {tracker.name for tracker in self.trackers} if self._is_evaluating else ()
        return {name: result for name, result in results.items() if name not in unknown}

    def get_config(self):
        return {
            "classifier": keras.saving.serialize_keras_object(self.classifier),
            "layers": self.guided,
            "channels": [head.units for head in self.heads],
            "alpha": self.alpha,
            "temperature": self.logits_loss.temperature,
            "feature_weights": self.feature_weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects=custom_objects)
        return cls(**{**config, "classifier": classifier})


def _labels(y):
    return y["labels"] if isinstance(y, dict) else y
