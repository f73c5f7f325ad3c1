"""Counting what a model multiplies."""

from dataclasses import asdict, dataclass, field

import keras

from keras_ci2p.flops.rules import rule_of
from keras_ci2p.flops.tracing import symbolic_calls


@dataclass(frozen=True)
class PartCount:
    """What a part of a model, or all of it, takes for one image.

    Attributes:
        macs: Multiply-accumulates of a prediction: convolutions, dense layers, GDN's product, both products of
            attention.
        paper_flops: What the paper calls FLOPs: the same, and the norms and averages, about 0.1 %.
        training: Multiply-accumulates of a training step. A frozen layer takes its forward pass once; behind trained
            ones twice, since their gradients pass through it; all else thrice.
    """

    macs: int
    paper_flops: int
    training: int


@dataclass(frozen=True)
class MacCount(PartCount):
    """What a model takes for one image.

    Attributes:
        macs, paper_flops, training: As in `PartCount`.
        parts: `PartCount` by the part's name; parts that take nothing are left out.
        image_shape: `(height, width, channels)`.
    """

    parts: dict
    image_shape: tuple

    def as_dict(self):
        """Plain values, as JSON can hold them."""
        return {**asdict(self), "image_shape": list(self.image_shape)}


def count_macs(model, image_shape=None):
    """Counts the multiply-accumulates of a model from its own layers; nothing is computed.

    The model is called with a tensor that has only a shape. Layers with a kernel are counted from it and the shapes
    that they meet, others are looked into. Blocks and closing norm are one part, "transformer", pooling belongs to the
    "head"; the other parts are the model's layers by name.

    Args:
        model: A classifier, a `Compressor`, or any built Keras model or layer with one input, made of layers known here
            and functions of `keras.ops`. Its trainable weights decide what a training step takes.
        image_shape: Shape of the input without the batch, such as `(256, 256, 3)`; None for the model's own.

    Returns:
        `MacCount`.

    Raises:
        ValueError: No `image_shape` for a model that takes any size, or one that the model does not take; a layer with
            weights, or an operation, that cannot be counted.

    Example:
        >>> keras_ci2p.count_macs(keras_ci2p.CI2PViT()).paper_flops / 1e9
        8.476...
    """
    shape = _input_shape(model, image_shape)
    counter = _Counter()
    with symbolic_calls(counter.visit):
        counter.visit(model, keras.KerasTensor((1, *shape), dtype="float32"))
    parts = {name: PartCount(**part) for name, part in counter.parts.items() if part["paper_flops"]}
    total = {key: sum(getattr(part, key) for part in parts.values()) for key in ("macs", "paper_flops", "training")}
    return MacCount(**total, parts=parts, image_shape=shape)


def part_name(layer_name):
    """The part of a model that its layer belongs to."""
    if layer_name == "norm" or layer_name.startswith("block_"):
        return "transformer"
    return "head" if layer_name == "pool" else layer_name


def _input_shape(model, image_shape):
    # A model that is no graph of layers, or a layer, does not tell.
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise ValueError(f"count_macs takes models with one input. {model.name} has {len(inputs)}.")
    own = tuple(inputs[0].shape[1:]) if inputs else (None,) * len(image_shape or [None])
    shape = own if image_shape is None else tuple(image_shape)
    if None in shape:
        raise ValueError(f"{model.name} takes any size: give `image_shape`. Received: image_shape={image_shape}")
    if len(shape) != len(own) or any(side not in (None, given) for side, given in zip(own, shape, strict=True)):
        raise ValueError(
            f"{model.name} takes inputs of the shape {own}; make or load it with another `image_shape`. "
            f"Received: image_shape={shape}"
        )
    return shape


@dataclass
class _Opened:
    """A layer that is being looked into.

    Attributes:
        layer: The layer.
        accounted: Ids of the weights of the layers found in it.
        multiplies: Whether it multiplies with weights of its own.
    """

    layer: keras.Layer
    accounted: set = field(default_factory=set)
    multiplies: bool = False


class _Counter:
    """Adds up the work of all calls, in their order.

    Attributes:
        parts: dict of `PartCount`'s numbers by part.
    """

    def __init__(self):
        self.parts = {}
        self._opened = []
        self._gradients_pass = False

    def visit(self, operation, *args, **kwargs):
        """Takes the place of a call: shapes in, shapes out."""
        rule = rule_of(operation)
        if isinstance(operation, keras.Layer):
            if not operation.built:
                raise ValueError(f"count_macs takes built models. {operation.name} is not built: call it once.")
            if rule is None:
                return self._look_into(operation, args, kwargs)
        outputs = operation.compute_output_spec(*args, **kwargs)
        if rule is not None:
            operands = [x for x in keras.tree.flatten((args, kwargs)) if hasattr(x, "shape")]
            self._add(operation, operands, rule(operation, operands, outputs))
        return outputs

    def _look_into(self, layer, args, kwargs):
        self._opened.append(_Opened(layer))
        outputs = layer.call(*args, **kwargs)
        opened = self._opened.pop()
        unknown = [weight.path for weight in layer.weights if id(weight) not in opened.accounted]
        if unknown and not opened.multiplies:
            raise ValueError(
                f"count_macs does not know what {layer.name} ({type(layer).__name__}) multiplies with its weights "
                f"{', '.join(unknown)}."
            )
        self._account_for(layer)
        return outputs

    def _account_for(self, layer):
        if self._opened:
            self._opened[-1].accounted.update(map(id, layer.weights))

    def _add(self, operation, operands, work):
        if isinstance(operation, keras.Layer):
            owner = operation
            self._account_for(operation)
        else:
            # Of two tensors, one can be a weight of the layer around.
            with_weights = work.macs and not all(isinstance(x, keras.KerasTensor) for x in operands)
            owner = self._opened[-1].layer if with_weights else None
            self._opened[-1].multiplies |= bool(with_weights)
        path = [opened.layer.name for opened in self._opened[1:]] + [operation.name]
        part = self.parts.setdefault(part_name(path[0]), {"macs": 0, "paper_flops": 0, "training": 0})
        part["macs"] += work.macs
        part["paper_flops"] += work.macs + work.extra
        part["training"] += work.macs * self._passes(owner)

    def _passes(self, owner):
        """How often a training step does the work of a forward pass with the weights of `owner`, None for none."""
        if owner is not None and owner.trainable_weights:
            self._gradients_pass = True
            return 3
        if not self._gradients_pass:
            return 1
        return 3 if owner is None else 2
