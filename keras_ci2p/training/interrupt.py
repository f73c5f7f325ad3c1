"""Ctrl-C that is not lost."""

import contextlib
import signal
import threading

import keras


class RaiseInterrupt(keras.callbacks.Callback):
    """Ends `fit` after the batch in which Ctrl-C was pressed, should the exception itself have been swallowed.

    Keras drops whatever is raised while it fetches the logs, and there it waits most of the time.
    """

    def __init__(self):
        super().__init__()
        self._pressed = False

    @contextlib.contextmanager
    def watching(self):
        """While it lasts, Ctrl-C raises KeyboardInterrupt at once and is remembered."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, signum, frame):
        self._pressed = True
        raise KeyboardInterrupt

    def _check(self):
        if self._pressed:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        self._check()

    def on_test_batch_end(self, batch, logs=None):
        self._check()

    def on_epoch_begin(self, epoch, logs=None):
        self._check()
