"""Imitates a teacher: targets of its feature maps, and the student's losses."""

import io
import math
import zipfile
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from keras.distillation import FeatureDistillation, LogitsDistillation
from PIL import Image

from keras_ci2p.data.augmentation import target_arrays
from keras_ci2p.data.manifest import ImageManifest
from keras_ci2p.data.transforms import center_crop
from keras_ci2p.layers.transformer import TransformerBlock
from keras_ci2p.names import TEACHERS
from keras_ci2p.training.efficientnet import make_teacher
from keras_ci2p.training.teacher import Teacher, open_teacher
from keras_ci2p.utils import PathLike, Tensor

# What is kept of a feature map. Of EfficientNet-Lite2's strides 8, 16 and 32 they explain 47, 59 and 67 %.
MAX_COMPONENTS = 128
# Views that the components are fitted on.
FIT_VIEWS = 1600
# Stored features are integers: so many standard deviations are 127 of them. The error is 0.01 % of the variance.
_DEVIATIONS = 5
# A map is not folded into tokens of more numbers: their principal components take a minute.
_MAX_DIMS = 6144


def tokens_of_map(features, grid):
    """What of a feature map lies within each token, flattened.

    A map of more positions than the grid is folded, `k x k` positions into each token, after it is resampled by area
    where the grid does not divide it, or where tokens would become too long; one of fewer positions is resampled by
    area.

    Args:
        features: `(batch, rows, columns, channels)`.
        grid: `(rows, columns)` of the tokens.

    Returns:
        float32 `(batch, *grid, k * k * channels)`.
    """
    most = math.isqrt(_MAX_DIMS // features.shape[-1])
    folds = [max(1, min(size // tokens, most)) for size, tokens in zip(features.shape[1:3], grid, strict=True)]
    for axis, (tokens, fold) in enumerate(zip(grid, folds, strict=True), start=1):
        if features.shape[axis] != tokens * fold:
            weights = _area_weights(features.shape[axis], tokens * fold)
            features = np.moveaxis(np.moveaxis(features, axis, -1) @ weights.T, -1, axis)
    batch, channels = len(features), features.shape[-1]
    folded = features.reshape(batch, grid[0], folds[0], grid[1], folds[1], channels).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(folded, "float32").reshape(batch, *grid, -1)


def _area_weights(source, target):
    """float32 `(target, source)`: the mean over the part of the source that each target position covers."""
    edges, ends = np.arange(source), np.arange(target + 1) * (source / target)
    covered = np.minimum(edges + 1, ends[1:, None]) - np.maximum(edges, ends[:-1, None])
    return (np.maximum(covered, 0) * (target / source)).astype("float32")


class FeatureProjection:
    """Feature maps to what the student predicts: tokens, centred, on their first principal components.

    All components of a map have one scale, so that their mean variance is 1.

    Args:
        grid: `(rows, columns)` of the student's tokens.
        means: For each feature map float32 `(dims,)`.
        components: For each float32 `(dims, channels)`.
        deviations: For each float32 `(channels,)`, the standard deviations of what is predicted.
        explained: For each the share of the variance that the components explain.
    """

    def __init__(self, grid, means, components, deviations, explained):
        self.grid = tuple(grid)
        self.means = means
        self.components = components
        self.deviations = deviations
        self.explained = explained

    @classmethod
    def fit(cls, maps, grid, max_components=MAX_COMPONENTS):
        """The projection for such feature maps.

        Args:
            maps: List of float32 `(batch, rows, columns, channels)`, one for each depth.
            grid: `(rows, columns)` of the student's tokens.
            max_components: At most so many are kept.
        """
        fitted = [cls._fit_one(tokens_of_map(features, grid), max_components) for features in maps]
        return (
            cls(grid, *(list(column) for column in zip(*fitted, strict=True))) if fitted else cls(grid, [], [], [], [])
        )

    @staticmethod
    def _fit_one(tokens, max_components):
        rows = tokens.reshape(-1, tokens.shape[-1])
        mean = rows.mean(0, dtype="float64")
        centred = rows - mean.astype("float32")
        values, vectors = np.linalg.eigh((centred.T @ centred).astype("float64") / len(rows))
        order = np.argsort(values)[::-1][: min(max_components, len(rows))]
        kept, total = np.maximum(values[order], 0), max(values.sum(), np.finfo("float64").tiny)
        # A map without any variance stays zero.
        scale = 1 / np.sqrt(kept.mean() or 1.0)
        # Eigenvectors have no sign of their own; theirs is made the same everywhere.
        vectors = vectors[:, order] * np.sign(vectors[np.abs(vectors[:, order]).argmax(0), order])
        arrays = (mean, vectors * scale, np.sqrt(kept) * scale)
        return *(array.astype("float32") for array in arrays), float(kept.sum() / total)

    def __call__(self, maps):
        """List of float32 `(batch, *grid, channels)` for the feature maps of a batch."""
        return [
            (tokens_of_map(features, self.grid) - mean) @ components
            for features, mean, components in zip(maps, self.means, self.components, strict=True)
        ]

    @property
    def channels(self):
        """Number of components of each map."""
        return [array.shape[1] for array in self.components]

    @property
    def steps(self):
        """What an integer of `quantized` stands for: for each map float32 `(channels,)`."""
        return [np.maximum(array, 1e-6) * np.float32(_DEVIATIONS / 127) for array in self.deviations]

    def quantized(self, projected):
        """What `__call__` gives as int8: multiples of `steps`, cut off at five standard deviations."""
        return [
            np.clip(np.rint(array / step), -127, 127).astype("int8")
            for array, step in zip(projected, self.steps, strict=True)
        ]

    def to_bytes(self):
        """The bytes of a numpy archive, which `from_bytes` reads."""
        content = io.BytesIO()
        arrays = {"grid": np.array(self.grid), "explained": np.array(self.explained, "float64")}
        for name in ("means", "components", "deviations"):
            arrays.update({f"{name}_{i}": array for i, array in enumerate(getattr(self, name))})
        np.savez(content, **arrays)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content):
        """The projection that `to_bytes` wrote; ValueError where the bytes are damaged."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                count = len(arrays["explained"])
                names = ("means", "components", "deviations")
                lists = ([arrays[f"{name}_{i}"] for i in range(count)] for name in names)
                return cls(arrays["grid"].tolist(), *lists, arrays["explained"].tolist())
        # What numpy raises, depending on where the damage is.
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"The projection of the teacher's feature maps is damaged: {error}") from error


class TeacherTargets:
    """What a student learns from a teacher's view of a batch.

    Args:
        teacher: `Teacher`.
        projection: `FeatureProjection` of its feature maps; None until it is fitted.
    """

    def __init__(self, teacher, projection=None):
        self.teacher = teacher
        self.projection = projection

    def fit(self, batches, grid):
        """Fits the projection on the first views of some batches.

        Args:
            batches: Iterable of images as `Teacher` takes them.
            grid: `(rows, columns)` of the student's tokens.
        """
        kept, count = [], 0
        for images in batches:
            kept.append(self.teacher(images)[1])
            count += len(images)
            if count >= FIT_VIEWS or not self.teacher.feature_names:
                break
        maps = [np.concatenate(parts)[:FIT_VIEWS] for parts in zip(*kept, strict=True)]
        self.projection = FeatureProjection.fit(maps, grid)

    def stored(self, images):
        """`(logits, features)` of images as the teacher takes them, the features as int8: what a cache stores."""
        logits, maps = self.teacher(images)
        return logits, self.projection.quantized(self.projection(maps))

    def live(self, temperature):
        """Function from a batch of the student's images, 0..255, to `target_arrays`; `image_folder(targets=...)`."""

        def targets(images):
            logits, maps = self.teacher(resized(images, self.teacher.image_size))
            return target_arrays(logits, self.projection(maps), temperature)

        return targets

    def describe(self):
        """Teacher and feature maps, as a dict that JSON can hold."""
        rows, columns = self.projection.grid
        return {
            **self.teacher.describe(),
            "features": [
                {
                    "name": name,
                    "shape": list(shape),
                    "rows": rows,
                    "columns": columns,
                    "channels": channels,
                    "explained": round(explained, 4),
                    "steps": step.tolist(),
                }
                for name, shape, channels, explained, step in zip(
                    self.teacher.feature_names,
                    self.teacher.feature_shapes,
                    self.projection.channels,
                    self.projection.explained,
                    self.projection.steps,
                    strict=True,
                )
            ],
        }


def load_teacher(
    source: PathLike,
    manifest: ImageManifest,
    image_size: int | tuple[int, int] | None = None,
    value_range: Any = None,
    features: Sequence[str] | None = None,
    verbose: int = 1,
) -> Teacher:
    """The teacher for some images, in the order of their classes.

    Args:
        source: What `open_teacher` takes, or a name of `TEACHERS`, which is fitted to the training images first.
        manifest: `ImageManifest` of all splits.
        image_size, value_range, features: As in `open_teacher`; a name of `TEACHERS` takes its size alone.
        verbose: 0 for silence.

    Raises:
        ValueError, ImportError, OSError: As in `open_teacher` and `make_teacher`.

    Examples:
        >>> model = keras_ci2p.ViT((32, 32, 3), variant="tiny", num_layers=2, class_names=["bird", "cat", "dog"])
        >>> model.save_to_preset("teacher")
        >>> manifest = keras_ci2p.data.open_data("photos")
        >>> keras_ci2p.training.load_teacher("teacher", manifest, verbose=0).image_size
        (32, 32)
    """
    if str(source) in TEACHERS:
        if value_range is not None or features is not None:
            raise ValueError(
                f"{source} has its own range of values and feature maps; only its size can be chosen. "
                f"Received: value_range={value_range!r}, features={features!r}"
            )
        size: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
        source = make_teacher(str(source), manifest, verbose=verbose, **size)
        image_size = None
    return open_teacher(source, manifest.class_names, image_size, value_range, features)


def teacher_top1(teacher, manifest, batch_size=16):
    """The teacher's own top-1 on the central crops of a manifest's images, in 0..1."""
    correct, labels = 0, np.array(manifest.labels)
    for first in range(0, len(manifest), batch_size):
        numbers = range(first, min(first + batch_size, len(manifest)))
        images = [center_crop(manifest.open(number), teacher.image_size) for number in numbers]
        logits, _ = teacher(np.stack(images))
        correct += int((logits.argmax(-1) == labels[numbers.start : numbers.stop]).sum())
    return correct / len(manifest)


def resized(images, image_size):
    """A batch of images in 0..255 in another size, bicubically: uint8 `(batch, *image_size, 3)`."""
    pixels = np.clip(np.rint(images), 0, 255).astype("uint8")
    if pixels.shape[1:3] == tuple(image_size):
        return pixels
    size = image_size[1], image_size[0]
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in pixels])


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

    Examples:
        >>> student = keras_ci2p.CI2PViT((32, 32, 3), variant="tiny", num_layers=2, num_classes=3)
        >>> model = keras_ci2p.training.DistilledClassifier(student, alpha=0.5, temperature=2.0)
        >>> model(np.zeros((1, 32, 32, 3), "float32")).shape
        (1, 3)
    """

    def __init__(
        self,
        classifier: keras.Model,
        layers: Sequence[str] = (),
        channels: Sequence[int] = (),
        alpha: float = 1.0,
        temperature: float = 1.0,
        feature_weights: Sequence[float] = (),
        name: str = "distilled_classifier",
        **kwargs: Any,
    ) -> None:
        if not len(layers) == len(channels) == len(feature_weights):
            raise ValueError(
                "`layers`, `channels` and `feature_weights` must be of one length. Received: "
                f"layers={list(layers)}, channels={list(channels)}, feature_weights={list(feature_weights)}"
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

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        logits, tokens = self._with_features(inputs, training=training)
        if not training:
            return logits
        return {"logits": logits, "features": [head(x) for head, x in zip(self.heads, tokens, strict=True)]}

    def compute_loss(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
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

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Any]:
        logits = y_pred["logits"] if isinstance(y_pred, dict) else y_pred
        return super().compute_metrics(x, _labels(y), logits, sample_weight)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self._is_evaluating = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._is_evaluating = False

    def get_metrics_result(self) -> dict[str, Any]:
        results = super().get_metrics_result()
        # Nothing of a teacher is known there.
        unknown = {tracker.name for tracker in self.trackers} if self._is_evaluating else ()
        return {name: result for name, result in results.items() if name not in unknown}

    def get_config(self) -> dict[str, Any]:
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
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects=custom_objects)
        return cls(**{**config, "classifier": classifier})


def _labels(y):
    return y["labels"] if isinstance(y, dict) else y
