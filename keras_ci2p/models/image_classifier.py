"""What the classifiers share: mean pooling and head over a backbone, and presets."""

import warnings

import keras
import numpy as np
from keras import ops

from keras_ci2p.layers.compression_transforms import check_images
from keras_ci2p.layers.core import Dense
from keras_ci2p.layers.transformer import TransformerBlock
from keras_ci2p.presets import TASK_WEIGHTS, WEIGHTS, PresetError, open_preset, save_preset, serialize_model


class ImageClassifier(keras.Model):
    """Base class: the backbone's tokens are averaged and classified.

    The backbone's layers are this model's own (`get_layer("block_0")` works), not a nested model. Subclasses have a
    `size_multiple`, of which height and width must be multiples.
    """

    backbone_class = None

    def __init__(self, backbone, num_classes, class_names, activation, name):
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` must be a positive integer. Received: num_classes={num_classes!r}")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"`class_names` must hold one name for each class. Received: num_classes={num_classes}, "
                f"{len(class_names)} class names"
            )

        # === Layers ===
        policy = backbone.dtype_policy
        pool = keras.layers.GlobalAveragePooling1D(data_format="channels_last", dtype=policy, name="pool")
        # Logits and softmax lose accuracy in 16 bits.
        is_16_bit = policy.compute_dtype in ("float16", "bfloat16")
        head = keras.layers.Dense(
            num_classes,
            activation=activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype="float32" if is_16_bit else policy,
            name="head",
        )

        # === Functional model ===
        super().__init__(inputs=backbone.input, outputs=head(pool(backbone.output)), name=name)

        # === Config ===
        # Past Keras's attribute tracking: the backbone's layers belong to this model already.
        self.__dict__["_backbone"] = backbone
        self.dtype_policy = policy
        self.num_classes = num_classes
        self.class_names = None if class_names is None else list(class_names)
        self.activation = keras.activations.serialize(head.activation) if activation else None

    @property
    def backbone(self):
        """The model without pooling and head, images to tokens; it shares the weights."""
        return self.__dict__["_backbone"]

    @property
    def head(self):
        """The `Dense` layer that classifies; its input is the pooled feature."""
        return self.get_layer("head")

    @property
    def image_shape(self):
        return self.backbone.image_shape

    @property
    def token_grid(self):
        """`(rows, columns)` of the tokens, which come row by row; None for what any size may have."""
        return tuple(None if size is None else size // self.size_multiple for size in self.image_shape[:2])

    def attention_maps(self, images):
        """The softmax weights of each attention head, for a batch of images, as a NumPy array like `predict`'s.

        The fused attention of the model itself does not give them, so they are computed again from its weights. The
        last axis reshaped to `token_grid` (height and width divided by `size_multiple`) can be laid over the image.
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
        check_images(images.shape, self.size_multiple, self.name)
        blocks = [layer for layer in self.layers if isinstance(layer, TransformerBlock)]
        blocks = [block for block in blocks if block.input.shape == blocks[-1].input.shape]
        tokens = keras.Model(self.input, {block.name: block.input for block in blocks}, name=self.name)(images)
        maps = [ops.convert_to_numpy(block.attention_scores(tokens[block.name])) for block in blocks]
        return np.stack(maps, axis=1)

    def quantize(self, mode, config=None):
        """Quantises the transformer's products after training, by `keras.Model.quantize`.

        These are the weights of the attention and of the MLPs, most of the model; compressor, patch generator and head
        stay as they are. Inference only: integers do not learn. Saved presets load as they were saved.

        Args:
            mode: "int8": weights in eight bits, a scale for each output channel, and each token rounded likewise
                when it is multiplied.
            config: None, or a `keras.quantizers.Int8QuantizationConfig` that rounds tokens as that: a preset could
                not tell of another way.

        Raises:
            ValueError: Another mode or way to round tokens, or a model that is quantised already.
        """
        # Keras itself gives a `config` where there is none.
        rounding = config.activation_quantizer
        if mode != "int8" or not rounding or rounding.get_config() != keras.quantizers.AbsMaxQuantizer().get_config():
            raise ValueError(
                "`mode` must be int8, with the tokens rounded by `AbsMaxQuantizer()`. "
                f"Received: mode={mode!r}, config={config}"
            )
        if any(layer.quantization_mode for layer in self._flatten_layers()):
            raise ValueError(f"{self.name} is quantised already.")
        # Keras leaves subclasses of its Dense alone unless told not to; ours computes the same.
        super().quantize(mode, config, filters=lambda layer: isinstance(layer, Dense), type_check=False)

    def get_config(self):
        backbone = self.backbone.get_config()
        return {
            **backbone,
            "name": self.name,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def save_to_preset(self, preset_dir, save_weights=True, metadata=None, files=None, storage="float32"):
        """Writes architecture, weights and class names as a preset directory (KerasHub's layout).

        Written aside and renamed, so that an interruption leaves no half of a preset.

        Args:
            preset_dir: Directory to write; an existing preset there is replaced.
            save_weights: Whether to write weights; without them the preset is an architecture.
            metadata: Further entries of `metadata.json`, values that JSON can hold.
            files: Further files, as a dict of name to bytes.
            storage: "float32", "float16" or "int8", as in `keras_ci2p.presets.compact_weights`; what is loaded from it
                is float32 again. A compressor that 16-bit floats hold exactly, as the shipped one, keeps its weights.

        Raises:
            FileExistsError: `preset_dir` exists and is no preset.
            ValueError: Unknown storage.
        """
        backbone = serialize_model(self.backbone)
        task = serialize_model(self)
        task["config"] = {"backbone": backbone, **self._task_config()}
        weights = {WEIGHTS: self.backbone.save_weights, TASK_WEIGHTS: self._head_model().save_weights}
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
    def from_preset(cls, preset, num_classes=None, load_weights=True, image_shape=None, dtype=None, **arguments):
        """The model of a preset.

        Args:
            preset: A name of `keras_ci2p.list_presets()` or a preset directory.
            num_classes: Number of classes of a fresh head without class names; None keeps the preset's head.
            load_weights: Whether to load weights, else they are random.
            image_shape: `(height, width, 3)` in place of the preset's. A position embedding is resized bicubically.
            dtype: Dtype policy in place of the preset's.
            **arguments: Further constructor arguments in place of the preset's, for example `drop_path_rate`, or
                `class_names` for a fresh head.

        Raises:
            keras_ci2p.presets.PresetError: Unknown name, missing, truncated or foreign file, another kind of model.
        """
        return cls._from_preset(preset, num_classes, load_weights, image_shape=image_shape, dtype=dtype, **arguments)

    @classmethod
    def _from_preset(cls, preset, num_classes, load_weights, **overrides):
        """`from_preset`, with those of the constructor arguments `overrides` that are not None."""
        files = open_preset(preset)
        backbone_class = cls.backbone_class
        stored = files.config(keras.saving.get_registered_name(backbone_class), f"a {cls.__name__}")
        config = dict(stored)
        config.pop("name", None)
        head = dict.fromkeys(("num_classes", "class_names", "activation")) | files.task()
        keeps_head = num_classes is None and head["num_classes"] is not None
        if keeps_head:
            config.update(head)
        elif num_classes is not None:
            config.update(num_classes=num_classes, activation=head["activation"])
        config.update({key: value for key, value in overrides.items() if value is not None})
        try:
            model = cls(**config)
        except (TypeError, ValueError) as error:
            raise PresetError(f"The configuration in {files.directory} does not fit {cls.__name__}: {error}") from error
        if not load_weights:
            return model
        if not files.has_weights:
            warnings.warn(
                f"The preset {preset} is an architecture without weights: the model is randomly initialised. "
                "Say so with `load_weights=False`.",
                stacklevel=3,
            )
            return model
        with files.reading(WEIGHTS) as path:
            model.backbone.load_pretrained(path, stored["image_shape"])
        if keeps_head:
            with files.reading(TASK_WEIGHTS) as path:
                model._head_model().load_weights(path)
        return model

    # What weight files call the layers whose weights are not rounded further than they are.
    _exact_groups = ()

    def _preset_metadata(self):
        return {}

    def _task_config(self):
        return {"num_classes": self.num_classes, "class_names": self.class_names, "activation": self.activation}

    def _head_model(self):
        pooled = keras.Input((self.backbone.hidden_dim,), name="pooled")
        return keras.Model(pooled, self.head(pooled), name="head_model")
