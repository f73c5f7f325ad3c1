"""`.ci2p` files and images as one kind of data: evaluated, cached, and known by their compressor's fingerprint."""

import importlib
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import once, write_photos
from PIL import Image

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT
from keras_ci2p.codec import CodecError, ImageCodec
from keras_ci2p.data import CROP_AND_FLIP, Augmentation, DataError, center_crop, scan_folder, transforms
from keras_ci2p.data.latent_loader import LatentMirror, LatentRecords
from keras_ci2p.plots import MOST_SHOWN
from keras_ci2p.training import FileReader, LatentCacheConfig, cache_latents, evaluate
from keras_ci2p.training.evaluation import worst_images
from keras_ci2p.training.latents import outputs_of

# Of which the package has a function of the same name.
cache_latents_module = importlib.import_module("keras_ci2p.training.cache_latents")
pytestmark = pytest.mark.filterwarnings("ignore:The latents are made with a compressor of random weights")
CLASSES = ["bird", "cat", "dog"]


def small(seed):
    keras.utils.set_random_seed(seed)
    compressor = Compressor(quality=None, channels=(8, 12))
    # Of random weights all latents would round to zero.
    last = compressor.analysis.stages[-1]
    last.kernel.assign(100 * last.kernel)
    return compressor


@pytest.fixture(scope="module")
def codecs():
    """Of the classifier's own compressor, and of another."""
    return ImageCodec(small(0)), ImageCodec(small(1))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, codecs):
    """Per class four images, four files of the classifier's compressor, and two of another."""
    root = write_photos(tmp_path_factory.mktemp("mixed") / "photos", size=(64, 64))
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        if i % 10 >= 4:
            codec = codecs[i % 10 >= 8]
            path.with_suffix(".ci2p").write_bytes(codec.compress(np.asarray(Image.open(path))))
            path.unlink()
    return root


@pytest.fixture
def model(nano, codecs):
    return CI2PViT((64, 64, 3), class_names=CLASSES, compressor=codecs[0].compressor, **nano)


@pytest.fixture
def reader(codecs, tmp_path):
    own, other = codecs
    own.compressor.save_to_preset(tmp_path / "own")
    return FileReader(own.compressor.analysis, other.compressor, named=str(tmp_path / "own"))


def expected_outputs(model, mixed, codecs):
    """Of each file by itself, in the order of the manifest."""
    own, other = codecs
    manifest, outputs = scan_folder(mixed), []
    for i, file in enumerate(manifest.files):
        place = int(file[-8:-5] if file.endswith("ci2p") else file[-7:-4])
        if place < 4:
            outputs.append(model.predict(center_crop(manifest.open(i), 64)[None], verbose=0))
        elif place < 8:
            outputs.append(model.latent_classifier.predict(own.latents(manifest.read(i)), verbose=0))
        else:
            image = Image.fromarray(other.decompress(manifest.read(i)))
            outputs.append(model.predict(center_crop(image, 64)[None], verbose=0))
    return manifest, np.concatenate(outputs)


def test_images_and_files_of_all_kinds(model, mixed, codecs, reader):
    manifest, expected = expected_outputs(model, mixed, codecs)
    paths = [mixed / file for file in manifest.files]
    with pytest.warns(UserWarning, match="decoded to pixels and encoded anew: 6"):
        found = list(outputs_of(model, reader, paths, 4, None))
    assert [path for path, _ in found] == paths
    np.testing.assert_allclose(np.stack([outputs for _, outputs in found]), expected, atol=1e-4)


@pytest.mark.once
def test_a_mixed_folder_is_evaluated(model, mixed, codecs, reader):
    manifest, expected = expected_outputs(model, mixed, codecs)
    with pytest.warns(UserWarning, match="encoded anew: 6"):
        report = evaluate(model, mixed, split="all", verbose=0, batch_size=8, reader=reader, worst=40)
    right = expected.argmax(-1) == manifest.labels
    assert report["images"] == 30 and report["top1"] == pytest.approx(right.mean())
    wrong = {manifest.files[i] for i in np.flatnonzero(~right)}
    assert {row["image"] for row in report["worst"]} == wrong
    assert len(worst_images(report, mixed, (64, 64), reader)) == min(len(wrong), MOST_SHOWN)


@pytest.mark.once
def test_damaged_files_are_left_out(model, mixed, reader, tmp_path):
    root = shutil.copytree(mixed, tmp_path / "copy")
    damaged = root / "cat" / "005.ci2p"
    manifest = scan_folder(root)
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.warns(UserWarning, match=r"005\.ci2p can no longer be read.*damaged"):
        report = evaluate(model, manifest, split="all", verbose=0, reader=reader, worst=40)
    assert report["images"] == 29
    compressed = manifest.subset([i for i in manifest.compressed if "cat" in manifest.files[i]])
    for i in range(len(compressed)):
        (root / compressed.files[i]).unlink()
    with pytest.warns(UserWarning, match="No such file"), pytest.raises(DataError, match="None of the 6 files"):
        evaluate(model, compressed, split="all", verbose=0, reader=reader)


@pytest.mark.once
def test_a_classifier_without_a_compressor_sees_pixels(mixed, codecs, nano, reader):
    vit = ViT((64, 64, 3), class_names=CLASSES, patch_size=16, **nano)
    own, other = codecs
    reader = FileReader(None, own.compressor)
    path = mixed / "cat" / "004.ci2p"
    image, _ = reader.read(path)
    np.testing.assert_array_equal(np.asarray(image), own.decompress(path.read_bytes()))
    with pytest.warns(UserWarning, match="encoded anew: 1"):
        ((_, outputs),) = outputs_of(vit, reader, [path], 4, None)
    np.testing.assert_allclose(outputs, vit.predict(center_crop(image, 64)[None], verbose=0)[0], atol=1e-4)
    with pytest.raises(CodecError, match="of a compressor without a name: give --compressor"):
        reader.read(mixed / "cat" / "009.ci2p")


@pytest.mark.once
def test_the_fingerprint_tells_not_the_name(mixed, codecs, tmp_path):
    """A file that lies about its name, and a compressor of the same transform with another name."""
    own, other = codecs
    lying = ImageCodec(other.compressor, name="bmshj2018-factorized-mse-5-photos")
    image = np.asarray(Image.open(mixed / "cat" / "000.png"))
    path = tmp_path / "lying.ci2p"
    path.write_bytes(lying.compress(image))
    reader = FileReader(own.compressor.analysis, own.compressor)
    with pytest.raises(CodecError, match="another compressor than 'bmshj2018.*which it names"):
        reader.read(path)
    path.write_bytes(ImageCodec(own.compressor, name="whatever").compress(image))
    latents, _ = reader.read(path)
    np.testing.assert_array_equal(latents, own.latents(path.read_bytes())[0])
    with pytest.raises(CodecError, match="the classifier's own compressor, and nothing tells where"):
        FileReader(own.compressor.analysis).read(path)


@pytest.mark.parametrize("kind", [CI2PViT, once(CI2PViTDualScale)])
def test_latents_of_images_of_another_size(kind, nano, codecs, rng, tmp_path):
    """As a preset does it that is loaded for them."""
    more = {"early_dim": 16, "merge_at": 1} if kind is CI2PViTDualScale else {}
    model = kind((64, 64, 3), num_classes=3, compressor=codecs[0].compressor, **nano, **more)
    assert model.latent_classifier_of((4, 4)) is model.latent_classifier
    model.save_to_preset(tmp_path / "model")
    other = kind.from_preset(tmp_path / "model", image_shape=(64, 96, 3))
    latents = rng.normal(size=(2, 4, 6, 12)).astype("float32")
    network = model.latent_classifier_of((4, 6))
    expected = other.latent_classifier.predict(latents, verbose=0)
    np.testing.assert_allclose(network.predict(latents, verbose=0), expected, atol=1e-5)
    assert (model.latent_classifier_of((6, 4)) is network) == (kind is CI2PViT)


@pytest.mark.once
def test_a_mixed_folder_is_cached(mixed, codecs, tmp_path):
    own, _ = codecs
    images = scan_folder(mixed)
    images = images.subset([i for i, file in enumerate(images.files) if not file.endswith(("8.ci2p", "9.ci2p"))])
    settings = LatentCacheConfig(views=2, image_size=32, augmentation=replace(CROP_AND_FLIP, flip=1.0), batch_size=8)
    cache = cache_latents(images, tmp_path / "cache", own.compressor, settings, verbose=0)
    mirror, count = LatentMirror.fit(own, images), 0
    for split, each in (("train", 2), ("val", 1)):
        part, records = cache.split(split), LatentRecords(cache, split)
        assert len(records) == each * len(part)
        for i in part.compressed:
            (whole,) = own.latents(part.read(i))
            crops = [whole[top : top + 2, left : left + 2] for top in range(3) for left in range(3)]
            if split == "train":
                crops = [mirror(crop) for crop in crops]
            found = [
                [j for j, crop in enumerate(crops) if np.allclose(crop, records[each * i + view], atol=0.02)]
                for view in range(each)
            ]
            assert all(found) and (split == "train" or 4 in found[0])
            count += 1
    assert count == 12
    i = next(i for i in range(len(cache.split("val"))) if i not in cache.split("val").compressed)
    crop = center_crop(cache.split("val").open(i), 32)
    expected = keras.ops.convert_to_numpy(own.compressor.encode(crop[None]))[0]
    np.testing.assert_allclose(LatentRecords(cache, "val")[i], expected, atol=0.02)


@pytest.mark.once
def test_files_of_other_compressors_are_cached_anew(mixed, codecs, tmp_path, monkeypatch):
    own, other = codecs
    reader = FileReader(own.compressor.analysis, other.compressor)
    monkeypatch.setattr(cache_latents_module, "latent_reader", lambda *given: reader)
    images = scan_folder(mixed)
    places = [int(file.rpartition("/")[2][:3]) for file in images.files]
    images = images.subset([i for i, place in enumerate(places) if place < 4 or place > 7])
    whole = replace(CROP_AND_FLIP, flip=0.0, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    settings = LatentCacheConfig(views=1, image_size=32, augmentation=whole, batch_size=8)
    with pytest.warns(UserWarning, match="encoded anew: 6$"):
        cache = cache_latents(images, tmp_path / "cache", own.compressor.analysis, settings, verbose=0)
    train, records = cache.split("train"), LatentRecords(cache, "train")
    assert len(train.compressed) >= 3
    for i in train.compressed:
        image = Image.fromarray(other.decompress(train.read(i)))
        view = transforms.augment(image, (32, 32), np.random.default_rng(0), whole)
        expected = keras.ops.convert_to_numpy(own.compressor.encode(view[None]))[0]
        np.testing.assert_allclose(records[i], expected, atol=0.02)


@pytest.mark.once
def test_what_a_cache_refuses(mixed, codecs, tmp_path):
    own, _ = codecs
    for settings, teacher, message in (
        (LatentCacheConfig(augmentation=Augmentation(), image_size=32), None, r"augmentation\.randaugment_ops=2"),
        (LatentCacheConfig(augmentation=CROP_AND_FLIP, image_size=96), None, "smaller than 96 x 96 pixels"),
        (LatentCacheConfig(augmentation=CROP_AND_FLIP, image_size=32), object(), "A teacher needs pixels"),
    ):
        with pytest.raises(DataError, match=message):
            cache_latents(mixed, tmp_path / "cache", own.compressor, settings, verbose=0, teacher=teacher)
    assert not (tmp_path / "cache").exists()
