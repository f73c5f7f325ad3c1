"""Training a compressor for few bits and small errors."""

import math

import keras
from keras import ops

from keras_ci2p.models.variants import AUXILIARY_LEARNING_RATE, CLIP_NORM

# CompressAI's weights of the squared error, by quality.
LAMBDAS = {1: 0.0018, 2: 0.0035, 3: 0.0067, 4: 0.0130, 5: 0.0250, 6: 0.0483, 7: 0.0932, 8: 0.1800}

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


class RateDistortionModel(keras.Model):
    """Base class of compressors with a factorized prior: what `compile` and `fit` need.

    The loss is `lmbda * 255^2 * MSE + bits per pixel`, MSE of images in 0..1, and the auxiliary loss, by which the
    quantiles alone learn (Ballé et al., arXiv 1802.01436; CompressAI's `RateDistortionLoss`). Metrics: `cost`, the
    first two terms; `bpp`, bits per pixel; `psnr` in dB, of images clipped to 0..255.

    Subclasses have `quality`, `entropy_bottleneck` and `synthesis`; they map images, or a dict of `images` and `noise`,
    to a dict with `x_hat` and `likelihoods`.
    """

    def compile(self, optimizer=None, lmbda=None, **kwargs):
        """Prepares for `fit`.

        Args:
            optimizer: Keras optimizer; None for `rate_distortion_optimizer()`.
            lmbda: Weight of the squared error; None for CompressAI's of this quality.
            **kwargs: As in `keras.Model.compile`; there is one loss, so `loss` and `loss_weights` are not taken.

        Raises:
            ValueError: A compressor that cannot be trained; neither `lmbda` nor a known quality; a `loss`.
        """
        if self.entropy_bottleneck is None or self.synthesis is None:
            raise ValueError(f"{self.name} has no factorized prior and synthesis transform: it cannot be trained here.")
        if kwargs.get("loss") is not None or kwargs.get("loss_weights") is not None:
            raise ValueError("A compressor has its own loss: choose `lmbda` in place of `loss` and `loss_weights`.")
        if lmbda is None and self.quality is None:
            raise ValueError("Give `lmbda`: the compressor has no quality that would tell it.")
        self.lmbda = float(LAMBDAS[self.quality] if lmbda is None else lmbda)
        if not self.lmbda > 0:
            raise ValueError(f"`lmbda` must be positive. Received: lmbda={lmbda}")
        # Past Keras's attribute tracking: metrics are no part of a saved compressor.
        self.__dict__["_means"] = {name: keras.metrics.Mean(name) for name in ("cost", "bpp", "psnr")}
        super().compile(optimizer=optimizer or rate_distortion_optimizer(), **kwargs)

    @property
    def metrics(self):
        return [*super().metrics, *self.__dict__.get("_means", {}).values()]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        mse, bits = distortion_and_rate(_images(x), y_pred)
        return self.lmbda * ops.mean(mse) + ops.mean(bits) + self.entropy_bottleneck.auxiliary_loss()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        images = _images(x)
        mse, bits = distortion_and_rate(images, y_pred)
        clipped, _ = distortion_and_rate(images, {**y_pred, "x_hat": ops.clip(y_pred["x_hat"], 0, 255)})
        values = {"cost": self.lmbda * mse + bits, "bpp": bits, "psnr": psnr(clipped)}
        for name, mean in self.__dict__["_means"].items():
            mean.update_state(values[name])
        return self.get_metrics_result()

    def get_compile_config(self):
        return {**super().get_compile_config(), "lmbda": self.lmbda} if self.compiled else {}

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        # Both can only be None here.
        config = {key: value for key, value in config.items() if key not in ("loss", "loss_weights")}
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)


def psnr(mse):
    """Peak signal-to-noise ratio in dB of mean squared errors of images in 0..255; at most 120."""
    # Two equal images have no finite one.
    return 10 / math.log(10) * ops.log(255**2 / ops.maximum(mse, 255**2 * 1e-12))


def _images(x):
    return x["images"] if isinstance(x, dict) else x


def distortion_and_rate(images, outputs):
    """Mean squared error, in 0..255^2, and bits per pixel of each image: both `(batch,)`, float32."""
    error = ops.cast(outputs["x_hat"], "float32") - ops.cast(images, "float32")
    _, height, width, _ = ops.shape(images)
    bits = -ops.sum(ops.log(outputs["likelihoods"]), axis=(1, 2, 3)) / math.log(2)
    bits = bits / ops.cast(height * width, "float32")
    return ops.mean(ops.square(error), axis=(1, 2, 3)), bits
