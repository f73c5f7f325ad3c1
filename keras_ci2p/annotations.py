"""Types that several signatures name. Keras has no annotations of its own, so what is Keras's is checked by nobody."""

import os
from typing import Any, TypeAlias

# A tensor of Keras's backend, a `keras.KerasTensor` while a model is built, or an array that Keras takes for one.
Tensor: TypeAlias = Any
# Integers, and None for what may be of any size.
Shape: TypeAlias = tuple[Any, ...]
PathLike: TypeAlias = str | os.PathLike[str]
# The base of what is mixed into classes of Keras: a type checker takes their attributes for its own.
Mixin: Any = object
