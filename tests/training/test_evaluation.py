import dataclasses
import math
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from keras_ci2p import Compressor, ViT
from keras_ci2p.data import DataError, ImageManifest, scan_folder
from keras_ci2p.data.animals10 import CLASSES, ENGLISH
from keras_ci2p.data.sources import scan_images
from keras_ci2p.plots import plot_confusion, plot_worst
from keras_ci2p.training import evaluate, evaluate_compressor
from keras_ci2p.training.evaluation import held_out, match_classes, middle_crops, worst_images

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once


class BrightestChannel(ViT):
    """Knows the answer for the test photos: "bird" is red, "cat" green, "dog" blue; but takes birds for cats."""

    def predict_on_batch(self, images):
        means = np.asarray(images).mean((1, 2))
        scores = np.zeros((len(means), self.num_classes))
        for row, channel in enumerate(means.argmax(1)):
            name = ("cat", "cat", "dog")[channel]
            scores[row, self.class_names.index(name)] = 1
        return scores


@pytest.mark.every_backend
def test_report(photos, nano, tmp_path):
    # Another order than the folder's.
    model = BrightestChannel((32, 32, 3), num_classes=3, class_names=["dog", "bird", "cat"], **nano)
    report = evaluate(model, photos, split="all", verbose=0)
    assert report["images"] == 30
    assert report["top1"] == pytest.approx(2 / 3) and report["top5"] == 1
    assert report["class_names"] == ["dog", "bird", "cat"]
    assert report["confusion"] == [[10, 0, 0], [0, 0, 10], [0, 0, 10]]
    by_name = {row["name"]: row for row in report["per_class"]}
    assert by_name["bird"] == {"name": "bird", "images": 10, "recall": 0.0, "precision": None}
    assert by_name["cat"] == {"name": "cat", "images": 10, "recall": 1.0, "precision": 0.5}
    assert evaluate(model, photos, verbose=0)["images"] == 6
    plot_confusion(tmp_path / "confusion.png", report)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_of_very_many_classes_no_matrix_is_made(photos, nano, monkeypatch):
    model = BrightestChannel((32, 32, 3), num_classes=3, class_names=["dog", "bird", "cat"], **nano)
    whole = evaluate(model, photos, split="all", verbose=0)
    monkeypatch.setattr("keras_ci2p.training.evaluation._LARGEST_CONFUSION", 2)
    assert evaluate(model, photos, split="all", verbose=0) == {**whole, "confusion": None}


def test_the_worst(photos, nano, tmp_path):
    model = BrightestChannel((32, 32, 3), num_classes=3, class_names=["dog", "bird", "cat"], **nano)
    assert "worst" not in evaluate(model, photos, verbose=0)
    report = evaluate(model, photos, split="all", verbose=0, batch_size=4, worst=3)
    assert [row["image"] for row in report["worst"]] == [f"bird/{i:03}.png" for i in range(3)]
    # Scores 1, 0 and 0 are logits.
    right = math.e / (math.e + 2)
    expected = {"predicted_probability": right, "true_probability": right / math.e, "loss": math.log(math.e + 2)}
    for row in report["worst"]:
        assert row["true"] == "bird" and row["predicted"] == "cat"
        assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert len(evaluate(model, photos, split="all", verbose=0, worst=30)["worst"]) == 10
    plot_worst(tmp_path / "worst.png", report, worst_images(report, photos, (32, 32)))
    with Image.open(tmp_path / "worst.png") as page:
        assert np.asarray(page.convert("RGB")).std(axis=(0, 1)).min() > 10


def test_the_worst_of_probabilities(photos, nano):
    class Sure(BrightestChannel):
        def predict_on_batch(self, images):
            return np.maximum(0.9 * super().predict_on_batch(images), 0.05)

    model = Sure((32, 32, 3), num_classes=3, class_names=["dog", "bird", "cat"], activation="softmax", **nano)
    (row,) = evaluate(model, photos, split="all", verbose=0, worst=1)["worst"]
    assert row["predicted_probability"] == pytest.approx(0.9) and row["loss"] == pytest.approx(-math.log(0.05))


def test_classes_must_agree(photos, nano):
    nameless = ViT((32, 32, 3), num_classes=2, **nano)
    with pytest.raises(DataError, match="2 classes without names: .* has 3: bird, cat, dog"):
        evaluate(nameless, photos, verbose=0)
    with pytest.raises(DataError, match="without names: the data must have as many, and no class map"):
        evaluate(nameless, photos, verbose=0, class_map={"bird": "cat"})
    model = ViT((32, 32, 3), num_classes=3, class_names=["bird", "cat", "horse"], **nano)
    with pytest.raises(DataError, match="does not know dog, and has horse instead. .* --class-map dog=horse"):
        evaluate(model, photos, verbose=0)
    with pytest.raises(DataError, match="does not know cow, and has horse instead"):
        evaluate(model, photos, verbose=0, class_map={"dog": "cow"})
    with pytest.raises(DataError, match="class map names eel, which .* does not have. It has: bird, cat, dog"):
        evaluate(model, photos, verbose=0, class_map={"eel": "horse"})


def test_classes_that_are_called_otherwise(photos, nano, recwarn):
    class OfColours(BrightestChannel):
        names = "red", "green", "blue"

        def predict_on_batch(self, images):
            channels = np.asarray(images).mean((1, 2)).argmax(1)
            return np.eye(self.num_classes)[[self.class_names.index(self.names[channel]) for channel in channels]]

    model = OfColours((32, 32, 3), num_classes=3, class_names=["blue", "red", "green"], **nano)
    class_map = {"bird": "red", "cat": "green", "dog": "blue"}
    report = evaluate(model, photos, split="all", verbose=0, class_map=class_map)
    assert report["top1"] == 1 and report["class_names"] == ["blue", "red", "green"]
    assert report["data_sha256"] == scan_folder(photos).sha256
    # Two folders of one class are split as they were.
    before = {split: set(scan_folder(photos).split(split).files) for split in ("train", "val")}
    merged = scan_folder(photos).with_class_names(["a", "b"], {"bird": "a", "cat": "a", "dog": "b"})
    assert {split: set(merged.split(split).files) for split in before} == before
    assert merged.counts() == {"a": 20, "b": 10}
    # Accents in one character or in two, as macOS writes them.
    OfColours.names = "r\u00e9d", "green", "blue"
    model = OfColours((32, 32, 3), num_classes=3, class_names=["r\u00e9d", "green", "blue"], **nano)
    for old, new in (("bird", "re\u0301d"), ("cat", "green"), ("dog", "blue")):
        (photos / old).rename(photos / new)
    assert evaluate(model, photos, split="all", verbose=0)["top1"] == 1
    assert not [warning for warning in recwarn if "no images of" in str(warning.message)]


@pytest.mark.parametrize("of_model", [0, 1])
def test_animals10_in_either_language(of_model):
    class Model:
        class_names = [(english, italian)[of_model] for english, (italian, _) in CLASSES.items()][::-1]
        num_classes = 10

    for of_data in (0, 1):
        names = sorted((english, italian)[of_data] for english, (italian, _) in CLASSES.items())
        data = ImageManifest("photos", tuple(names), tuple(names), tuple(range(10)), tuple("0123456789"))
        matched = match_classes(Model, data)
        own = [matched.class_names[label] for label in matched.labels]
        assert [ENGLISH[name] for name in own] == [ENGLISH[name] for name in names]
        assert matched.class_names == tuple(Model.class_names)
        # What is not of them is told alone.
        (missing,) = (name for name in Model.class_names if ENGLISH[name] == ENGLISH[names[0]])
        for further, hint in ({names[0]: "tiger"}, missing), ({names[0]: "tiger", names[1]: "lion"}, "CLASS"):
            others = dataclasses.replace(data, class_names=tuple(further.get(name, name) for name in names))
            told = f"does not know {', '.join(further.values())}, and .* --class-map tiger={hint} "
            with pytest.raises(DataError, match=told):
                match_classes(Model, others)


@pytest.mark.parametrize("how", ["missing", "split"])
def test_a_class_without_images(photos, nano, how):
    """In a folder of its own, or in the folder test of one that is split; there it may be empty too."""
    model = BrightestChannel((32, 32, 3), num_classes=3, class_names=["dog", "bird", "cat"], **nano)
    if how == "split":
        root = photos.parent / "split"
        for split in ("train", "val", "test"):
            shutil.copytree(photos, root / split)
            for path in sorted((root / split).glob("*/*.png"))[{"train": 0, "val": 1, "test": 2}[split] :: 3]:
                path.unlink()
        for path in (root / "test" / "dog").iterdir():
            path.unlink()
        with pytest.warns(UserWarning, match="The test split of .* has no images of dog"):
            report = evaluate(model, root, split="test", verbose=0)
    else:
        shutil.rmtree(photos / "dog")
        with pytest.warns(UserWarning, match="photos has no images of dog: the figures tell nothing of them"):
            report = evaluate(model, photos, split="all", verbose=0)
    by_name = {row["name"]: row for row in report["per_class"]}
    assert by_name["dog"] == {"name": "dog", "images": 0, "recall": None, "precision": None}
    assert by_name["cat"]["recall"] == 1 and by_name["bird"]["recall"] == 0
    assert np.shape(report["confusion"]) == (3, 3)


def test_photos_that_vanish(photos, nano):
    manifest = scan_folder(photos)
    (photos / manifest.split("val").files[0]).unlink()
    # All of one class are wrong; those that are left bear their own names.
    model = BrightestChannel((32, 32, 3), num_classes=3, class_names=["bird", "cat", "dog"], **nano)
    with pytest.warns(UserWarning, match="no longer"):
        report = evaluate(model, manifest, verbose=0, batch_size=4, worst=6)
    assert report["images"] == 5
    assert [row["image"] for row in report["worst"]] == [manifest.split("val").files[1]]
    # A whole batch, and then all of them.
    for file in manifest.split("val").files[2:4]:
        (photos / file).unlink()
    with pytest.warns(UserWarning, match="no longer"):
        report = evaluate(model, manifest, verbose=0, batch_size=2, worst=6)
    assert report["images"] == 3
    assert [row["image"] for row in report["worst"]] == [manifest.split("val").files[1]]
    photos.rename(photos.with_name("elsewhere"))
    with pytest.warns(UserWarning, match="no longer"), pytest.raises(DataError, match="None of the 6 images"):
        evaluate(model, manifest, verbose=0, batch_size=2)


@pytest.mark.every_backend
def test_batches_of_one_size(photos, nano):
    """The last one is filled up and cut: another size would be compiled anew. So are those with images missing."""
    shapes = []

    class Spy(BrightestChannel):
        def predict_on_batch(self, images):
            shapes.append(np.shape(images))
            return super().predict_on_batch(images)

    model = Spy((32, 32, 3), num_classes=3, class_names=["bird", "cat", "dog"], **nano)
    manifest = scan_folder(photos)
    report = evaluate(model, manifest, split="all", batch_size=8, verbose=0)
    assert set(shapes) == {(8, 32, 32, 3)} and len(shapes) == 4
    assert report["images"] == 30 and report["top1"] == pytest.approx(2 / 3)
    for name in manifest.files:
        (photos / name).unlink()
    with pytest.warns(UserWarning, match="no longer"), pytest.raises(DataError, match="None of the 30 images"):
        evaluate(model, manifest, split="all", verbose=0)


class TestCompressor:
    @pytest.fixture
    def compressor(self):
        return Compressor("bmshj2018-factorized", quality=None, channels=(4, 6))

    def test_it_stays_compiled_as_it_was(self, compressor, photos):
        compressor.compile(keras.optimizers.SGD(0.5), lmbda=3.0)
        optimizer = compressor.optimizer
        report = evaluate_compressor(compressor, photos, size=48, lmbda=0.01)
        assert compressor.optimizer is optimizer and compressor.lmbda == 3 and report["lmbda"] == 0.01
        with pytest.raises(ValueError, match="Give `lmbda`.* Received: lmbda=None"):
            evaluate_compressor(compressor, photos, size=48)
        fresh = Compressor("bmshj2018-factorized", quality=None, channels=(4, 6))
        evaluate_compressor(fresh, photos, size=48, lmbda=0.01)
        assert not fresh.compiled

    def test_lambda_is_the_one_of_the_quality(self, compressor, photos):
        compressor.quality = 3
        compressor.compile(lmbda=0.5)
        report = evaluate_compressor(compressor, photos, size=48)
        assert report["lmbda"] == 0.0067

    @pytest.mark.every_backend
    def test_as_keras_measures(self, compressor, photos):
        """Also with a last batch that is not full."""
        report = evaluate_compressor(compressor, photos, split="all", num_images=7, size=48, lmbda=0.01, batch_size=4)
        compressor.compile(lmbda=0.01)
        crops = middle_crops(held_out(scan_images(photos), "all", 7), 48, 7)
        means = compressor.evaluate(crops.repeat(), steps=1, verbose=0, return_dict=True)
        assert report["images"] == 7
        for name in ("psnr", "bpp", "cost"):
            assert report[name] == pytest.approx(means[name], rel=1e-5)
        with pytest.raises(ValueError, match="cannot be measured"):
            evaluate_compressor(Compressor("mbt2018", quality=None, channels=(4, 6)), photos, lmbda=1)
