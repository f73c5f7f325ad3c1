"""Products along the last axis."""

import keras
from keras import ops

from keras_ci2p.layers.jax_cpu import as_rows, on_jax_cpu
from keras_ci2p.layers.torch_kernels import linear, on_torch


@keras.saving.register_keras_serializable(package="keras_ci2p")
class Dense(keras.layers.Dense):
    """`keras.layers.Dense`, faster on torch and under JAX on a CPU."""

    def call(self, inputs, training=None):
        call = super().call
        if on_jax_cpu() and len(inputs.shape) > 2:
            return as_rows(lambda rows: call(rows, training=training), inputs)
        if on_torch():
            kernel = ops.convert_to_tensor(self.kernel)
            if inputs.dtype == kernel.dtype:
                bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
                return self.activation(linear(inputs, kernel, bias))
        return call(inputs, training=training)

    @property
    def dtype_policy(self):
        """Of a `DTypePolicyMap` this layer's own; Keras's would save a quantised kernel without its scale."""
        policy = super().dtype_policy
        return policy[self.path] if isinstance(policy, keras.dtype_policies.DTypePolicyMap) and self.path else policy

    @dtype_policy.setter
    def dtype_policy(self, policy):
        keras.layers.Dense.dtype_policy.fset(self, policy)


@keras.saving.register_keras_serializable(package="keras_ci2p")
class PointwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a 1x1 kernel, channels last and without bias, faster on torch and under JAX on a CPU.

    Args:
        filters, **kwargs: As in `keras.layers.Conv2D`.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, height, width, filters)`.
    """

    def __init__(self, filters, **kwargs):
        super().__init__(filters, kernel_size=1, use_bias=False, data_format="channels_last", **kwargs)

    def call(self, inputs):
        if self.strides == (1, 1) and self.groups == 1:
            if on_jax_cpu():
                kernel = ops.convert_to_tensor(self.kernel)[0, 0]
                return self.activation(as_rows(lambda rows: ops.matmul(rows, kernel), inputs))
            if on_torch():
                return self.activation(linear(inputs, ops.convert_to_tensor(self.kernel)[0, 0]))
        return super().call(inputs)

    def get_config(self):
        config = super().get_config()
        for fixed in ("kernel_size", "use_bias", "data_format"):
            config.pop(fixed)
        return config
