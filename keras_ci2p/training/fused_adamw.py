"""AdamW that passes over the weights once."""

import collections

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_ci2p")
class FusedAdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with the kernels that PyTorch, on a CPU, and TensorFlow have for it.

    Keras makes the update of a dozen operations, each with a pass over all weights, on torch with copies of them. The
    steps are the same, arguments and variables too. JAX's compiler needs no help.

    On a CPU under torch the gradients, `variable.value.grad`, are freed with the step: Keras keeps them until the next
    one has computed its loss, beside all of its activations.

    Raises:
        ValueError: `amsgrad=True`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.amsgrad:
            raise ValueError("FusedAdamW has no amsgrad; take keras.optimizers.AdamW. Received: amsgrad=True")

    if keras.backend.backend() == "torch":

        def _apply_weight_decay(self, variables):
            """On a CPU nothing: the kernel does it."""
            if not _are_on_cpu(variables):
                super()._apply_weight_decay(variables)

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            if not _are_on_cpu(trainable_variables):
                super()._backend_update_step(grads, trainable_variables, learning_rate)
                return
            groups = collections.defaultdict(list)
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                decays = self.weight_decay and self._use_weight_decay(variable)
                groups[self.weight_decay if decays else 0.0].append((gradient, variable))
            for weight_decay, pairs in groups.items():
                self._run_kernel(pairs, float(learning_rate), weight_decay)
            for variable in trainable_variables:
                variable.value.grad = None

        def _run_kernel(self, pairs, learning_rate, weight_decay):
            """The step of some weights, `(gradient, variable)` each."""
            import torch

            step = float(ops.convert_to_tensor(self.iterations)) + 1
            indices = [self._get_variable_index(variable) for _, variable in pairs]
            with torch.no_grad():
                torch._fused_adamw_(
                    [variable.value for _, variable in pairs],
                    [gradient for gradient, _ in pairs],
                    [self._momentums[i].value for i in indices],
                    [self._velocities[i].value for i in indices],
                    [],
                    [torch.tensor(step)] * len(indices),
                    lr=learning_rate,
                    beta1=self.beta_1,
                    beta2=self.beta_2,
                    weight_decay=weight_decay,
                    # Keras adds epsilon before it corrects the bias, PyTorch after.
                    eps=self.epsilon / (1 - self.beta_2**step) ** 0.5,
                    amsgrad=False,
                    maximize=False,
                )

    elif keras.backend.backend() == "tensorflow":

        def _apply_weight_decay(self, variables):
            """Nothing: `update_step` does it, where Keras needs three passes."""

        def update_step(self, gradient, variable, learning_rate):
            import tensorflow as tf

            dtype = variable.dtype
            learning_rate = tf.cast(learning_rate, dtype)
            if self.weight_decay and self._use_weight_decay(variable):
                variable.assign(variable * (1 - self.weight_decay * learning_rate))
            i = self._get_variable_index(variable)
            step = ops.cast(self.iterations + 1, dtype)
            beta_1, beta_2 = (tf.constant(beta, dtype) for beta in (self.beta_1, self.beta_2))
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[i].value.handle,
                v=self._velocities[i].value.handle,
                beta1_power=tf.pow(beta_1, step),
                beta2_power=tf.pow(beta_2, step),
                lr=learning_rate,
                beta1=beta_1,
                beta2=beta_2,
                epsilon=tf.constant(self.epsilon, dtype),
                grad=tf.cast(gradient, dtype),
            )


def _are_on_cpu(variables):
    """Whether torch holds them there; they are all in one place."""
    return variables[0].value.device.type == "cpu"


def adamw(*args, **kwargs):
    """`FusedAdamW`, on a GPU under torch `keras.optimizers.AdamW`, which passes over all weights together there."""
    if keras.backend.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            return keras.optimizers.AdamW(*args, **kwargs)
    return FusedAdamW(*args, **kwargs)
