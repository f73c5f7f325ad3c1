"""What the classifiers share: mean pooling and head over a backbone, and presets."""

import inspect
import itertools
import os
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import keras
import numpy as np
from keras import ops
from PIL import Image

from keras_ci2p.data.manifest import in_threads, warn_of_notes
from keras_ci2p.data.transforms import center_crop, decode_image
from keras_ci2p.layers.compression_transforms import check_images
from keras_ci2p.layers.core import Dense, RandomNormal
from keras_ci2p.layers.transformer import TransformerBlock
from keras_ci2p.models.backbone import Backbone, ClassSignature, FixedGraph
from keras_ci2p.models.data_checks import ChecksData, warn_of_range
from keras_ci2p.names import PROBABILITIES
from keras_ci2p.presets import TASK_WEIGHTS, WEIGHTS, Preset, PresetError, open_preset, save_preset, serialize_model
from keras_ci2p.utils import PathLike, Shape, Tensor, without_arrays, wrong_choice


class NamedClasses(FixedGraph):
    """Mixed into classifiers: the names of their `num_classes` classes."""

    @property
    def class_names(self) -> list[str] | None:
        """List of the classes' names, in the order of the output, or None. Can be assigned."""
        return self.__dict__.get("_class_names")

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        # Past Keras's attribute tracking, which would wrap the list.
        self.__dict__["_class_names"] = check_classes(self.num_classes, names)[1]

    def make_train_function(self, force: bool = False) -> Any:
        # Before JAX's trainer puts the weights away, which an error in its step would cost.
        for layer in self._flatten_layers():
            if isinstance(layer, Dense):
                layer.check_learns()
        # Not in `compile`: Keras's files do not compile a model that has its own.
        takes_logits = _takes_logits(self.loss)
        if self.train_function is None and takes_logits is not None and takes_logits != (self.activation is None):
            if takes_logits:
                message = f"The model ends in {self.activation}, the loss takes logits: make it with `activation=None`."
            else:
                message = "The model gives logits, the loss takes probabilities: give the loss `from_logits=True`."
            warnings.warn(message, stacklevel=4)
        return super().make_train_function(force)

    def _task_config(self):
        return {argument: getattr(self, argument) for argument in HEAD_ARGUMENTS}


class ImageClassifier(ChecksData, NamedClasses, keras.Model):
    """Base class: the backbone's tokens are averaged and classified.

    The backbone's layers are this model's own (`get_layer("block_0")` works), not a nested model. A subclass has a
    `backbone_cls`, its `variants`, a `default_name`, and the `patch_size` of which height and width must be multiples.

    Args:
        image_shape: `(height, width, 3)`.
        num_classes: Number of classes; None for that of the `class_names`, or 10 without names.
        variant: Name of the sizes: "tiny", "small", "base", "large" or "base_8".
        class_names: Names of the classes, each another one, in the order of the output; or None.
        activation: Activation of the head, None for logits.
        dtype, name: Of the model. Under 16-bit policies the head computes in float32.
        **backbone_arguments: Other arguments of the backbone. What is not None takes the place of the variant's.

    Raises:
        TypeError: An argument that the backbone does not have.
        ValueError: A size that is no multiple of `patch_size`, channels, a variant, or `class_names` that do not fit.
    """

    # None here alone.
    backbone_cls: Any = None
    variants: Any = None
    default_name: Any = None
    patch_size: Any = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # What `help` shows, the backbone's arguments among them.
        cls.__signature__ = ClassSignature(_signature(cls))

    def __init__(
        self,
        image_shape: Shape = (256, 256, 3),
        num_classes: int | None = None,
        variant: str = "base",
        *,
        class_names: Sequence[str] | None = None,
        activation: Any = None,
        dtype: str | keras.DTypePolicy | None = None,
        name: str | None = None,
        **backbone_arguments: Any,
    ) -> None:
        _check_arguments(type(self), backbone_arguments)
        if variant not in self.variants:
            raise ValueError(wrong_choice("variant", variant, self.variants))
        num_classes, class_names = check_classes(num_classes, class_names)
        given = {key: value for key, value in backbone_arguments.items() if value is not None}
        arguments = {"image_shape": image_shape, **self.variants[variant], **given}
        backbone = self.backbone_cls(**without_arrays(arguments), dtype=dtype)

        # === Functional model ===
        outputs, head = pooled_head(backbone, num_classes, activation)
        super().__init__(inputs=backbone.input, outputs=outputs, name=name or self.default_name)

        # === Config ===
        # Past Keras's attribute tracking: the backbone's layers belong to this model already.
        self.__dict__["_backbone"] = backbone
        self.dtype_policy = backbone.dtype_policy
        self.patch_size = backbone.patch_size
        self.num_classes = num_classes
        self.class_names = class_names
        self._fix(inspect.signature(type(self)).parameters)

    @property
    def backbone(self) -> Backbone:
        """The model without pooling and head, images to tokens; it shares the weights."""
        return self.__dict__["_backbone"]

    @property
    def head(self) -> keras.layers.Dense:
        """The `Dense` layer that classifies; its input is the pooled feature."""
        return self.get_layer("head")

    @property
    def activation(self) -> Any:
        """The activation of the head as a configuration has it; None for logits."""
        return activation_name(self.head)

    @property
    def image_shape(self) -> Shape:
        return self.backbone.image_shape

    @property
    def grid_size(self) -> Shape:
        """`(rows, columns)` of the tokens, which come row by row; None for what any size may have."""
        return tuple(None if size is None else size // self.patch_size for size in self.image_shape[:2])

    @property
    def token_grid(self) -> Shape:
        """The former name of `grid_size`."""
        warnings.warn("`token_grid` is now called `grid_size`.", DeprecationWarning, stacklevel=2)
        return self.grid_size

    @property
    def size_multiple(self) -> int:
        """The former name of `patch_size`."""
        warnings.warn("`size_multiple` is now called `patch_size`.", DeprecationWarning, stacklevel=2)
        return self.patch_size

    def attention_maps(self, images: Tensor) -> np.ndarray:
        """The softmax weights of each attention head, for a batch of images, as a NumPy array like `predict`'s.

        The fused attention of the model itself does not give them, so they are computed again from its weights. The
        last axis reshaped to `grid_size` (height and width divided by `patch_size`) can be laid over the image.
        There is no class token; what is classified is the mean of the tokens, so take the mean over the queries.
        `keras_ci2p.layers.attention_rollout` makes one map of all layers. Of a model that merges its tokens
        on the way, these are the layers after the merge.

        Args:
            images: `(batch, height, width, 3)`, as the model itself takes them.

        Returns:
            float32 array `(batch, layers, heads, tokens, tokens)`: what each token (query, the fourth axis) takes from
            each (key, the last); rows sum to 1. 2.4 MB for each image with 64 tokens, 12 layers and 12 heads, 38 MB
            with 256 tokens.

        Raises:
            ValueError: Wrong rank, channels or size.
        """
        images = ops.convert_to_tensor(images)
        check_images(images.shape, self.patch_size, self.name)
        blocks = self.attention_blocks()
        tokens = keras.Model(self.input, {block.name: block.input for block in blocks}, name=self.name)(images)
        maps = [ops.convert_to_numpy(block.attention_scores(tokens[block.name])) for block in blocks]
        return np.stack(maps, axis=1)

    def attention_blocks(self) -> list[TransformerBlock]:
        """The `TransformerBlock`s that `attention_maps` tells of, the first one first."""
        blocks = [layer for layer in self.layers if isinstance(layer, TransformerBlock)]
        return [block for block in blocks if block.input.shape == blocks[-1].input.shape]

    def classify(self, images: Any, top: int = 5, batch_size: int = 32) -> list:
        """The most probable classes of images of any size, each cut as `keras-ci2p predict` and `evaluate` cut it.

        That is `keras_ci2p.data.center_crop` to the model's size, 256 where it takes any. For what the model itself
        takes, batches of its size, there is `predict`.

        Args:
            images: An image or a list of images: paths of files in any format that Pillow reads, `PIL.Image`s, or
                arrays `(height, width, 3)`, RGB in 0..255, uint8 or float. An array `(images, height, width, 3)` is a
                list too.
            top: How many classes of each image, at most; a positive integer.
            batch_size: How many images are computed together; memory grows with it.

        Returns:
            For each image a list of `(class name, probability)`, the most probable first; for an image that is in no
            list just that. A model without class names gives "0", "1" and so on.

        Raises:
            OSError: A file that cannot be read, which the message names.
            ValueError: Something else than an image, or `top` or `batch_size` not positive.

        Examples:
            >>> keras_ci2p.load_preset("animals10").classify("cat.jpg", top=1)
            [('cat', 0.97...)]
        """
        is_one = isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", None) == 3
        images = [images] if is_one else images
        if not hasattr(images, "__next__"):
            warn_of_range([image[None] for image in images[:32] if getattr(image, "ndim", None) == 3])
        found = classified(self, images, top, batch_size)
        results = [result for _, result in found]
        return results[0] if is_one else results

    def _constructor_config(self):
        return {**self.backbone._constructor_config(), "name": self.name, **self._task_config()}

    def save(self, *args: Any, **kwargs: Any) -> Any:
        try:
            check_activation(self.activation)
        except ValueError as error:
            # Of a file, other than of a preset, the reader can say what it is.
            warnings.warn(f"{error}. Else `load_model` must be given it as `custom_objects`.", stacklevel=2)
        return super().save(*args, **kwargs)

    def save_to_preset(
        self,
        preset_dir: PathLike,
        save_weights: bool = True,
        metadata: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
        storage: str = "float32",
    ) -> None:
        """Writes architecture, weights and class names as a preset directory (KerasHub's layout).

        Written aside and renamed, so that an interruption leaves no half of a preset. What was frozen is not kept, but
        for the compressor: a preset is to be trained by others.

        Args:
            preset_dir: Directory to write; an existing preset there is replaced.
            save_weights: Whether to write weights; without them the preset is an architecture.
            metadata: Further entries of `metadata.json`, values that JSON can hold, or NumPy's.
            files: Further files, as a dict of name to bytes.
            storage: "float32", "float16" or "int8", as in `keras_ci2p.presets.compact_weights`; what is loaded from it
                is float32 again. A compressor that 16-bit floats hold exactly, as the shipped one, keeps its weights.

        Raises:
            FileExistsError: `preset_dir` exists and is no preset.
            ValueError: Unknown storage; an activation that could not be loaded again.
        """
        check_activation(self.activation)
        backbone = serialize_model(self.backbone)
        task = serialize_model(self)
        task["config"] = {"backbone": backbone, **self._task_config()}
        weights = {WEIGHTS: self.backbone.save_weights, TASK_WEIGHTS: head_model(self.head).save_weights}
        save_preset(
            preset_dir,
            config=backbone,
            task=task,
            weights=weights if save_weights else {},
            metadata={"parameter_count": self.count_params(), **self._preset_metadata(), **(metadata or {})},
            files=files,
            storage=storage,
            exact=self._exact_groups,
        )

    @classmethod
    def from_preset(
        cls,
        preset: PathLike | Preset,
        num_classes: int | None = None,
        load_weights: bool = True,
        image_shape: Shape | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        **arguments: Any,
    ) -> Self:
        """The model of a preset.

        Args:
            preset: A name of `keras_ci2p.list_presets()`, a preset directory or a `Preset`.
            num_classes: Number of classes of a fresh head, without class names unless they are given; None keeps the
                preset's head.
            load_weights: Whether to load weights, else they are random; then the sizes can be others too.
            image_shape: `(height, width, 3)` in place of the preset's. A position embedding is resized bicubically.
            dtype: Dtype policy in place of the preset's.
            **arguments: Further constructor arguments in place of the preset's, for example `drop_path_rate`. None
                keeps the preset's, but `class_names` and `activation` can be set to None. A `compressor` keeps its own
                weights; where the preset has weights, it must have as many channels as the preset's.

        Raises:
            TypeError: An argument that the model does not have, or that a preset leaves no choice of: `variant`.
            ValueError: An argument that does not fit: of another size than the weights, `class_names` of another number
                than the preset's classes without `num_classes`, or what the constructor does not take.
            keras_ci2p.presets.PresetError: Unknown name, missing, truncated or foreign file, another kind of model.
            OSError: A published compressor could not be downloaded.
        """
        _check_arguments(cls, arguments)
        if "variant" in arguments:
            raise TypeError(
                f"{cls.__name__}.from_preset takes no `variant`: the preset has its sizes. "
                f"Received: variant={arguments['variant']!r}"
            )
        files = open_preset(preset)
        stored = files.config(keras.saving.get_registered_name(cls.backbone_cls), f"a {cls.__name__}")
        if dtype is not None and files.is_quantized:
            raise PresetError(
                f"{files.directory} is quantised: its 8-bit weights have no other dtype and cannot be trained. Take "
                f"the preset that it was made of. Received: dtype={dtype!r}"
            )
        head = dict.fromkeys(HEAD_ARGUMENTS) | files.task()
        keeps_head = num_classes is None and head["num_classes"] is not None
        config = {key: value for key, value in stored.items() if key != "name"}
        if keeps_head:
            config.update(head)
        elif num_classes is not None:
            config.update(num_classes=num_classes, activation=head["activation"])
        given = {"image_shape": image_shape, "dtype": dtype, **arguments}
        given = {key: value for key, value in given.items() if value is not None or key in HEAD_ARGUMENTS}
        if load_weights and files.has_weights:
            cls._check_sizes(arguments, stored, files.directory)
        if num_classes is not None:
            check_classes(num_classes, arguments.get("class_names"))
        elif keeps_head and arguments.get("class_names") is not None:
            _check_number(arguments["class_names"], head["num_classes"], files.directory)
        try:
            model = cls(**{**config, **given})
        except PresetError:
            # The compressor's.
            raise
        except (TypeError, ValueError) as error:
            if given and _takes(cls, config):
                # The arguments'.
                raise
            raise PresetError(f"The configuration in {files.directory} does not fit {cls.__name__}: {error}") from error
        if not load_weights:
            return model
        if not files.has_weights:
            warnings.warn(
                f"The preset {preset} is an architecture without weights: the model is randomly initialised. "
                "Say so with `load_weights=False`.",
                stacklevel=2,
            )
            return model
        brought = ["compressor"] if arguments.get("compressor") is not None else []
        with files.reading(WEIGHTS) as path:
            model.backbone.load_pretrained(path, stored["image_shape"], keep=brought)
        if keeps_head:
            with files.reading(TASK_WEIGHTS) as path:
                head_model(model.head).load_weights(path)
        return model

    @classmethod
    def _check_sizes(cls, arguments, stored, directory):
        """Raises ValueError where arguments are of another transformer: weights would be left out, or mean others."""
        for name in sorted({"patch_size"}.union(*cls.variants.values()) & set(stored)):
            given = without_arrays(arguments.get(name))
            if given not in (None, stored[name]):
                raise ValueError(
                    f"`{name}` does not fit the weights of {directory}, which are of a model with "
                    f"{name}={stored[name]}: leave it out, or give `load_weights=False` too. Received: {name}={given!r}"
                )

    # What weight files call the layers whose weights are not rounded further than they are.
    _exact_groups: tuple[str, ...] = ()

    def _preset_metadata(self):
        return {}


def evaluation_size(model):
    """`(height, width)` that the model was made for, 256 where it takes any."""
    return tuple(256 if size is None else size for size in model.image_shape[:2])


def predict_filled(model, batch, batch_size):
    """`predict_on_batch` of a batch that is filled up with its last image: another size would be compiled anew.

    Returns:
        The outputs of the batch's own images, arrays as the model nests them.
    """
    count = len(batch)
    outputs = model.predict_on_batch(batch[np.minimum(np.arange(batch_size), count - 1)])
    return keras.tree.map_structure(lambda array: array[:count], outputs)


def classified(model, images, top=5, batch_size=32, on_unreadable=None):
    """Yields `(image, result)` of each image, in order, with results as `ImageClassifier.classify` gives them.

    Args:
        model: A classifier.
        images: Iterable of images as `classify` takes them.
        top, batch_size: As in `classify`.
        on_unreadable: Function of an image that cannot be read and the OSError, which is then left out; None to raise.

    Raises:
        OSError, ValueError: As `classify`.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    size = evaluation_size(model)

    def cut(image):
        try:
            picture, note = _to_picture(image)
            return image, center_crop(picture, size), note
        except OSError as error:
            if on_unreadable is None:
                raise OSError(f"{image} cannot be read: {error}") from error
            return image, error, None

    def readable():
        for image, crop, note in in_threads(cut, images):
            if note:
                notes.append((str(image), note))
            if isinstance(crop, OSError):
                on_unreadable(image, crop)
            else:
                yield image, crop

    notes: list[tuple[str, str]] = []
    pairs = readable()
    while batch := list(itertools.islice(pairs, batch_size)):
        crops = np.stack([crop for _, crop in batch])
        # Of all the numbers of images that may be left, few sizes are compiled.
        filled = min(batch_size, 1 << (len(batch) - 1).bit_length())
        results = ranked(model, predict_filled(model, crops, filled), top)
        yield from ((image, result) for (image, _), result in zip(batch, results, strict=True))
    # Warnings are off while threads are at work.
    warn_of_notes("What was classified", notes)


def ranked(model, outputs, top):
    """The `top` most probable classes by a classifier's outputs: for each image a list of `(name, probability)`."""
    names, rows = model.class_names or list(map(str, range(model.num_classes))), probabilities(model, outputs)
    orders = np.argsort(-rows, axis=-1, kind="stable")[:, :top]
    return [[(names[i], float(row[i])) for i in order] for row, order in zip(rows, orders, strict=True)]


def _to_picture(image):
    """What `ImageClassifier.classify` takes as an image, as `decode_image` gives it."""
    if isinstance(image, (str, os.PathLike, Image.Image)):
        return decode_image(image)
    pixels = np.asarray(ops.convert_to_numpy(image))
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.size == 0 or pixels.dtype.kind not in "uif":
        raise ValueError(
            "An image must be a path, a `PIL.Image` or an array (height, width, 3), RGB in 0..255. Received: "
            f"an array of shape {pixels.shape} and dtype {pixels.dtype}"
        )
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype("uint8")), None


# Of a classifier, what is not its backbone's.
HEAD_ARGUMENTS = ("num_classes", "class_names", "activation")


def check_classes(num_classes, class_names):
    """Returns `num_classes` as an integer, by default that of the names or 10, and `class_names` as a list, or None.

    Raises:
        ValueError: No positive integer; names that are no list of texts, the same twice, or of another number.
    """
    names = None if class_names is None else _checked_names(class_names)
    if num_classes is None:
        num_classes = 10 if names is None else len(names)
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 1:
        raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes!r}")
    if names is not None and len(names) != num_classes:
        raise ValueError(
            f"`class_names` must hold one name for each class. Received: num_classes={num_classes}, "
            f"{len(names)} class names"
        )
    return int(num_classes), names


def _checked_names(class_names):
    # Names go by their places: a set has none, a dict has keys, and a text has letters.
    has_places = hasattr(class_names, "__getitem__") and not hasattr(class_names, "keys")
    names = list(class_names) if has_places and not isinstance(class_names, (str, bytes)) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            "`class_names` must be a list of texts, in the order of the model's output. "
            f"Received: class_names={class_names!r}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`class_names` must differ from one another. Received twice: {', '.join(twice)}")
    return list(map(str, names))


def _check_number(class_names, num_classes, directory):
    if len(_checked_names(class_names)) != num_classes:
        raise ValueError(
            f"The head of {directory} has {num_classes} classes: give `num_classes` too for a new one. "
            f"Received: class_names={class_names!r}"
        )


def _takes(cls, config):
    """Whether `cls` can be made of a configuration."""
    try:
        cls(**config)
    except (TypeError, ValueError):
        return False
    return True


def pooled_head(backbone, num_classes, activation):
    """Puts mean pooling and a `Dense` head over a backbone; returns the symbolic outputs and the head."""
    policy = backbone.dtype_policy
    pool = keras.layers.GlobalAveragePooling1D(data_format="channels_last", dtype=policy, name="pool")
    # Logits and softmax lose accuracy in 16 bits.
    is_16_bit = policy.compute_dtype in ("float16", "bfloat16")
    head = keras.layers.Dense(
        num_classes,
        activation=activation,
        kernel_initializer=RandomNormal(stddev=0.01),
        dtype="float32" if is_16_bit else policy,
        name="head",
    )
    return head(pool(backbone.output)), head


def activation_name(head):
    """The activation of a head as a configuration has it; None for logits."""
    return None if head.activation is keras.activations.linear else keras.activations.serialize(head.activation)


def _takes_logits(loss):
    """Whether a loss takes logits, not probabilities; None where that is not known."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss.get_config().get("from_logits")
    return False if "crossentropy" in getattr(loss, "__name__", "") else None


def probabilities(model, outputs):
    """Probabilities of a classifier's outputs.

    Args:
        model: The classifier.
        outputs: Array `(batch, classes)`.

    Returns:
        float64 array `(batch, classes)`, in 0..1. Those of a sigmoid, as of a single logit, need not sum to 1.

    Raises:
        ValueError: The head's activation gives none.
    """
    outputs = np.asarray(ops.convert_to_numpy(outputs), "float64")
    if model.activation is None:
        if outputs.shape[-1] == 1:
            # A softmax of one is 1, whatever it says.
            return np.exp(-np.logaddexp(0, -outputs))
        outputs = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        return outputs / outputs.sum(axis=-1, keepdims=True)
    if model.activation not in PROBABILITIES:
        raise ValueError(
            f"The model ends in {model.activation}, which gives no probabilities; load it with `activation=None`, for "
            "logits."
        )
    return outputs


def check_activation(name):
    """Raises ValueError where what `activation_name` gives could not be loaded by another process."""
    if not isinstance(name, dict) or str(name.get("module")).split(".")[0] == "keras":
        return
    registered = name["config"] if name.get("class_name") == "function" else name.get("registered_name")
    if registered is None or keras.saving.get_registered_object(registered) is None:
        raise ValueError(
            "The activation of the head could not be loaded again. Give a name of keras.activations, or register your "
            f"function with `keras.saving.register_keras_serializable`. Received: {registered or 'a lambda'}"
        )


def head_model(head):
    """A head as a model of its own, pooled features to logits: its weight files hold no more."""
    pooled = keras.Input((head.kernel.shape[0],), name="pooled")
    return keras.Model(pooled, head(pooled), name="head_model")


def _check_arguments(cls, arguments):
    """Raises TypeError unless a classifier, or its backbone, has all of the `arguments`."""
    own = _signature(cls).parameters
    known = {*own, *inspect.signature(cls.__init__).parameters}
    for argument in arguments:
        if argument not in known:
            raise TypeError(f"{cls.__name__} has no argument {argument!r}. Its arguments: {', '.join(own)}")


def _signature(cls):
    """The signature of a classifier: its own arguments, then its backbone's; None for what the variant tells."""
    _, *own = inspect.signature(ImageClassifier.__init__).parameters.values()
    own = {parameter.name: parameter for parameter in own[:-1]}
    own["name"] = own["name"].replace(default=cls.default_name)
    sizes = set().union(*cls.variants.values())
    further = [
        parameter.replace(kind=parameter.KEYWORD_ONLY, default=None if name in sizes else parameter.default)
        for name, parameter in inspect.signature(cls.backbone_cls).parameters.items()
        if name not in own
    ]
    return inspect.Signature([*own.values(), *further])
