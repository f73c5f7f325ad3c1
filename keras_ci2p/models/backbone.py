"""What the backbones share."""

import keras

from keras_ci2p.layers.position_embedding import PositionEmbedding, resize_position_embedding


class Backbone(keras.Model):
    """A functional model, images to tokens, that keeps its constructor's arguments.

    Args:
        inputs, outputs, name: As in `keras.Model`.
        dtype_policy: The policy of its layers.
        **config: The other arguments of the subclass's constructor; each becomes an attribute.
    """

    def __init__(self, inputs, outputs, name, dtype_policy, **config):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.dtype_policy = dtype_policy
        self._arguments = tuple(config)
        for argument, value in config.items():
            setattr(self, argument, value)

    def get_config(self):
        arguments = {argument: getattr(self, argument) for argument in self._arguments}
        return {"name": self.name, **arguments, "dtype": self._dtype_config()}

    def _dtype_config(self):
        """The name of the policy; of a quantised model, a serialised `DTypePolicyMap` of its layers by path."""
        policy = self.dtype_policy
        if not isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            quantised = {layer.path: layer.dtype_policy for layer in self._flatten_layers() if layer.quantization_mode}
            if not quantised:
                return policy.name
            policy = keras.dtype_policies.DTypePolicyMap(policy.name, quantised)
        return keras.dtype_policies.serialize(policy)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def load_pretrained(self, filepath, image_shape):
        """Loads weights saved at `image_shape`; a position embedding is resized if that is not ours."""
        has_positions = any(isinstance(layer, PositionEmbedding) for layer in self.layers)
        if not has_positions or tuple(image_shape) == self.image_shape:
            self.load_weights(filepath)
            return
        source = self.from_config({**self.get_config(), "image_shape": tuple(image_shape)})
        source.load_weights(filepath)
        for layer, source_layer in zip(self.layers, source.layers, strict=True):
            weights = source_layer.get_weights()
            if isinstance(layer, PositionEmbedding):
                weights = [resize_position_embedding(weights[0], source_layer.grid, layer.grid)]
            layer.set_weights(weights)
