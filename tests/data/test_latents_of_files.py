"""`latent_folder` of `.ci2p` files: decoded, cropped and flipped without pixels."""

import itertools
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
import skimage.data
from conftest import write_photos
from PIL import Image

from keras_ci2p import Compressor
from keras_ci2p.codec import ImageCodec
from keras_ci2p.data import (
    CROP_AND_FLIP,
    Augmentation,
    DataError,
    ImageManifest,
    image_folder,
    latent_folder,
    scan_folder,
)
from keras_ci2p.data.latent_loader import LatentMirror, crop_latents


@pytest.fixture(scope="module")
def compressor():
    keras.utils.set_random_seed(0)
    compressor = Compressor(quality=None, channels=(8, 12))
    # Of random weights all latents would round to zero.
    last = compressor.analysis.stages[-1]
    last.kernel.assign(100 * last.kernel)
    return compressor


@pytest.fixture(scope="module")
def written(tmp_path_factory, compressor):
    """24 training and 6 validation files of 40 x 48 pixels: 3 x 3 latents; and the codec."""
    root = tmp_path_factory.mktemp("latents")
    codec = ImageCodec(compressor)
    for path in sorted(write_photos(root / "photos").rglob("*.png")):
        target = root / "files" / path.relative_to(root / "photos").with_suffix(".ci2p")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(codec.compress(np.asarray(Image.open(path))))
    return root / "files", codec


@pytest.fixture
def files(written):
    return written[0]


@pytest.fixture
def copy(files, tmp_path):
    return shutil.copytree(files, tmp_path / "copy")


def everything(files, codec, split):
    manifest = scan_folder(files).split(split)
    latents = [codec.latents(manifest.read(i))[0].astype("float32") for i in range(len(manifest))]
    return np.stack(latents), np.array(manifest.labels)


def test_validation_is_the_centre_in_order(written, compressor):
    files, codec = written
    latents, labels = everything(files, codec, "val")
    assert latents.shape == (6, 3, 3, 12) and len(np.unique(latents)) > 5
    data = latent_folder(files, compressor=compressor, split="val", batch_size=4, image_size=32)
    assert data.class_names == ("bird", "cat", "dog") and data.steps_per_epoch == 2
    for _ in range(2):
        batches, one_hot = zip(*data, strict=True)
        np.testing.assert_array_equal(np.concatenate(batches), latents[:, :2, :2])
        np.testing.assert_array_equal(np.concatenate(one_hot).argmax(-1), labels)
        assert batches[0].dtype == one_hot[0].dtype == "float32"
    named = latent_folder(files, compressor=compressor, split="val", class_names=["dog", "x", "cat", "bird"])
    assert np.concatenate([labels for _, labels in named]).argmax(-1).tolist() == [3, 3, 2, 2, 0, 0]


def training(files, compressor, **options):
    return latent_folder(files, **{"compressor": compressor, "image_size": 32, "batch_size": 8, **options})


def test_training_crops_at_random_places(written, compressor):
    files, codec = written
    latents, labels = everything(files, codec, "train")
    data = training(files, compressor, augment=data_flips(0))
    windows = {
        latents[i, top : top + 2, left : left + 2].tobytes(): (i, top, left)
        for i in range(24)
        for top in range(2)
        for left in range(2)
    }
    epochs = []
    for _ in range(3):
        found = []
        for batch, one_hot in data:
            assert batch.shape == (8, 2, 2, 12)
            found += [windows[crop.tobytes()] for crop in batch]
            assert one_hot.argmax(-1).tolist() == [labels[i] for i, _, _ in found[-8:]]
        assert sorted(i for i, _, _ in found) == list(range(24))
        epochs.append(found)
    assert len({place for epoch in epochs for _, *place in epoch for place in [tuple(place)]}) == 4
    assert epochs[0] != epochs[1] != epochs[2]
    again = [crop.tobytes() for batch, _ in training(files, compressor, augment=data_flips(0)) for crop in batch]
    assert [windows[crop] for crop in again] == epochs[0], "the same seed, the same views"
    # (1, 1) is the centre, as of images.
    (batch, _), *_ = training(files, compressor, augment=data_flips(0, crop_area=(1, 1)))
    assert {windows[crop.tobytes()][1:] for crop in batch} == {(0, 0)}
    assert next(iter(training(files, compressor, augment=False)))[0].shape == (8, 2, 2, 12)


def data_flips(flip, **changed):
    return replace(CROP_AND_FLIP, flip=flip, **changed)


def test_flips_are_those_of_the_mirror(written, compressor):
    files, codec = written
    mirror = LatentMirror.fit(codec, scan_folder(files).split("train"))
    plain, flipped = (training(files, compressor, augment=data_flips(flip), image_size=None) for flip in (0, 1))
    for (own, labels), (other, same) in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(labels, same)
        np.testing.assert_allclose(np.stack([mirror(latents) for latents in own]), other, atol=1e-4)
    some = crop_latents(own[0], (2, 2), data_flips(0.5), np.random.default_rng(3), mirror)
    assert some.shape == (2, 2, 12)


@pytest.mark.once
def test_flipped_latents_are_those_of_the_flipped_image(tmp_path):
    """Of the shipped compressor; reversed columns alone are as far from it as any latents."""
    codec = ImageCodec(Compressor.from_preset("bmshj2018-factorized-mse-5-photos"))
    images, files = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.rocket()], []
    for i, (top, left) in enumerate(itertools.product((0, 144), (0, 256))):
        for j, image in enumerate(images):
            files.append(f"{i}{j}.ci2p")
            (tmp_path / files[-1]).write_bytes(codec.compress(image[top : top + 256, left : left + 256]))
    mirror = LatentMirror.fit(codec, ImageManifest(tmp_path, ("a",), tuple(files), (0,) * 12, ("",) * 12))
    other = skimage.data.chelsea()[64:192, 128:288]
    latents, expected = (codec.latents(codec.compress(some))[0] for some in (other, other[:, ::-1]))
    spread = np.square(expected - expected.mean((0, 1))).mean()
    assert np.square(mirror(latents) - expected).mean() < 0.25 * spread
    assert np.square(latents[:, ::-1] - expected).mean() > 0.7 * spread


def test_any_size_in_whole_tokens(written, compressor, copy):
    files, codec = written
    data = latent_folder(files, compressor=compressor, split="val")
    assert next(iter(data))[0].shape == (6, 2, 2, 12)
    (copy / "cat" / "005.ci2p").write_bytes(codec.compress(np.zeros((70, 64, 3), "uint8")))
    with pytest.raises(DataError, match="have 2 sizes. Give the `image_size`"):
        latent_folder(copy, compressor=compressor, split="all")
    data = latent_folder(copy, compressor=compressor, split="all", image_size=32)
    assert sum(len(batch) for batch, _ in data) == 30


def test_what_can_no_longer_be_read_is_left_out(compressor, copy):
    options = {"compressor": compressor, "image_size": 32}
    whole = latent_folder(copy, split="all", batch_size=4, **options)
    train = latent_folder(copy, batch_size=8, **options)
    damaged, lost, *_ = train.manifest.files
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:-4])
    (copy / lost).unlink()
    with pytest.warns(UserWarning, match=f"{damaged} can no longer be read and is left out: .*damaged"):
        sizes = [len(batch) for batch, _ in whole]
    assert sum(sizes) == 28 and len(sizes) == 8
    with pytest.warns(UserWarning, match=f"{lost} can no longer be read"):
        assert [len(batch) for batch, _ in train] == [8] * 3, "others of the batch take their places"


def test_what_is_refused(written, compressor, copy, photos, tmp_path):
    keras.utils.set_random_seed(7)
    other = Compressor(quality=None, channels=(8, 12))
    for options, message in (
        ({}, "needs the `compressor`"),
        ({"compressor": other}, r"24 of the 24 files .* are of another compressor than .*; the first is bird/000"),
        ({"compressor": compressor, "image_size": 64}, "24 of the 24 .* smaller than 64 x 64 pixels.*--image-size"),
        ({"compressor": compressor, "image_size": 48}, "multiples of 32"),
        ({"compressor": compressor, "views": 2}, "`views` is for a latent cache.* Received: views=2"),
        (
            {"compressor": compressor, "temperature": 1.0},
            "`temperature` is for a latent cache.* Received: temperature=1.0",
        ),
        ({"compressor": compressor, "num_workers": 2}, "decoded by threads"),
        ({"compressor": compressor, "augment": Augmentation()}, r"augmentation\.randaugment_ops=2, augmentation\.gray"),
        ({"compressor": compressor, "augment": data_flips(0, erasing=0.1)}, r"--set augmentation\.erasing=0"),
        ({"compressor": compressor, "augment": len}, "needs pixels"),
        ({"compressor": compressor, "split": "test"}, "no image of the split test"),
    ):
        with pytest.raises(DataError, match=message):
            latent_folder(copy, **options)
    with pytest.raises(DataError, match="no latent cache, and no folder of .ci2p files"):
        latent_folder(photos, compressor=compressor)
    with pytest.raises(DataError, match="There is no folder"):
        latent_folder(tmp_path / "nowhere", compressor=compressor)
    with pytest.raises(DataError, match=r"`image_folder` needs pixels, and 24 of the 24 files.*`latent_folder`"):
        image_folder(copy, image_size=32)
    shutil.copy(photos / "cat" / "000.png", copy / "cat" / "photo.png")
    with pytest.raises(DataError, match=r"1 of the 31 files .* are no .ci2p files; the first is cat/photo.png"):
        latent_folder(copy, compressor=compressor, split="all", image_size=32)
