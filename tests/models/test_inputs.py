"""What a classifier is given: images in a dict or a list, of another range, with labels that count other classes."""

import warnings

import keras
import numpy as np
import pytest
from conftest import once
from nano_models import DUAL, PLAIN, VIT, our_model

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.data import image_folder
from keras_ci2p.models.rate_distortion import rate_distortion_optimizer

# Takes its inputs as the other does.
DUAL_SCALE = once(CI2PViTDualScale)


def make_model(kind, **arguments):
    if kind is ViT:
        return ViT(num_classes=3, class_names=["cat", "dog", "owl"], **VIT, **arguments)
    return our_model(kind, **arguments)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (4, 64, 64, 3)).astype("float32")


LABELS = np.eye(3, dtype="float32")[[0, 1, 2, 0]]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Training with a compressor", "ignore:The structure of `inputs`")
@pytest.mark.parametrize("kind", [CI2PViT, CI2PViTDualScale, ViT])
def test_images_in_a_dict_or_a_list(kind, images):
    """As plain functional models take them."""
    model = make_model(kind)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    expected = model.predict(images, verbose=0)
    for nested in ({"images": images}, [images], (images,)):
        np.testing.assert_allclose(model.predict(nested, verbose=0), expected, atol=1e-5)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(model(nested)), expected, atol=1e-5)
    named = {"images": images}
    loss = model.evaluate(images, LABELS, verbose=0)
    assert model.evaluate(named, LABELS, verbose=0) == pytest.approx(loss, rel=1e-4)
    model.fit(named, LABELS, validation_data=(named, LABELS), verbose=0)
    model.fit(((named, LABELS) for _ in range(3)), steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match="photos"):
        model.predict({"photos": images}, verbose=0)


@pytest.mark.filterwarnings("ignore:Training with a compressor")
def test_images_in_0_to_1(images):
    model = make_model(CI2PViT)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    dark, unit = "within 0..1, which is nearly black", images / 255
    with pytest.warns(UserWarning, match=dark):
        model.fit(unit, LABELS, verbose=0)
    with pytest.warns(UserWarning, match=dark):
        model.fit({"images": unit.astype("float16")}, LABELS, verbose=0)
    with pytest.warns(UserWarning, match=dark):
        model.fit(images, LABELS, validation_data=(unit, LABELS), verbose=0)
    with pytest.warns(UserWarning, match=dark):
        model.evaluate(keras.ops.convert_to_tensor(unit), LABELS, verbose=0)
    with pytest.warns(UserWarning, match=dark):
        model.predict([unit], verbose=0)
    for one_or_more in (unit[0], list(unit), unit):
        with pytest.warns(UserWarning, match=dark):
            model.classify(one_or_more)
    for low, scaled in ((-1, images / 127.5 - 1), (-2, (images / 255 - 0.45) / 0.225)):
        with pytest.warns(UserWarning, match=rf"within {low}\.[0-9]\.\.[12]\.[0-9], which is nearly black"):
            model.predict(scaled, verbose=0)


class Batches(keras.utils.PyDataset):
    """What is read of it, by position, is in `read`."""

    def __init__(self, images):
        super().__init__()
        self.images, self.read = images, []

    def __len__(self):
        return 2

    def __getitem__(self, i):
        self.read.append(i)
        return self.images[2 * i : 2 * i + 2], LABELS[2 * i : 2 * i + 2]


def generator(images, read):
    """Cannot be begun again."""
    for i in range(3):
        read.append(i)
        yield images[:2], LABELS[:2]


def torch_loader(images, read):
    data = pytest.importorskip("torch.utils.data")

    class Dataset(data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            read.append(i)
            return images[i], LABELS[i]

    return data.DataLoader(Dataset(), batch_size=2)


def tf_dataset(images, read):
    tf = pytest.importorskip("tensorflow")

    def batches():
        for i in range(2):
            read.append(i)
            yield images[2 * i : 2 * i + 2], LABELS[2 * i : 2 * i + 2]

    signature = tf.TensorSpec((None, 64, 64, 3), images.dtype), tf.TensorSpec((None, 3), "float32")
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


STREAMS = {"generator": generator, "torch": torch_loader, "tf": tf_dataset}
UNIT_RANGE = "within 0..1, which is nearly black"
UNIT_RANGE_WORDS = "The images are within 0..1"


@pytest.mark.filterwarnings("ignore:Training with a compressor")
@pytest.mark.parametrize("kind", ["generator", *map(once, ("torch", "tf"))])
def test_streams_in_0_to_1(kind, images):
    """Their first batch is looked at as it passes: the same is read as without."""
    model, plain = make_model(ViT), keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    for each in (model, plain):
        each.compile(keras.optimizers.SGD(0.0), "mse")

    def fit(each, stream):
        read, steps = [], 2 if kind == "generator" else None
        each.fit(STREAMS[kind](stream, read), steps_per_epoch=steps, epochs=1, verbose=0)
        return read

    with pytest.warns(UserWarning, match=UNIT_RANGE) as caught:
        read = fit(model, images / 255)
    assert len([each for each in caught if UNIT_RANGE in str(each.message)]) == 1
    # Of a generator TensorFlow may fetch one batch more, as it finds time.
    steps = 2 if kind == "generator" else None
    assert read[:steps] == fit(plain, images / 255)[:steps]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", UNIT_RANGE_WORDS)
        for good in (images, images.astype("uint8")):
            fit(model, good)
    if kind != "generator":
        with pytest.warns(UserWarning, match=UNIT_RANGE):
            model.fit(images, LABELS, validation_data=STREAMS[kind](images / 255, []), verbose=0)
        for method in (model.evaluate, model.predict):
            with pytest.warns(UserWarning, match=UNIT_RANGE):
                method(STREAMS[kind](images / 255, []), verbose=0)


@pytest.mark.filterwarnings("ignore:The images are within")
def test_shuffled_streams_keep_their_order():
    tf = pytest.importorskip("tensorflow")
    model, plain = make_model(ViT), keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])

    def second_order(each):
        each.compile(keras.optimizers.SGD(0.0), "mse")
        stream = tf.data.Dataset.range(50).shuffle(50, seed=3)
        stream = stream.map(lambda i: (tf.fill((1, 64, 64, 3), tf.cast(i, "float32") / 50), LABELS[:1]))
        each.evaluate(stream, verbose=0)
        return [float(x[0, 0, 0, 0]) for x, _ in stream]

    assert second_order(model) == second_order(plain)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Training with a compressor")
def test_py_datasets_in_0_to_1(images):
    model = make_model(ViT)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    for method in (model.fit, model.evaluate, model.predict):
        with pytest.warns(UserWarning, match=UNIT_RANGE):
            method(Batches(images / 255), verbose=0)
    with pytest.warns(UserWarning, match=UNIT_RANGE):
        model.fit(images, LABELS, validation_data=Batches(images / 255), verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", UNIT_RANGE_WORDS)
        model.fit(Batches(images), validation_data=Batches(images.astype("uint8")), verbose=0)


@pytest.mark.once
def test_compressors_take_the_same_range(images):
    compressor = Compressor(quality=None, channels=(8, 12))
    compressor.compile(lmbda=0.01)
    with pytest.warns(UserWarning, match=UNIT_RANGE):
        compressor.fit(images / 255, verbose=0)
    with pytest.warns(UserWarning, match=UNIT_RANGE):
        compressor.evaluate(((each,) for each in [images / 255]), steps=1, verbose=0)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4, 4, 12)).astype("float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", UNIT_RANGE_WORDS)
        compressor.evaluate({"images": images, "noise": noise}, verbose=0)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Training with a compressor", "error:The images are within")
def test_images_that_are_not_in_0_to_1(images):
    model = make_model(CI2PViT)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(images, LABELS, validation_data=(images, LABELS), verbose=0)
    # Nothing at all, a mask, and black.
    for black in (np.zeros_like(images), (images > 128).astype("uint8")):
        model.predict(black, verbose=0)
        model.classify(black)
    # As bicubic resampling leaves them.
    model.predict(images - 10, verbose=0)


def test_labels_that_count_other_classes(photos):
    """`image_folder` counts bird, cat, dog."""
    model = ViT(num_classes=3, class_names=["dog", "bird", "cat"], **VIT)
    model.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy")
    options = {"image_size": 64, "batch_size": 4, "split": "val"}
    other, own = image_folder(photos, **options), image_folder(photos, class_names=model.class_names, **options)
    message = "data count the classes bird, cat, dog, the outputs of .* dog, bird, cat. .*class_names=model.class_names"
    for call in (
        lambda: model.evaluate(other, verbose=0),
        lambda: model.fit(other, verbose=0),
        lambda: model.fit(other.repeat(), steps_per_epoch=1, verbose=0),
        lambda: model.fit(own, validation_data=other, verbose=0),
        lambda: model.fit(own, None, None, 1, 0, None, 0.0, other),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    model.fit(own, validation_data=own, verbose=0)
    model.fit(own.repeat(), steps_per_epoch=1, verbose=0)
    model.evaluate(own, verbose=0)
    # Which has no use for labels.
    assert model.predict(other, verbose=0).shape == (6, 3)
    # Where one side does not know, nothing can be said.
    nameless = ViT(num_classes=3, **VIT)
    nameless.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy")
    nameless.evaluate(other, verbose=0)


# Whose step fails, and whether it is the first one. TensorFlow's trainer takes nothing away: one model must do.
FAILING = [("ours", True), ("ours", False)]
if keras.backend.backend() != "tensorflow":
    FAILING += [("compressor", True), ("hub", False)]


@pytest.mark.parametrize(("kind", "first"), FAILING)
def test_a_step_that_fails_leaves_the_model_as_it_was(kind, first, images):
    """On JAX Keras's trainer has taken the weights, and would keep them."""
    if kind == "compressor":
        model = Compressor(quality=None, channels=(8, 12))
        model.compile(rate_distortion_optimizer(0.0, 0.0), lmbda=0.01)
    elif kind == "hub":
        pytest.importorskip("keras_hub")
        from keras_ci2p import hub

        model = hub.CI2PViTImageClassifier(hub.CI2PViTBackbone(**PLAIN), num_classes=3)
        model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    else:
        model = make_model(ViT)
        model.compile(keras.optimizers.SGD(0.0), "mse")

    def outputs():
        return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(model(images))]

    expected = outputs()
    good, wrong = (images, LABELS), (images, np.zeros((4, 7, 5), "float32"))
    if kind == "compressor":
        good, wrong = (images,), (images[:, :50, :50],)

    def interrupted():
        yield good
        raise KeyboardInterrupt

    def stream():
        if not first:
            yield good
        yield wrong

    for failing, error in ((stream, Exception), (interrupted, KeyboardInterrupt)):
        for method in (model.fit, model.evaluate):
            if kind == "hub" and failing is interrupted:
                # It takes no generators.
                continue
            with pytest.raises(error):
                method(*wrong, verbose=0) if kind == "hub" else method(failing(), verbose=0)
            for found, wanted in zip(outputs(), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(Exception):  # noqa: B017, each backend has its own.
        model.predict(images[:, :50, :50], verbose=0)
    model.predict(images, verbose=0)
    model.fit(*good, verbose=0)


def test_a_step_that_is_interrupted(images):
    """It ends as an interrupt, whatever goes wrong after it: at the end of `fit` means of weights are put into them."""
    model = make_model(ViT)
    model.compile(keras.optimizers.SGD(0.0, use_ema=True), "mse")
    model.make_train_function()
    step = model.train_function

    def interrupted(*arguments):
        step(*arguments)
        raise KeyboardInterrupt

    model.train_function = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.fit(images, LABELS, verbose=0)


def test_a_step_is_traced_once(images):
    """Not twice, as TensorFlow would for the optimizer's variables, had they been made in it."""
    model, steps = make_model(ViT), []
    one = model.train_step
    model.train_step = lambda *args: steps.append(1) or one(*args)
    model.compile(keras.optimizers.Adam(), "mse")
    model.fit(images, LABELS, verbose=0)
    assert len(steps) == 1


@pytest.mark.once
@pytest.mark.parametrize("kind", [CI2PViT, DUAL_SCALE])
@pytest.mark.filterwarnings("ignore:Training with a compressor")
def test_kerashubs_classifiers_look_too(kind, photos, images):
    pytest.importorskip("keras_hub")
    from keras_ci2p import hub

    name, arguments = kind.__name__, PLAIN if kind is CI2PViT else DUAL
    backbone = getattr(hub, f"{name}Backbone")(**arguments)
    classifier_class = getattr(hub, f"{name}ImageClassifier")
    preprocessor = classifier_class.preprocessor_cls.for_image_shape((64, 64, 3))
    for model in (
        classifier_class(backbone, num_classes=3, class_names=["dog", "bird", "cat"]),
        classifier_class(backbone, num_classes=3, class_names=["dog", "bird", "cat"], preprocessor=preprocessor),
    ):
        model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
        other = image_folder(photos, image_size=64, batch_size=4, split="val")
        message = "data count the classes bird, cat, dog, the outputs of"
        with pytest.raises(ValueError, match=message):
            model.evaluate(other, verbose=0)
        with pytest.raises(ValueError, match=message):
            model.fit(images, LABELS, validation_data=other, verbose=0)
        with pytest.raises(AttributeError, match="`head` of a .* cannot be assigned"):
            model.head = keras.layers.Dense(5)
        own = image_folder(photos, class_names=model.class_names, image_size=64, batch_size=4, split="val")
        for streams in ((lambda images: (images, LABELS)), (lambda images: (tf_dataset(images, []), None))):
            with pytest.warns(UserWarning, match=UNIT_RANGE):
                model.fit(*streams(images / 255), verbose=0)
            with pytest.warns(UserWarning, match=UNIT_RANGE):
                model.evaluate(*streams(images / 255), verbose=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", UNIT_RANGE_WORDS)
            model.fit(images, LABELS, verbose=0)
            model.evaluate(own, verbose=0)
            model.predict(images, verbose=0)
