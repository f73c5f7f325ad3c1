"""Moving averages of the weights, kept by the optimizer."""

import contextlib

import keras


class AveragedWeights(keras.callbacks.Callback):
    """Validates with the averages; `swapped()` puts them into the model for a while."""

    @contextlib.contextmanager
    def swapped(self):
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def on_test_begin(self, logs=None):
        self._swap()

    def on_test_end(self, logs=None):
        self._swap()

    def _swap(self):
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        # Keras has no public name for the averages; its own SwapEMAWeights takes them so.
        averages = optimizer._model_variables_moving_average
        for weight, average in zip(optimizer._trainable_variables, averages, strict=True):
            value = keras.ops.convert_to_numpy(weight)
            weight.assign(average)
            average.assign(value)
