import json
import pickle
import shutil

import keras
import numpy as np
import pytest
from conftest import write_photos

from keras_ci2p import utils
from keras_ci2p.data import DataError, scan_folder
from keras_ci2p.data.latent_cache import IMAGES_FILE, MANIFEST, decode, encode, is_latent_cache, open_cache, record_file
from keras_ci2p.data.latent_cache import write_images as write
from keras_ci2p.data.latent_loader import LatentRecords, latent_folder
from keras_ci2p.layers import AnalysisTransform

pytestmark = pytest.mark.once

VIEWS = 3
SHAPE = (8, 6, 5)


def value(photo, view):
    return 10 * photo + view


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A cache of 24 training and 6 validation photos, whose latents hold `value(photo, view)` everywhere."""
    root = tmp_path_factory.mktemp("latents") / "cache"
    photos = scan_folder(write_photos(root.parent / "photos"))
    splits = {split: photos.split(split) for split in ("train", "val")}
    root.mkdir()
    write(root / IMAGES_FILE, splits)
    shards = {}
    for split, views, step in (("train", VIEWS, 30), ("val", 1, 30)):
        values = [value(photo, view) for photo in range(len(splits[split])) for view in range(views)]
        latents = np.ones((1, *SHAPE), "float32") * np.reshape(np.array(values, "float32"), (-1, 1, 1, 1))
        shards[split] = []
        for first in range(0, len(values), step):
            path = root / f"{split}-{first // step:05d}.arrayrecord"
            with record_file(path, "float16") as append:
                append(latents[first : first + step])
            shards[split].append(
                {
                    "file": path.name,
                    "records": len(latents[first : first + step]),
                    "bytes": path.stat().st_size,
                    "sha256": utils.file_sha256(path),
                }
            )
    manifest = {
        "format_version": 1,
        "settings": {"views": VIEWS, "image_size": [64, 32], "store": "float16"},
        "latent_shape": SHAPE,
        "compressor": {"fingerprint": "0" * 64},
        "data": {
            "root": str(photos.root),
            "sha256": photos.sha256,
            "class_names": photos.class_names,
            "photos_sha256": utils.file_sha256(root / IMAGES_FILE),
        },
        "shards": shards,
    }
    utils.write_json(root / MANIFEST, manifest)
    return root


@pytest.fixture
def cache(written):
    return open_cache(written)


@pytest.fixture
def copy(written, tmp_path):
    """A cache to be damaged."""
    return shutil.copytree(written, tmp_path / "copy")


def folder(cache, **options):
    return latent_folder(cache, **{"batch_size": 8, **options})


def collect(dataset):
    latents, labels = zip(*dataset, strict=True)
    return np.concatenate(latents), np.concatenate(labels)


def drawn(dataset):
    """The `value`s of one epoch, in its order; of each latent all entries are the same."""
    latents, _ = collect(dataset)
    assert latents.shape[1:] == SHAPE
    assert (latents == latents[:, :1, :1, :1]).all()
    return latents[:, 0, 0, 0].astype(int)


class TestStorage:
    def test_float16(self, rng):
        latents = rng.normal(size=(2, *SHAPE)).astype("float32") * 10
        records = encode(latents, "float16")
        assert [len(record) for record in records] == [480, 480]
        read = np.stack([decode(record, SHAPE, "float16") for record in records])
        assert read.dtype == "float32" and read.flags.c_contiguous
        np.testing.assert_array_equal(read, latents.astype("float16"))

    def test_rounded(self, rng):
        latents = rng.normal(size=(3, *SHAPE)).astype("float32") * 10
        latents[1, 0, 0, 0], latents[2, 0, 0, 0] = 127.6, -128.4
        records = encode(latents, "rounded")
        assert [len(record) for record in records] == [240, 480, 240], "two bytes for what does not fit into one"
        read = np.stack([decode(record, SHAPE, "rounded") for record in records])
        np.testing.assert_array_equal(read, np.rint(latents))

    @pytest.mark.parametrize(("store", "bad"), [("float16", 7e4), ("rounded", 4e4), ("rounded", np.nan)])
    def test_what_does_not_fit(self, store, bad):
        latents = np.zeros((1, *SHAPE), "float32")
        latents[0, 1, 1, 1] = bad
        with pytest.raises(ValueError, match=f"stored as {store}"):
            encode(latents, store)

    def test_a_file_that_cannot_be_written(self, tmp_path):
        with (
            pytest.raises(OSError, match="cannot be written"),
            record_file(tmp_path / "absent" / "file", "float16") as append,
        ):
            append(np.zeros((1, *SHAPE), "float32"))


class TestDataset:
    def test_batches(self, cache):
        dataset = folder(cache)
        assert dataset.steps_per_epoch == 3 and dataset.class_names == ("bird", "cat", "dog")
        assert len(dataset.manifest) == 24 and dataset.manifest.hashes == cache.split("train").hashes
        for latents, labels in dataset:
            assert latents.shape == (8, *SHAPE) and latents.dtype == "float32"
            assert labels.shape == (8, 3) and labels.dtype == "float32"
            # Eight training photos of each class, sorted by class.
            np.testing.assert_array_equal(labels.argmax(1), latents[:, 0, 0, 0] // 10 // 8)
            np.testing.assert_array_equal(labels.sum(1), 1)

    def test_each_view_once_in_as_many_epochs(self, cache):
        dataset = folder(cache)
        epochs = [drawn(dataset) for _ in range(VIEWS)]
        for epoch in epochs:
            assert sorted(epoch // 10) == list(range(24)), "each photo once"
            assert len(set(epoch % 10)) == VIEWS, "not the same view of all photos"
        everything = [value(photo, view) for photo in range(24) for view in range(VIEWS)]
        assert sorted(np.concatenate(epochs)) == everything
        assert len({tuple(epoch // 10) for epoch in epochs}) == VIEWS, "each epoch has another order"

    def test_some_of_the_views(self, cache):
        dataset = folder(cache, views=2)
        epochs = np.concatenate([drawn(dataset), drawn(dataset)])
        assert sorted(epochs) == [value(photo, view) for photo in range(24) for view in range(2)]

    def test_the_same_for_the_same_seed(self, cache):
        first, again, other = (drawn(folder(cache, seed=seed)).tolist() for seed in (1, 1, 2))
        assert first == again != other

    def test_validation_is_whole_and_in_order(self, cache):
        dataset = folder(cache, split="val", batch_size=4, mixup=0.8)
        assert dataset.steps_per_epoch == 2
        for _ in range(2):
            latents, labels = collect(dataset)
            np.testing.assert_array_equal(latents[:, 0, 0, 0], [0, 10, 20, 30, 40, 50])
            np.testing.assert_array_equal(labels.argmax(1), [0, 0, 1, 1, 2, 2])

    def test_repeated_begins_at_any_epoch(self, cache):
        dataset = folder(cache, num_threads=2)
        epochs = [drawn(dataset).tolist() for _ in range(3)]
        batches = iter(dataset.repeat(initial_epoch=1))
        for epoch in epochs[1:]:
            assert drawn([next(batches) for _ in range(3)]).tolist() == epoch

    def test_shards_share_out_each_batch(self, cache):
        whole = folder(cache)
        parts = [folder(cache, shard=(index, 2)) for index in range(2)]
        for batch, *halves in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(batch[0][0::2], halves[0][0])
            np.testing.assert_array_equal(batch[0][1::2], halves[1][0])

    @pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}])
    def test_mixing(self, cache, alphas):
        """Latents and labels of a batch are mixed alike."""
        plain, mixed = folder(cache, batch_size=24), folder(cache, batch_size=24, **alphas)
        softest = 1
        for epoch in range(6):
            ((own, own_labels),), ((latents, labels),) = plain.one_epoch(epoch), mixed.one_epoch(epoch)
            np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-5)
            # Everyone is once own and once partner.
            np.testing.assert_allclose(latents.mean(), own.mean(), rtol=1e-5)
            np.testing.assert_allclose(labels.mean(0), own_labels.mean(0), rtol=1e-5)
            kept = np.mean(latents == own, axis=(1, 2, 3))
            assert ((labels * own_labels).sum(1) > kept - 1e-5).all()
            softest = min(softest, kept.min())
        assert softest < 0.7

    def test_other_processes_can_load(self, cache):
        pickled = pickle.dumps(folder(cache).one_epoch(0))
        assert cache.split("train").hashes[0].encode() not in pickled, "without the list of photos"
        assert drawn(pickle.loads(pickled)).tolist() == drawn(folder(cache)).tolist()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split": "test"}, "train, val"),
            ({"batch_size": 0}, "batch_size"),
            ({"views": 4}, r"1\.\.3"),
            ({"views": 0}, r"1\.\.3"),
        ],
    )
    def test_bad_arguments(self, cache, options, message):
        with pytest.raises(DataError, match=message):
            folder(cache, **options)


class TestRefusals:
    def change(self, root, edit):
        manifest = json.loads((root / MANIFEST).read_text())
        edit(manifest)
        utils.write_json(root / MANIFEST, manifest)

    def test_no_cache(self, tmp_path):
        assert not is_latent_cache(tmp_path)
        with pytest.raises(DataError, match="no latent cache"):
            latent_folder(tmp_path)

    def test_unfinished(self, copy):
        self.change(copy, lambda manifest: [manifest["shards"]["train"][2].pop(key) for key in ("bytes", "sha256")])
        with pytest.raises(DataError, match=r"1 of 4 files .* train-00002\.arrayrecord.*--resume"):
            open_cache(copy)

    def test_missing_and_truncated_files(self, copy):
        (copy / "val-00000.arrayrecord").unlink()
        path = copy / "train-00001.arrayrecord"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataError, match=r"2 of 4 files .* train-00001\.arrayrecord"):
            open_cache(copy)

    def test_a_flipped_bit(self, copy):
        path = copy / "train-00000.arrayrecord"
        content = bytearray(path.read_bytes())
        content[200] ^= 4
        path.write_bytes(content)
        cache = open_cache(copy)
        with pytest.raises(DataError, match=r"1 of \d+ files .* damaged.*: train-00000\.arrayrecord\."):
            cache.verify()
        records = LatentRecords(cache, "train")
        with pytest.raises(DataError, match="damaged at record"):
            [records[number] for number in range(len(records))]

    def test_files_that_are_gone(self, copy):
        cache = open_cache(copy)
        for path in copy.glob("*.arrayrecord"):
            path.unlink()
        with pytest.raises(DataError, match=r"4 of 4 files .*: train-00000\.arrayrecord, .*, val-00000\.arrayrecord\."):
            cache.verify()

    def test_an_undamaged_one(self, cache):
        assert cache.verify() == len(cache.files()) > 0

    def test_other_format(self, copy):
        self.change(copy, lambda manifest: manifest.update(format_version=2))
        with pytest.raises(DataError, match="cache format 2"):
            open_cache(copy)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 1}'])
    def test_damaged_manifest(self, copy, content):
        (copy / MANIFEST).write_text(content)
        with pytest.raises(DataError, match="is damaged"):
            open_cache(copy)

    def test_damaged_photos(self, copy):
        (copy / IMAGES_FILE).write_bytes(b"damaged")
        with pytest.raises(DataError, match=r"photos\.npz is damaged"):
            open_cache(copy)


def test_the_photos_are_those_of_the_folder(cache):
    photos = scan_folder(cache.split("train").root)
    assert cache.sha256 == photos.sha256 and cache.counts() == photos.counts()
    for split in ("train", "val"):
        assert cache.split(split) == photos.split(split)


def filled(seed=0, **config):
    transform = AnalysisTransform(num_filters=4, latent_channels=6, **config)
    transform.build((None, None, None, 3))
    rng = np.random.default_rng(seed)
    transform.set_weights([rng.normal(size=weight.shape).astype("float32") for weight in transform.weights])
    return transform


def test_fingerprint():
    # Found once; the same on every backend and for every dtype of the computation.
    expected = "3b36b38f3005105dc2ec1a1c4f88256579f4714af755ddd43051bfdf569951e1"
    assert filled().weights_hash() == expected
    assert filled(dtype="mixed_float16", name="other", origin={"name": "x"}).weights_hash() == expected
    assert filled(seed=1).weights_hash() != expected
    changed = filled()
    kernel = changed.weights[0]
    kernel.assign(keras.ops.convert_to_numpy(kernel) * (1 + 1e-6))
    assert changed.weights_hash() != expected
    with pytest.raises(ValueError, match="build it"):
        AnalysisTransform().weights_hash()


def test_another_compressor_is_refused(cache):
    transform = filled()
    with pytest.raises(DataError, match=f"(?s){'0' * 64}.*{transform.weights_hash()}"):
        cache.check_compressor(transform)
    cache.manifest["compressor"]["fingerprint"] = transform.weights_hash()
    cache.check_compressor(transform)
