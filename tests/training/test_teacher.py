"""Teachers of every origin give the same as what they were made of, in the order of the classes asked for."""

import importlib.util
import json
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from conftest import write_photos
from tiny_teacher import onnx_file

from keras_ci2p import CI2PViT, ViT
from keras_ci2p.data import center_crop, scan_folder
from keras_ci2p.export import export
from keras_ci2p.export.formats import read_litert
from keras_ci2p.training import efficientnet, make_teacher, open_teacher
from keras_ci2p.training import efficientnet as probe
from keras_ci2p.training.teacher import TeacherError

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

BACKEND = keras.backend.backend()
NAMES = ("ant", "bee", "cow")


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 32, 32, 3)).astype("uint8")


def vit(nano, class_names=("cow", "ant", "bee"), **arguments):
    sizes = {"image_shape": (32, 32, 3), "num_classes": len(class_names), "class_names": list(class_names)}
    model = ViT(**sizes, **nano, **arguments)
    # The head begins near zero, where every order of the classes looks alike.
    model.head.kernel.assign(np.random.default_rng(0).normal(size=model.head.kernel.shape))
    return model


def keras_file(path, classes=3, activation=None):
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(6, 3, strides=4, padding="same", name="conv")(images)
    tokens = keras.layers.Reshape((64, 6), name="tokens")(x)
    pooled = keras.layers.GlobalAveragePooling1D()(tokens)
    model = keras.Model(images, keras.layers.Dense(classes, activation=activation)(pooled))
    model.save(path)
    return model


def means(images):
    return images.astype("float32").mean(axis=(1, 2))


@pytest.mark.parametrize("kind", ["preset", "keras", "onnx"])
def test_classes_are_matched_by_name(kind, tmp_path, nano, images):
    model = vit(nano)
    path = tmp_path / ("preset" if kind == "preset" else f"model.{kind}")
    if kind == "preset":
        model.save_to_preset(path)
    elif kind == "keras":
        model.save(path)
    else:
        export(model, path, "onnx", metadata={"name": "the export", "license": "MIT"})
    teacher = open_teacher(path, NAMES)

    logits, maps = teacher(images)
    expected = model.predict(images.astype("float32"), verbose=0)[:, [1, 2, 0]]
    assert logits.dtype == "float32" and maps == [] and teacher.feature_names == ()
    # OpenVINO may compute in bfloat16, of 8 bits.
    np.testing.assert_allclose(logits, expected, atol=1e-4 if kind != "onnx" else 0.02 * np.abs(expected).max())
    assert (teacher.class_names, teacher.image_size, teacher.value_range) == (NAMES, (32, 32), (0, 255))
    assert (teacher.name, teacher.license) == {"preset": ("preset", None), "keras": ("model", None)}.get(
        kind, ("the export", "MIT")
    )
    assert json.loads(json.dumps(teacher.describe()))["class_names"] == list(NAMES)

    # A class more than asked for is left out, one that it lacks is an error.
    np.testing.assert_array_equal(open_teacher(path, ("bee", "cow"))(images)[0], logits[:, 1:])
    with pytest.raises(TeacherError, match="does not know the class dog, eel. It knows: cow, ant, bee"):
        open_teacher(path, ("ant", "dog", "eel"))


@pytest.mark.every_backend
def test_preset_of_another_size_with_features(tmp_path, nano):
    model = vit(nano)
    model.save_to_preset(tmp_path / "preset")
    teacher = open_teacher(tmp_path / "preset", NAMES, image_size=(32, 64), features=["block_0"])
    _, (tokens,) = teacher(np.zeros((2, 32, 64, 3), "uint8"))
    rows, columns, _ = teacher.feature_shapes[0]
    assert tokens.shape == (2, rows, columns, nano["hidden_dim"]) and columns == 2 * rows
    assert teacher.sha256 == open_teacher(tmp_path / "preset", NAMES).sha256
    with pytest.raises(TeacherError, match="has no layers nothing to take features of. It has: .*block_0"):
        open_teacher(tmp_path / "preset", NAMES, features=["nothing"])


@pytest.mark.every_backend
def test_keras_file_without_names(tmp_path, images):
    model = keras_file(tmp_path / "model.keras")
    with pytest.raises(TeacherError, match="does not say which values it takes: give `value_range`"):
        open_teacher(tmp_path / "model.keras", NAMES)
    with pytest.warns(UserWarning, match="taken to be ant, bee, cow, in this order"):
        teacher = open_teacher(tmp_path / "model.keras", NAMES, value_range=(-1, 1), features=["conv", "tokens"])
    logits, (conv, tokens) = teacher(images)
    scaled = images / np.float32(127.5) - 1
    np.testing.assert_allclose(logits, model.predict(scaled, verbose=0), atol=1e-4)
    assert conv.shape == (3, 8, 8, 6)
    np.testing.assert_allclose(tokens, conv, atol=1e-6)
    with pytest.raises(TeacherError, match="gives 3 classes without saying which, and the data have 2"):
        open_teacher(tmp_path / "model.keras", NAMES[:2], value_range=(0, 1))
    with pytest.raises(TeacherError, match="takes images of 32 x 32 only. Received: image_size=\\(64, 64\\)"):
        open_teacher(tmp_path / "model.keras", NAMES, image_size=64, value_range=(0, 1))
    with pytest.raises(ValueError, match="takes uint8 or float32 images of shape"):
        teacher(np.zeros((1, 64, 64, 3), "uint8"))
    with pytest.raises(FileNotFoundError):
        open_teacher(tmp_path / "none.keras", NAMES)


@pytest.mark.filterwarnings("ignore:.*in this order")
def test_probabilities_become_logarithms(tmp_path, images):
    model = keras_file(tmp_path / "model.keras", activation="softmax")
    teacher = open_teacher(tmp_path / "model.keras", NAMES, value_range=(0, 1))
    expected = np.log(model.predict(images / np.float32(255), verbose=0))
    np.testing.assert_allclose(teacher(images)[0], expected, atol=1e-4)
    assert teacher.describe()["output"] == "probabilities"


@pytest.mark.filterwarnings("ignore:.*in this order")
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_onnx_of_others(channels_first, runtime, tmp_path, images, monkeypatch):
    if runtime == "onnxruntime":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    path = onnx_file(tmp_path / "means.onnx", channels_first)
    for value_range in [(0, 255), (0, 1), (-1, 1), ((0, -1, -2), (1, 1, 2))]:
        low, high = (np.asarray(bound, "float32") for bound in value_range)
        teacher = open_teacher(path, NAMES, value_range=value_range)
        logits, (halved,) = teacher(images)
        expected = images / np.float32(255) * (high - low) + low
        # The means alone may be computed in bfloat16.
        np.testing.assert_allclose(logits, means(expected), atol=0.01 * np.abs(expected).max())
        np.testing.assert_allclose(halved, expected[:, ::2, ::2], atol=0.01 * np.abs(expected).max())
    assert teacher.feature_names == ("features_2",) and teacher.feature_shapes == ((16, 16, 3),)
    assert teacher.describe()["runtime"].replace(" ", "").lower().startswith(runtime)
    assert open_teacher(path, NAMES, value_range=(0, 1), features=[]).feature_names == ()


def test_onnx_metadata_say_what_is_not_given(tmp_path, images):
    metadata = {"class_names": ["bee", "ant", "cow"], "value_range": [0, 1], "output": "probabilities", "name": "means"}
    path = onnx_file(tmp_path / "file.onnx", metadata=metadata, probabilities=True)
    teacher = open_teacher(path, NAMES)
    exponentials = np.exp(means(images / np.float32(255)))
    expected = np.log(exponentials / exponentials.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(teacher(images)[0], expected[:, [1, 0, 2]], atol=0.02)
    assert (teacher.name, teacher.value_range) == ("means", (0, 1))
    # What is given counts more.
    assert open_teacher(path, NAMES, value_range=(-1, 1)).value_range == (-1, 1)
    with pytest.raises(TeacherError, match="must be \\(low, high\\)"):
        open_teacher(path, NAMES, value_range=(1, 0))


def test_onnx_of_any_size_must_say_which(tmp_path):
    metadata = {"class_names": list(NAMES), "value_range": [0, 1]}
    path = onnx_file(tmp_path / "file.onnx", metadata=metadata, size=("rows", "columns"))
    with pytest.raises(TeacherError, match="takes images of any size"):
        open_teacher(path, NAMES)
    teacher = open_teacher(path, NAMES, image_size=(16, 32))
    assert (teacher.image_size, teacher.feature_shapes) == ((16, 32), ((8, 16, 3),))


def test_files_that_do_not_fit(tmp_path):
    path = onnx_file(tmp_path / "file.onnx")
    with pytest.raises(TeacherError, match="has no outputs head to take features of. It has: features_2, out"):
        open_teacher(path, NAMES, value_range=(0, 1), features=["head"])
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read .*broken.onnx"):
        open_teacher(tmp_path / "broken.onnx", NAMES)
    with pytest.raises(FileNotFoundError, match="There is no file .*none.onnx"):
        open_teacher(tmp_path / "none.onnx", NAMES)
    bad = onnx_file(tmp_path / "bad.onnx", metadata={"class_names": list(NAMES)})
    bad.write_bytes(bad.read_bytes().replace(b'["ant", "bee", "cow"]', b"[ant], [bee], (cow)!!"))
    with pytest.raises(ValueError, match="metadata entry keras_ci2p.class_names of the file is no JSON"):
        open_teacher(bad, NAMES)


def test_openvino_export_says_what_the_preset_says(tmp_path, nano, images):
    model = vit(nano)
    export(model, tmp_path / "model", "openvino", metadata={"name": "a name", "top1": 0.5})
    teacher = open_teacher(tmp_path / "model", NAMES)
    expected = model.predict(images.astype("float32"), verbose=0)[:, [1, 2, 0]]
    np.testing.assert_allclose(teacher(images)[0], expected, atol=0.02 * np.abs(expected).max())
    assert (teacher.name, teacher.value_range) == ("a name", (0, 255))
    again = open_teacher(tmp_path / "model/openvino_model.xml", NAMES)
    assert again.describe() == teacher.describe()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="written by TensorFlow")
def test_litert_and_saved_model_hold_the_metadata(tmp_path, nano):
    model = vit(nano)
    export(model, tmp_path / "model.tflite", "litert", metadata={"license": "MIT"})
    entries = read_litert(tmp_path / "model.tflite")
    assert entries["class_names"] == ["cow", "ant", "bee"] and entries["license"] == "MIT"
    assert (entries["image_size"], entries["value_range"], entries["output"]) == ([32, 32], [0, 255], "logits")
    export(model, tmp_path / "model", "tf_saved_model", metadata={"license": "MIT"})
    assert json.loads((tmp_path / "model/keras_ci2p.json").read_text()) == entries


@pytest.mark.every_backend
@pytest.mark.parametrize("kind", ["keras", "onnx"])
@pytest.mark.filterwarnings("ignore:.*in this order")
def test_several_threads_may_ask(kind, tmp_path, rng):
    path = tmp_path / f"model.{kind}"
    keras_file(path) if kind == "keras" else onnx_file(path)
    teacher = open_teacher(path, NAMES, value_range=(0, 1))
    batches = [rng.integers(0, 256, (count, 32, 32, 3)).astype("uint8") for count in (1, 2, 3, 4)]
    expected = [teacher(batch)[0] for batch in batches]
    wrong = []

    def ask(number):
        for _ in range(20):
            if not np.allclose(teacher(batches[number])[0], expected[number], atol=1e-5):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


def test_openvino_comes_without_its_telemetry():
    # Other tests import it as it is.
    code = "import sys; from keras_ci2p.export.formats import import_openvino; import_openvino(); "
    code += "sys.exit('openvino_telemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_probe_finds_the_minimum(rng):
    centers = rng.normal(size=(3, 20))
    labels = np.arange(90) % 3
    features = (centers[labels] + rng.normal(size=(90, 20))) * rng.uniform(0.1, 50, 20) + 7
    features[:, 5] = 3
    kernel, bias = probe.fit_probe(features, labels, 3)
    assert np.all(kernel[5] == 0) and np.mean(np.argmax(features @ kernel + bias, axis=1) == labels) > 0.9

    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    standardised = StandardScaler().fit_transform(features)
    known = LogisticRegression(C=probe.PRIOR_VARIANCE, tol=1e-8, max_iter=1000).fit(standardised, labels)
    logits = features @ kernel + bias
    centered = logits - logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centered, known.decision_function(standardised), atol=0.01)
    # Everything twice at half the weight is the same.
    twice, _ = probe.fit_probe(np.repeat(features, 2, axis=0), np.repeat(labels, 2), 3, weight=0.5)
    np.testing.assert_allclose(twice, kernel, atol=1e-3 * np.abs(kernel).max())


def test_efficientnet(tmp_path, monkeypatch, capsys):
    photos = scan_folder(write_photos(tmp_path / "photos", ("red", "green"), count=6))
    path = make_teacher("efficientnet-lite2", photos, image_size=64, cache_dir=tmp_path / "cache", verbose=1)
    said = capsys.readouterr().out
    assert "Converting efficientnet-lite2" in said and "top-1 100.0%" in said
    teacher = open_teacher(path, ("green", "red"))
    assert (teacher.name, teacher.license, teacher.image_size) == ("efficientnet-lite2", "Apache-2.0", (64, 64))
    assert teacher.feature_names == ("features_8", "features_16", "features_32")
    assert teacher.feature_shapes == ((8, 8, 48), (4, 4, 120), (2, 2, 1280))
    pictures = np.stack([center_crop(photos.open(i), (64, 64)) for i in range(len(photos))])
    logits, maps = teacher(pictures)
    assert [photos.class_names[label] for label in photos.labels] == [teacher.class_names[i] for i in logits.argmax(1)]
    assert [array.shape[0] for array in maps] == [12, 12, 12]

    # The same photos under other names need nothing but the file; others a probe, but no conversion.
    monkeypatch.setattr(efficientnet, "_CONVERTING", ("a_package_that_is_missing",))
    moved = scan_folder((tmp_path / "photos").rename(tmp_path / "moved"))
    before = path.stat().st_mtime_ns
    assert make_teacher("efficientnet-lite2", moved, image_size=64, cache_dir=tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == before
    # Of many photos only a crop is seen.
    monkeypatch.setattr(efficientnet, "_FEW_PHOTOS", 5)
    fewer = moved.subset(range(10))
    other = make_teacher("efficientnet-lite2", fewer, image_size=64, cache_dir=tmp_path / "cache", verbose=0)
    assert other != path
    assert np.mean(np.argmax(open_teacher(other, moved.class_names)(pictures)[0], axis=1) == photos.labels) == 1
    with pytest.raises(ImportError, match=r"needs a_package_that_is_missing, .* pip install 'keras_ci2p\[teacher\]'"):
        make_teacher("efficientnet-lite2", moved, image_size=96, cache_dir=tmp_path / "cache", verbose=0)
    with pytest.raises(ValueError, match="must be a multiple of 32, at least 64. Received: image_size=100"):
        make_teacher("efficientnet-lite2", moved, image_size=100)
    with pytest.raises(ValueError, match="`name` must be one of efficientnet-lite2"):
        make_teacher("efficientnet-b0", moved)


def test_keras_distiller_trains_a_student(nano, rng):
    student = CI2PViT((64, 64, 3), 3, compressor={"num_filters": 8, "latent_channels": 12}, **nano)
    teacher = ViT((64, 64, 3), 3, **nano)
    distiller = keras.distillation.Distiller(teacher, student, keras.distillation.LogitsDistillation(temperature=2.0))
    distiller.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    head = student.head.get_weights()[0]
    taught = teacher.get_weights()
    images = rng.uniform(0, 255, (4, 64, 64, 3)).astype("float32")
    history = distiller.fit(images, np.array([0, 1, 2, 0]), epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert not np.array_equal(student.head.get_weights()[0], head)
    for before, after in zip(taught, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
