"""`model.classify`: images of any kind and size to names and probabilities."""

import keras
import numpy as np
import pytest
from conftest import NANO
from PIL import Image

from keras_ci2p import ViT
from keras_ci2p.data import center_crop, load_image
from keras_ci2p.models.image_classifier import classified

NAMES = ["bird", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def model():
    model = ViT((32, 48, 3), num_classes=4, class_names=NAMES, **NANO)
    # Random heads give all classes nearly the same.
    model.head.kernel.assign(10 * model.head.kernel)
    return model


def expected(model, images):
    crops = np.stack([center_crop(image, (32, 48)) for image in images])
    return keras.ops.convert_to_numpy(keras.ops.softmax(model(crops, training=False)))


def assert_results(results, probabilities):
    assert len(results) == len(probabilities)
    for result, row in zip(results, probabilities, strict=True):
        assert [name for name, _ in result] == [NAMES[i] for i in np.argsort(-row, kind="stable")][: len(result)]
        np.testing.assert_allclose([p for _, p in result], np.sort(row)[::-1][: len(result)], atol=1e-5)


def test_paths_pictures_and_arrays_of_any_size(model, photos, rng):
    """In batches, the last of which is smaller; in their order."""
    arrays = [rng.integers(0, 256, (*size, 3), "uint8") for size in ((40, 70), (32, 48), (9, 9), (100, 50), (64, 64))]
    images = [photos / "cat" / "000.png", str(photos / "dog" / "001.png"), Image.fromarray(arrays[0]), *arrays[1:]]
    images.append(arrays[1].astype("float32") + 0.25)
    pictures = [load_image(path) for path in images[:2]] + [Image.fromarray(array) for array in arrays]
    pictures.append(Image.fromarray(arrays[1]))
    results = model.classify(images, batch_size=3)
    assert_results(results, expected(model, pictures))
    assert all(len(result) == 4 and type(result[0][1]) is float for result in results)
    assert_results(model.classify(np.stack([arrays[1]] * 2), top=2), expected(model, [pictures[3]] * 2))


@pytest.mark.once
def test_an_image_by_itself_is_no_list(model, photos, rng):
    path, pixels = photos / "cat" / "000.png", rng.integers(0, 256, (50, 60, 3), "uint8")
    for image in (path, str(path), load_image(path)):
        assert_results([model.classify(image, top=1)], expected(model, [load_image(path)]))
    assert_results([model.classify(pixels)], expected(model, [Image.fromarray(pixels)]))
    assert model.classify([]) == []


def test_a_picture_of_pillow_is_turned_upright_and_stays_as_it_is(model, rng, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (40, 90), "uint8")).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        assert_results([model.classify(picture)], expected(model, [load_image(tmp_path / "turned.png")]))
        assert picture.size == (90, 40) and picture.mode == "L"


def test_sizes_of_batches_are_few(model, monkeypatch, rng):
    """Each other size is compiled anew."""
    sizes = []
    predict = model.predict_on_batch
    monkeypatch.setattr(model, "predict_on_batch", lambda batch: sizes.append(len(batch)) or predict(batch))
    images = rng.integers(0, 256, (11, 32, 48, 3), "uint8")
    for count in (1, 3, 11):
        model.classify(images[:count], batch_size=6)
    assert sizes == [1, 4, 6, 6]


def test_probabilities_of_a_softmax_head_and_no_names(rng):
    model = ViT((32, 32, 3), num_classes=3, activation="softmax", **NANO)
    names, probabilities = zip(*model.classify(rng.integers(0, 256, (32, 32, 3), "uint8")), strict=True)
    assert sorted(names) == ["0", "1", "2"] and sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_wrong_arguments(model, photos, tmp_path):
    with pytest.raises(ValueError, match="`top` must be a positive integer"):
        model.classify(photos / "cat" / "000.png", top=0)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        model.classify(photos / "cat" / "000.png", batch_size=2.5)
    with pytest.raises(ValueError, match=r"An image must be .*shape \(4, 4\)"):
        model.classify([np.zeros((4, 4))])
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(OSError, match=r"notes\.txt cannot be read"):
        model.classify([photos / "cat" / "000.png", tmp_path / "notes.txt"])
    told = []
    paths = [tmp_path / "notes.txt", photos / "cat" / "000.png", tmp_path / "absent.jpg"]
    found = list(classified(model, paths, on_unreadable=lambda path, error: told.append(path)))
    assert [path for path, _ in found] == paths[1:2] and told == [paths[0], paths[2]]
