"""KerasHub's own checks of its models, on ours."""

import keras
import keras_hub
import numpy as np
import pytest
from keras_hub.src.tests.test_case import TestCase
from nano_models import DUAL, PLAIN, our_model, to_numpy

from keras_ci2p import CI2PViT, CI2PViTDualScale, hub


def images(count=2, size=64):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype("float32")


class ModelTests:
    """The checks of a model; its classes and arguments are the subclass's."""

    # TensorFlow's own test case brings this one, which is always skipped.
    test_session = None

    def classifier_arguments(self):
        backbone = self.backbone_class(**self.arguments)
        preprocessor = self.classifier_class.preprocessor_cls.for_image_shape(self.arguments["image_shape"])
        return {"backbone": backbone, "preprocessor": preprocessor, "num_classes": 3, "activation": "softmax"}

    def test_vision_backbone(self):
        # JAX compiles each operation for each dtype, and the models share most of their layers.
        checks_dtypes = keras.backend.backend() != "jax" or self.our_class is CI2PViT
        # Our images have their channels last under every `image_data_format`.
        self.run_vision_backbone_test(
            cls=self.backbone_class,
            init_kwargs=dict(self.arguments),
            input_data=keras.ops.convert_to_tensor(images()),
            expected_output_shape=(2, 4, 32),
            run_mixed_precision_check=checks_dtypes,
            run_quantization_check=checks_dtypes,
            run_data_format_check=False,
        )

    def test_task(self):
        self.run_task_test(
            cls=self.classifier_class,
            init_kwargs=self.classifier_arguments(),
            train_data=(images(), np.array([0, 2])),
            expected_output_shape=(2, 3),
        )

    def test_saving(self):
        for model_class, arguments in (
            (self.backbone_class, self.arguments),
            (self.classifier_class, self.classifier_arguments()),
        ):
            self.run_model_saving_test(cls=model_class, init_kwargs=arguments, input_data=images())

    def test_presets(self):
        preset = self.get_temp_dir()
        ours = our_model(self.our_class)
        ours.save_to_preset(preset)
        features, logits = (to_numpy(model(images())) for model in (ours.backbone, ours))
        for model_class, expected in ((keras_hub.models.Backbone, features), (self.classifier_class, logits)):
            self.run_preset_test(
                cls=model_class,
                preset=preset,
                input_data=images(),
                expected_output=expected,
                expected_output_shape=expected.shape,
            )
        self.run_preset_test(
            cls=keras_hub.models.ImageClassifierPreprocessor,
            preset=preset,
            input_data=images(size=64),
            expected_output=images(size=64),
        )

    def test_preprocessing(self):
        size = self.arguments["image_shape"][:2]
        converter = self.classifier_class.preprocessor_cls.image_converter_cls
        self.run_preprocessing_layer_test(converter, {"image_size": size}, images(size=80))
        self.run_preprocessing_layer_test(
            self.classifier_class.preprocessor_cls,
            {"image_converter": converter(image_size=size)},
            (images(size=80), np.array([0, 2])),
        )


class TestCI2PViT(ModelTests, TestCase):
    our_class = CI2PViT
    backbone_class = hub.CI2PViTBackbone
    classifier_class = hub.CI2PViTImageClassifier
    arguments = PLAIN


# The layers are tested on each backend, and KerasHub's part is that of the other.
@pytest.mark.once
class TestCI2PViTDualScale(ModelTests, TestCase):
    our_class = CI2PViTDualScale
    backbone_class = hub.CI2PViTDualScaleBackbone
    classifier_class = hub.CI2PViTDualScaleImageClassifier
    arguments = DUAL


class TestClassTokenAndPositions(TestCase):
    test_session = None

    def test_layer(self):
        for use_class_token in (True, False):
            self.run_layer_test(
                hub.ClassTokenAndPositions,
                {"use_class_token": use_class_token},
                keras.ops.ones((2, 4, 8)),
                expected_output_shape=(2, 4 + use_class_token, 8),
                expected_num_trainable_weights=1 + use_class_token,
            )


# KerasHub's base class is no test of ours.
del TestCase
