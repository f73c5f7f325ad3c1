import math

import keras
import numpy as np
import pytest
from PIL import Image

from keras_ci2p import Compressor, ViT
from keras_ci2p.data import DataError, scan_folder
from keras_ci2p.data.sources import scan_images
from keras_ci2p.plots import plot_confusion, plot_worst
from keras_ci2p.training import evaluate, evaluate_compressor
from keras_ci2p.training.evaluation import held_out, middle_crops, worst_images


class BrightestChannel(ViT):
    """Knows the answer for the test photos: "bird" is red, "cat" green, "dog" blue; but takes birds for cats."""

    def predict_on_batch(self, images):
        means = np.asarray(images).mean((1, 2))
        scores = np.zeros((len(means), self.num_classes))
        for row, channel in enumerate(means.argmax(1)):
            name = ("cat", "cat", "dog")[channel]
            scores[row, self.class_names.index(name)] = 1
        return scores


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
    with pytest.raises(DataError, match="3 classes, the model 2"):
        evaluate(ViT((32, 32, 3), num_classes=2, **nano), photos, verbose=0)
    model = ViT((32, 32, 3), num_classes=3, class_names=["bird", "cat", "horse"], **nano)
    with pytest.raises(DataError, match="dog, horse"):
        evaluate(model, photos, verbose=0)


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
        with pytest.raises(ValueError, match="Give `lmbda`"):
            evaluate_compressor(compressor, photos, size=48)
        fresh = Compressor("bmshj2018-factorized", quality=None, channels=(4, 6))
        evaluate_compressor(fresh, photos, size=48, lmbda=0.01)
        assert not fresh.compiled

    def test_lambda_is_the_one_of_the_quality(self, compressor, photos):
        compressor.quality = 3
        compressor.compile(lmbda=0.5)
        report = evaluate_compressor(compressor, photos, size=48)
        assert report["lmbda"] == 0.0067

    def test_as_keras_measures(self, compressor, photos):
        """Also with a last batch that is not full."""
        report = evaluate_compressor(compressor, photos, split="all", pictures=7, size=48, lmbda=0.01, batch_size=4)
        compressor.compile(lmbda=0.01)
        crops = middle_crops(held_out(scan_images(photos), "all", 7), 48, 7)
        means = compressor.evaluate(crops.repeat(), steps=1, verbose=0, return_dict=True)
        assert report["images"] == 7
        for name in ("psnr", "bpp", "cost"):
            assert report[name] == pytest.approx(means[name], rel=1e-5)
        with pytest.raises(ValueError, match="cannot be measured"):
            evaluate_compressor(Compressor("mbt2018", quality=None, channels=(4, 6)), photos, lmbda=1)
