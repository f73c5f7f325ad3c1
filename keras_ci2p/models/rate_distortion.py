"""Training a compressor for few bits and small errors."""

import math
from typing import Any

import keras
from keras import ops

from keras_ci2p.codec.ms_ssim import batch_ms_ssim
from keras_ci2p.models.data_checks import ChecksData
from keras_ci2p.names import AUXILIARY_LEARNING_RATE, CLIP_NORM, METRICS
from keras_ci2p.utils import Tensor, wrong_choice

# CompressAI's weights of the error by quality, from the page of its zoo: of the squared error, and of 1 - MS-SSIM.
LAMBDAS = {1: 0.0018, 2: 0.0035, 3: 0.0067, 4: 0.0130, 5: 0.0250, 6: 0.0483, 7: 0.0932, 8: 0.1800}
_MS_SSIM_LAMBDAS = {1: 2.40, 2: 4.58, 3: 8.73, 4: 16.64, 5: 31.73, 6: 60.50, 7: 115.37, 8: 220.00}

# CompressAI's `examples/train.py`.
LEARNING_RATE = 1e-4


def rate_distortion_optimizer(
    learning_rate=LEARNING_RATE, auxiliary_learning_rate=AUXILIARY_LEARNING_RATE, clip_norm=CLIP_NORM
):
    """Adam for a compressor, and a second Adam for the quantiles of its entropy bottleneck.

    Args:
        learning_rate: Number or `keras.optimizers.schedules.LearningRateSchedule` of all weights but the quantiles.
        auxiliary_learning_rate: The same for the quantiles.
        clip_norm: Largest norm of all gradients but the quantiles' together; None for no limit.

    Returns:
        `keras.optimizers.MultiOptimizer`; its `optimizers` are the quantiles' and the main one.
    """
    # PyTorch's epsilon.
    main = keras.optimizers.Adam(learning_rate, epsilon=1e-8, global_clipnorm=clip_norm, name="main")
    auxiliary = keras.optimizers.Adam(auxiliary_learning_rate, epsilon=1e-8, name="auxiliary")
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(main, {".*quantiles": auxiliary}))


class RateDistortionModel(ChecksData, keras.Model):
    """Base class of compressors: what `compile` and `fit` need.

    The loss is `lmbda * 255^2 * MSE + bits per pixel`, MSE of images in 0..1, or `lmbda * (1 - MS-SSIM) + bits per
    pixel`; and the auxiliary loss, by which the quantiles alone learn (Ballé et al., arXiv 1802.01436; CompressAI's
    `RateDistortionLoss`). Metrics: `cost`, the first two terms; `bpp`, bits per pixel; `psnr` in dB and, where it is
    trained for, `ms_ssim`, of images clipped to 0..255.

    A `sample_weight`, one number for each image, weighs its first two terms and its part of the metrics, as in Keras's
    own losses; `class_weight` gives such weights by the labels, which count for nothing else. What regularizers and
    `add_loss` give is added.

    Subclasses have `quality`, `entropy_bottleneck` and `synthesis`; they map images, or a dict of `images` and `noise`,
    to a dict with `x_hat` and `likelihoods`.
    """

    # Before `compile`.
    metric = METRICS[0]

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | None = None,
        lmbda: float | None = None,
        metric: str = METRICS[0],
        **kwargs: Any,
    ) -> None:
        """Prepares for `fit`.

        Args:
            optimizer: Keras optimizer; None for `rate_distortion_optimizer()`.
            lmbda: Weight of the error; None for CompressAI's of this quality and metric.
            metric: The error: "mse", or "ms-ssim" for 1 - MS-SSIM, which needs images of at least 161 pixels in height
                and width.
            **kwargs: As in `keras.Model.compile`, without losses and metrics, since it has its own.

        Raises:
            ValueError: A compressor that cannot be trained; neither `lmbda` nor a known quality; an unknown `metric`;
                losses or metrics.
        """
        if self.entropy_bottleneck is None or self.synthesis is None:
            raise ValueError(f"{self.architecture} has no prior and synthesis transform: it cannot be trained here.")
        given = [name for name in _OWN if kwargs.get(name) is not None]
        if given:
            raise ValueError(
                "A compressor has its own loss and metrics (cost, bpp, psnr): choose `lmbda`, the weight of the "
                f"squared error. Received: {given[0]}={kwargs[given[0]]!r}"
            )
        chosen = choose_lmbda(lmbda, self.quality, metric)
        try:
            weight = float(chosen)
        except (TypeError, ValueError):
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(
                "`lmbda`, after the optimizer, must be a positive number; a compressor has its own loss. "
                f"Received: lmbda={lmbda!r}"
            )
        self.lmbda, self.metric = weight, metric
        names = ("cost", "bpp", "psnr", *(["ms_ssim"] if metric == "ms-ssim" else []))
        # Past Keras's attribute tracking: metrics are no part of a saved compressor.
        self.__dict__["_means"] = {name: keras.metrics.Mean(name) for name in names}
        super().compile(optimizer=optimizer or rate_distortion_optimizer(), **kwargs)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple) and len(validation) == 3:
            images, labels, weights = validation
            kwargs["validation_data"] = images, _labels(labels, weights), weights
        if kwargs.get("class_weight") is not None and y is None and (isinstance(x, dict) or hasattr(x, "shape")):
            raise ValueError(
                "`class_weight` weighs images by their labels: give these too, as `y`. "
                f"Received: class_weight={kwargs['class_weight']!r}, y=None"
            )
        return super().fit(x, _labels(y, kwargs.get("sample_weight")), *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate(x, _labels(y, kwargs.get("sample_weight")), *args, **kwargs)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*super().metrics, *self.__dict__.get("_means", {}).values()]

    def compute_loss(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        error, bits = distortion_and_rate(_images(x), y_pred, self.metric)
        if sample_weight is not None:
            weights = _one_each(sample_weight)
            error, bits = error * weights, bits * weights
        loss = self.lmbda * ops.mean(error) + ops.mean(bits) + self.entropy_bottleneck.auxiliary_loss()
        return sum(map(self._aggregate_additional_loss, self.losses), loss)

    def compute_metrics(
        self, x: Tensor, y: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Any]:
        images = _images(x)
        error, bits = distortion_and_rate(images, y_pred, self.metric)
        clipped = ops.clip(y_pred["x_hat"], 0, 255)
        values = {"cost": self.lmbda * error + bits, "bpp": bits, "psnr": psnr(distortion(images, clipped))}
        if self.metric == "ms-ssim":
            values["ms_ssim"] = 1 - distortion(images, clipped, self.metric)
        weights = None if sample_weight is None else _one_each(sample_weight)
        for name, mean in self.__dict__["_means"].items():
            mean.update_state(values[name], weights)
        return self.get_metrics_result()

    def get_compile_config(self) -> dict[str, Any]:
        return {**super().get_compile_config(), "lmbda": self.lmbda, "metric": self.metric} if self.compiled else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        # They can only be None here.
        self.compile(**{key: value for key, value in config.items() if key not in _OWN})
        self.optimizer.build(self.trainable_variables)


def _labels(labels, sample_weight):
    """Labels, or as many other numbers, since they count for nothing: without any, Keras drops the weights.

    Raises:
        ValueError: Weights of another shape than one for each image.
    """
    shape = tuple(getattr(sample_weight, "shape", ()))
    if shape[1:] not in ((), (1,)):
        raise ValueError(f"`sample_weight` has one number for each image. Received: shape={shape}")
    return sample_weight if labels is None else labels


# Of `compile`, what compressors have their own of.
_OWN = ("loss", "loss_weights", "metrics", "weighted_metrics")


def _one_each(sample_weight):
    """Weights `(batch,)`; TensorFlow does not know the shape of those of arrays."""
    return ops.reshape(ops.cast(sample_weight, "float32"), (-1,))


def psnr(mse):
    """Peak signal-to-noise ratio in dB of mean squared errors of images in 0..255; at most 120."""
    # Two equal images have no finite one.
    return 10 / math.log(10) * ops.log(255**2 / ops.maximum(mse, 255**2 * 1e-12))


def _images(x):
    return x["images"] if isinstance(x, dict) else x


def choose_lmbda(lmbda, quality, metric):
    """The weight of an error: `lmbda`, or CompressAI's where it is None.

    Raises:
        ValueError: An unknown metric, or neither a weight nor a quality.
    """
    if metric not in METRICS:
        raise ValueError(wrong_choice("metric", metric, METRICS))
    if lmbda is None and quality is None:
        raise ValueError("Give `lmbda`: the compressor has no quality that would tell it. Received: lmbda=None")
    return (LAMBDAS if metric == "mse" else _MS_SSIM_LAMBDAS)[quality] if lmbda is None else lmbda


def distortion(images, x_hat, metric="mse"):
    """Mean squared error, in 0..255^2, or 1 - MS-SSIM of each image: `(batch,)`, float32."""
    images, x_hat = (ops.cast(x, "float32") for x in (images, x_hat))
    if metric == "ms-ssim":
        return 1 - batch_ms_ssim(ops, images, x_hat)
    return ops.mean(ops.square(x_hat - images), axis=(1, 2, 3))


def distortion_and_rate(images, outputs, metric="mse"):
    """What `distortion` gives, and bits per pixel of each image: both `(batch,)`, float32."""
    _, height, width, _ = ops.shape(images)
    parts = [outputs[name] for name in ("likelihoods", "hyper_likelihoods") if name in outputs]
    bits = sum(-ops.sum(ops.log(part), axis=(1, 2, 3)) for part in parts) / math.log(2)
    return distortion(images, outputs["x_hat"], metric), bits / ops.cast(height * width, "float32")
