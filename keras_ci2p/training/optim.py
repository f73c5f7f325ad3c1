"""Optimizer, learning rate schedule and loss."""

import collections
import math
from typing import Any

import keras
from keras import ops

from keras_ci2p import backend
from keras_ci2p.backend.common import AdamWStep
from keras_ci2p.utils import Tensor


@keras.saving.register_keras_serializable(package="keras_ci2p")
class FusedAdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with the kernels that PyTorch and TensorFlow have for it.

    Keras makes the update of a dozen operations, each with a pass over all weights, on torch with copies of them. The
    steps are the same, arguments and variables too. JAX's compiler needs no help.

    Under torch the gradients, `variable.value.grad`, are freed with the step: Keras keeps them until the next one has
    computed its loss, beside all of its activations.

    Args:
        *args, **kwargs: Of `keras.optimizers.AdamW`.
        ema_warmup: Whether the averages' momentum after `n` updates is `min(ema_momentum, (1 + n) / (10 + n))`, as of
            TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`. A constant one keeps the first weights
            for `1 / (1 - ema_momentum)` updates.

    Raises:
        ValueError: `amsgrad=True`.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile(keras_ci2p.training.FusedAdamW(1e-3, weight_decay=0.05), loss="mse")
        >>> history = model.fit(np.ones((8, 4)), np.zeros((8, 2)), epochs=2, verbose=0).history
        >>> history["loss"][1] < history["loss"][0]
        True
    """

    def __init__(self, *args: Any, ema_warmup: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema_warmup = ema_warmup
        if self.amsgrad:
            raise ValueError("FusedAdamW has no amsgrad; take keras.optimizers.AdamW. Received: amsgrad=True")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "ema_warmup": self.ema_warmup}

    def _update_model_variables_moving_average(self, trainable_variables):
        momentum = self.ema_momentum
        if self.ema_warmup:
            updates = ops.cast(self.iterations, "float32")
            # Keras averages after every batch, also where only each n-th changes the weights.
            rising = ((1 + updates) / (10 + updates)) ** (1 / (self.gradient_accumulation_steps or 1))
            self.ema_momentum = ops.minimum(momentum, rising)
        super()._update_model_variables_moving_average(trainable_variables)
        self.ema_momentum = momentum

    def _apply_weight_decay(self, variables):
        # Else the kernel does it.
        if backend.adamw_step is None:
            super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if backend.adamw_takes_all_weights():
            self._fused_step(grads, trainable_variables, learning_rate)
        else:
            # Weight by weight, to `update_step`; under TensorFlow for each device.
            super()._backend_update_step(grads, trainable_variables, learning_rate)

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        if backend.adamw_step is None:
            super().update_step(gradient, variable, learning_rate)
        else:
            self._fused_step([gradient], [variable], learning_rate)

    def _fused_step(self, gradients, variables, learning_rate):
        """Takes the kernel's step, once for the weights that decay and once for the others."""
        groups = collections.defaultdict(list)
        for gradient, variable in zip(gradients, variables, strict=True):
            decays = self.weight_decay and self._use_weight_decay(variable)
            groups[self.weight_decay if decays else 0.0].append((variable, gradient))
        for weight_decay, pairs in groups.items():
            variables, gradients = zip(*pairs, strict=True)
            indices = [self._get_variable_index(variable) for variable in variables]
            moments = ([moments[i] for i in indices] for moments in (self._momentums, self._velocities))
            step = AdamWStep(self.iterations, learning_rate, weight_decay, self.beta_1, self.beta_2, self.epsilon)
            backend.adamw_step(variables, gradients, *moments, step)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up, step by step, then a cosine (paper section 4.1; mmengine's LinearLR and CosineAnnealingLR).

    The warm-up reaches `learning_rate` in its last step. The cosine is at its lowest after `cosine_epochs`, and rises
    again if training goes on.

    Args:
        learning_rate: The highest.
        steps_per_epoch: Steps of an epoch.
        warmup_epochs, cosine_epochs: Lengths; the warm-up's may be 0.
        warmup_start, final: Shares of `learning_rate` where the warm-up begins and the cosine ends.
        by_epoch: Whether the cosine keeps its value through each epoch.
    """

    def __init__(
        self,
        learning_rate,
        steps_per_epoch,
        warmup_epochs,
        cosine_epochs,
        warmup_start=1 / 3,
        final=0.0125,
        by_epoch=True,
    ):
        super().__init__()
        self.learning_rate = learning_rate
        self.steps_per_epoch = steps_per_epoch
        self.warmup_epochs = warmup_epochs
        self.cosine_epochs = cosine_epochs
        self.warmup_start = warmup_start
        self.final = final
        self.by_epoch = by_epoch

    def __call__(self, step):
        step = ops.cast(step, "float32")
        warmup_steps = round(self.warmup_epochs * self.steps_per_epoch)
        rising = self.warmup_start + (1 - self.warmup_start) * step / max(warmup_steps - 1, 1)
        epoch = (step - warmup_steps) / self.steps_per_epoch
        if self.by_epoch:
            # A step's own rounding must not move it to the epoch before.
            epoch = ops.floor(epoch + 0.5 / self.steps_per_epoch)
        cosine = (1 + ops.cos(math.pi * epoch / self.cosine_epochs)) / 2
        falling = self.final + (1 - self.final) * cosine
        return self.learning_rate * ops.where(step < warmup_steps, rising, falling)

    def get_config(self):
        names = "learning_rate steps_per_epoch warmup_epochs cosine_epochs warmup_start final by_epoch"
        return {name: getattr(self, name) for name in names.split()}


@keras.saving.register_keras_serializable(package="keras_ci2p")
class SoftTargetCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits with soft targets, label smoothing and class weights.

    The target becomes `(1 - label_smoothing) * target + label_smoothing / classes` (mmpretrain's mode "original", after
    mixing), the loss of each image is weighted by its target's mean class weight.

    Args:
        label_smoothing: In [0, 1).
        class_weights: One number for each class, or None for 1.

    Input shape: targets and logits `(batch, classes)`.
    """

    def __init__(self, label_smoothing=0.0, class_weights=None, name="loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else list(class_weights)

    def call(self, y_true, y_pred):
        loss = keras.losses.categorical_crossentropy(
            y_true, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )
        if self.class_weights is not None:
            loss = loss * ops.sum(y_true * ops.convert_to_tensor(self.class_weights, dtype=y_true.dtype), -1)
        return loss

    def get_config(self):
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
        }


def balanced_weights(counts):
    """Class weights that make each class count alike: `images / (classes * images of the class)`.

    Args:
        counts: Images of each class.
    """
    return [sum(counts) / (len(counts) * count) for count in counts]


def make_optimizer(recipe, steps_per_epoch):
    """AdamW with warm-up and cosine.

    Args:
        recipe: `Recipe`.
        steps_per_epoch: Batches of an epoch.
    """
    # At least one step with the full learning rate, however short the run.
    warmup_epochs = min(recipe.warmup_epochs, recipe.epochs - 1 / steps_per_epoch)
    schedule = WarmupCosine(
        recipe.learning_rate,
        steps_per_epoch,
        warmup_epochs,
        recipe.cosine_epochs or recipe.epochs - warmup_epochs,
        warmup_start=recipe.warmup_init_ratio,
        final=recipe.min_lr_ratio,
        by_epoch=recipe.lr_update == "epoch",
    )
    return FusedAdamW(
        schedule,
        weight_decay=recipe.weight_decay,
        beta_1=recipe.beta_1,
        beta_2=recipe.beta_2,
        epsilon=recipe.epsilon,
        global_clipnorm=recipe.clip_grad_norm,
        gradient_accumulation_steps=recipe.grad_accum_steps if recipe.grad_accum_steps > 1 else None,
        use_ema=recipe.ema_momentum > 0,
        # By batch, see `ema_warmup`.
        ema_momentum=recipe.ema_momentum ** (1 / recipe.grad_accum_steps) if recipe.ema_momentum else 0.99,
        ema_warmup=recipe.ema_warmup,
    )
