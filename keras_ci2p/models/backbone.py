"""What the backbones share."""

import keras


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
        return {"name": self.name, **arguments, "dtype": self.dtype_policy.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def load_pretrained(self, filepath, image_shape):
        """Loads weights that were saved at `image_shape`, which may not be this model's."""
        self.load_weights(filepath)
