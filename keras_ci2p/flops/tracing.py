"""Watching what a model does with a tensor that has a shape and no values."""

import contextlib
import threading

import keras

# Keras's classes are shared by all threads.
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def symbolic_calls(visit):
    """While it lasts, what this thread calls with a `keras.KerasTensor` is `visit(operation, *args, **kwargs)` instead.

    That is layers and `keras.ops` alike. Keras itself would not look into a layer, but ask for its output shape, and
    would keep a record of the call in the layer.
    """
    thread = threading.get_ident()

    def visiting(original):
        def call(operation, *args, **kwargs):
            is_symbolic = any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs)))
            if is_symbolic and threading.get_ident() == thread:
                return visit(operation, *args, **kwargs)
            return original(operation, *args, **kwargs)

        return call

    with _ONE_AT_A_TIME:
        # Where all layers pass, and all functions of `keras.ops`.
        of_layers, of_functions = keras.Layer.__call__, keras.Operation.symbolic_call
        keras.Layer.__call__ = visiting(of_layers)
        keras.Operation.symbolic_call = visiting(of_functions)
        try:
            yield
        finally:
            keras.Layer.__call__ = of_layers
            keras.Operation.symbolic_call = of_functions
