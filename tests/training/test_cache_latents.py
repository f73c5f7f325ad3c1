import importlib
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import write_photos

from keras_ci2p import CI2PViT, Compressor, utils
from keras_ci2p.data import CROP_AND_FLIP, Augmentation, DataError, scan_folder, transforms
from keras_ci2p.data.latent_cache import open_cache, read_cache, seal_cache
from keras_ci2p.data.latent_loader import LatentRecords, latent_folder
from keras_ci2p.layers import AnalysisTransform
from keras_ci2p.training.cache_latents import cache_latents
from keras_ci2p.training.latents import cached_compressor
from keras_ci2p.training.recipes import LatentCacheConfig

# The same on every backend, but for what is marked.
pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:The latents are made with a compressor of random weights"),
]


SIZE = (32, 64)
TOLERANCE = 1e-3  # Of 16-bit floats below 2.


def transform(seed=0):
    keras.utils.set_random_seed(seed)
    layer = AnalysisTransform(num_filters=8, latent_channels=12)
    layer.build((None, None, None, 3))
    # Values that rounding leaves something of.
    last = layer.stages[-1]
    last.kernel.assign(keras.ops.convert_to_numpy(last.kernel) * 20)
    return layer


def settings(**changed):
    return LatentCacheConfig(**{"views": 2, "image_size": SIZE, "batch_size": 8, "shard_records": 16, **changed})


def write(photos, out, compressor=None, resume=False, **changed):
    return cache_latents(photos, out, compressor or transform(), settings(**changed), resume=resume, verbose=0)


def everything(cache, split="train"):
    records = LatentRecords(cache, split)
    return np.stack([records[number] for number in range(len(records))])


def encode(layer, images):
    return keras.ops.convert_to_numpy(layer.encode(np.stack(images)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("caching")
    photos = write_photos(root / "photos")
    return write(photos, root / "cache")


@pytest.fixture
def cache(written):
    return open_cache(written.root)


@pytest.fixture
def photos(cache):
    return cache.split("train").root


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written.root, tmp_path / "copy")


@pytest.mark.every_backend
class TestLatents:
    def test_views_are_those_of_the_augmentation(self, cache):
        train = scan_folder(cache.split("train").root).split("train")
        latents = everything(cache)
        assert latents.shape == (48, 2, 4, 12)
        for photo in (0, 7, 23):
            views = [
                transforms.augment(train.open(photo), SIZE, np.random.default_rng((0, photo, view)), Augmentation())
                for view in range(2)
            ]
            np.testing.assert_allclose(latents[2 * photo : 2 * photo + 2], encode(transform(), views), atol=TOLERANCE)
        assert len(np.unique(latents.reshape(48, -1), axis=0)) == 48

    def test_validation_is_the_central_crop(self, cache):
        val = scan_folder(cache.split("train").root).split("val")
        images = [transforms.center_crop(val.open(photo), SIZE) for photo in range(len(val))]
        np.testing.assert_allclose(everything(cache, "val"), encode(transform(), images), atol=TOLERANCE)

    def test_rounded_is_the_rounded_latent(self, photos, tmp_path, cache):
        rounded = write(photos, tmp_path / "rounded", store="rounded")
        for split in ("train", "val"):
            integers = everything(rounded, split)
            np.testing.assert_array_equal(integers, np.rint(integers))
            assert np.abs(integers).max() >= 2
            assert np.abs(integers - everything(cache, split)).max() < 0.5 + TOLERANCE

    def test_how_it_is_cut_changes_no_view(self, photos, tmp_path, cache):
        """Batches and files of other sizes, one view more: the same views again."""
        more = write(photos, tmp_path / "more", views=3, batch_size=5, shard_records=20)
        views = everything(more).reshape(24, 3, 2, 4, 12)
        np.testing.assert_allclose(views[:, :2].reshape(48, 2, 4, 12), everything(cache), atol=TOLERANCE)

    def test_seed_and_augmentation_change_the_views(self, photos, tmp_path, cache):
        for name, changed in (("seed", {"seed": 1}), ("augmentation", {"augmentation": CROP_AND_FLIP})):
            other = write(photos, tmp_path / name, **changed)
            assert np.abs(everything(other) - everything(cache)).max() > 0.1
            np.testing.assert_array_equal(everything(other, "val"), everything(cache, "val"))


class TestDirectory:
    def test_the_manifest_says_what_was_done(self, cache, photos):
        manifest = json.loads((cache.root / "latents.json").read_text())
        assert manifest["settings"] == settings().to_dict()
        assert manifest["settings"]["augmentation"]["erasing"] == 0.25
        assert manifest["compressor"]["fingerprint"] == transform().weights_hash()
        assert manifest["compressor"]["latent_channels"] == 12
        assert manifest["data"]["sha256"] == scan_folder(photos).sha256
        assert manifest["data"]["photos"] == {
            "train": {"bird": 8, "cat": 8, "dog": 8},
            "val": {"bird": 2, "cat": 2, "dog": 2},
        }
        assert manifest["made_with"]["backend"] == keras.backend.backend()
        assert [shard["records"] for shard in cache.shards("train")] == [16, 16, 16]
        assert [shard["records"] for shard in cache.shards("val")] == [6]
        assert cache.num_bytes == sum(path.stat().st_size for path in cache.root.glob("*.arrayrecord"))
        cache.verify()

    def test_shards_become_larger_rather_than_many(self):
        plain = LatentCacheConfig(views=3, batch_size=32)
        assert plain.batch_images == 30
        assert plain.records_per_shard(1000) == 1050, "1024, rounded up to whole batches"
        assert -(-5_000_000 // plain.records_per_shard(5_000_000)) <= 256
        assert LatentCacheConfig(views=50, batch_size=32).batch_images == 50

    @pytest.mark.parametrize("kind", ["analysis", "compressor"])
    def test_the_compressor_is_in_it(self, photos, tmp_path, kind, nano):
        if kind == "compressor":
            given = Compressor("bmshj2018-factorized", quality=None, channels=(8, 12), origin={"name": "x"})
            layer = given.analysis
        else:
            given = layer = transform()
        cache = write(photos, tmp_path / "cache", given, views=1)
        found = cached_compressor(cache)
        assert type(found) is type(given) and found.origin == given.origin
        model = CI2PViT((*SIZE, 3), num_classes=3, compressor=found, **nano)
        cache.check_compressor(model.compressor)
        assert model.compressor.weights_hash() == layer.weights_hash()
        weights = cache.compressor_preset / "model.weights.h5"
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(ValueError, match="damaged"):
            cached_compressor(cache)

    def test_random_weights_are_no_compressor(self, photos, tmp_path):
        layer = AnalysisTransform(num_filters=4, latent_channels=4)
        with pytest.warns(UserWarning, match="random weights"):
            write(photos, tmp_path / "cache", layer, views=1)


def test_training_on_latents_is_training_the_model(cache, nano):
    compressor = cached_compressor(cache)
    model = CI2PViT((*SIZE, 3), num_classes=3, compressor=compressor, **nano)
    cache.check_compressor(model.compressor)
    train, val = latent_folder(cache, batch_size=8), latent_folder(cache, split="val")
    classifier = model.latent_classifier
    classifier.compile(keras.optimizers.Adam(3e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    history = classifier.fit(
        train.repeat(), steps_per_epoch=train.steps_per_epoch, epochs=4, shuffle=False, verbose=0
    ).history
    assert history["loss"][-1] < history["loss"][0]
    images = [
        transforms.center_crop(photo, SIZE)
        for photo in map(scan_folder(cache.split("val").root).split("val").open, range(6))
    ]
    np.testing.assert_allclose(
        model.predict_on_batch(np.stack(images)), classifier.predict(val, verbose=0), rtol=1e-2, atol=1e-2
    )


class TestResume:
    @pytest.mark.every_backend
    def test_only_what_is_missing_is_made(self, photos, copy, cache):
        (copy / "train-00001.arrayrecord").write_bytes(b"half of it")
        (copy / "val-00000.arrayrecord").unlink()
        (copy / "train-00002.partial-0.arrayrecord").write_bytes(b"left by a killed process")
        kept = (copy / "train-00000.arrayrecord").stat().st_mtime_ns
        again = write(photos, copy, resume=True)
        assert (copy / "train-00000.arrayrecord").stat().st_mtime_ns == kept
        assert {path.name for path in copy.iterdir()} == {path.name for path in cache.root.iterdir()}
        for split in ("train", "val"):
            np.testing.assert_allclose(everything(again, split), everything(cache, split), atol=TOLERANCE)
            if keras.backend.backend() != "tensorflow":
                assert again.shards(split) == cache.shards(split), "bit for bit"
        again.verify()

    def test_killed_before_the_manifest(self, photos, tmp_path):
        out = tmp_path / "cache"
        (out / "compressor.partial-0").mkdir(parents=True)
        (out / "compressor").mkdir()
        with pytest.raises(DataError, match="choose another directory"):
            write(photos, out)
        cache = write(photos, out, resume=True, views=1)
        assert not list(out.glob("*.partial-*")) and cache.num_records("train") == 24

    def test_a_complete_one(self, photos, cache):
        before = {path: path.stat().st_mtime_ns for path in cache.root.rglob("*")}
        write(photos, cache.root, resume=True)
        assert {path: path.stat().st_mtime_ns for path in cache.root.rglob("*")} == before

    def test_must_be_asked_for(self, photos, cache):
        with pytest.raises(DataError, match="--resume"):
            write(photos, cache.root)

    def test_a_directory_of_something_else(self, photos, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        for resume in (False, True):
            with pytest.raises(DataError, match="no latent cache"):
                write(photos, tmp_path, resume=resume)
        assert (tmp_path / "notes.txt").exists()

    def test_other_settings(self, photos, cache):
        changed = {"seed": 1, "store": "rounded", "augmentation": Augmentation(flip=0.25)}
        with pytest.raises(DataError) as raised:
            write(photos, cache.root, resume=True, **changed)
        for text in ("seed 0, now 1", "store float16, now rounded", "augmentation.flip 0.5, now 0.25"):
            assert text in str(raised.value)
        assert "views" not in str(raised.value)

    def test_another_compressor(self, photos, cache):
        other = transform(seed=1)
        with pytest.raises(DataError, match=f"compressor {cache.fingerprint}, now {other.weights_hash()}"):
            write(photos, cache.root, other, resume=True)

    def test_other_photos(self, cache, tmp_path):
        photos = shutil.copytree(cache.split("train").root, tmp_path / "photos")
        train = scan_folder(photos).split("train")
        (photos / train.files[0]).rename(photos / "bird" / "zzz.png")
        with pytest.raises(DataError, match="train photos are in another order"):
            write(photos, cache.root, resume=True)
        (photos / "bird" / "zzz.png").unlink()
        with pytest.raises(DataError, match="photos with SHA-256"):
            write(photos, cache.root, resume=True)

    def test_another_backend(self, photos, copy):
        manifest = json.loads((copy / "latents.json").read_text())
        manifest["made_with"]["backend"] = "another"
        utils.write_json(copy / "latents.json", manifest)
        with pytest.warns(UserWarning, match="begun on another and goes on with"):
            write(photos, copy, resume=True)


def same_files(one, other):
    """Whether two directories hold the same names, and bytes but on TensorFlow, whose rounding is not the same."""
    files, others = ({path.relative_to(root): path for path in root.rglob("*")} for root in (one, other))
    assert files.keys() == others.keys()
    if keras.backend.backend() != "tensorflow":
        for name, path in files.items():
            # In the compressor's stand names that Keras counts up within a process.
            if path.is_file() and name.parts[0] != "compressor":
                assert path.read_bytes() == others[name].read_bytes(), name


class TestParts:
    """A cache of 4 files: part 1 of 3 makes two of them."""

    @pytest.fixture
    def part(self, photos, tmp_path):
        def make(number, of=3, **changed):
            return cache_latents(
                photos, tmp_path / "parts", transform(), settings(**changed), verbose=0, part=(number, of)
            )

        return make

    def test_are_in_the_end_what_one_process_makes(self, part, cache, tmp_path):
        out = tmp_path / "parts"
        assert [str(share) for share in part(1).missing_shares()] == ["2/3", "3/3"]
        assert sorted(path.name for path in out.glob("*.arrayrecord")) == [
            "train-00000.arrayrecord",
            "val-00000.arrayrecord",
        ]
        with pytest.raises(DataError, match="2 of 4 files"):
            open_cache(out)
        assert [str(share) for share in part(3).missing_shares()] == ["2/3"]
        with pytest.raises(DataError, match="not all is there that --part 2/3 makes"):
            seal_cache(out)
        complete = part(2)
        assert complete.num_records("train") == 48 and not complete.missing_shares()
        same_files(out, cache.root)
        # Once more after that, and a check that finds nothing to do.
        part(2)
        seal_cache(out)
        same_files(out, cache.root)

    def test_one_that_was_killed_is_made_again(self, part, cache, tmp_path, monkeypatch):
        out, module = tmp_path / "parts", importlib.import_module("keras_ci2p.training.cache_latents")
        written = []

        def write_one(cache, shard, *arguments):
            if written:
                raise KeyboardInterrupt
            written.append(shard["file"])
            write_shard(cache, shard, *arguments)

        write_shard = module._write_shard
        monkeypatch.setattr(module, "_write_shard", write_one)
        with pytest.raises(KeyboardInterrupt):
            part(1)
        monkeypatch.undo()
        part(2)
        assert [str(share) for share in part(3).missing_shares()] == ["1/3"]
        kept = (out / written[0]).stat().st_mtime_ns
        part(1)
        assert (out / written[0]).stat().st_mtime_ns == kept
        same_files(out, cache.root)

    def test_others_wait_for_the_first(self, part, cache, tmp_path, monkeypatch):
        module, waits = importlib.import_module("keras_ci2p.training.cache_latents"), []

        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 2:
                part(1, of=2)

        monkeypatch.setattr(module.time, "sleep", sleep)
        part(2, of=2)
        assert len(waits) == 2
        same_files(tmp_path / "parts", cache.root)

    def test_one_process_may_make_the_rest(self, part, photos, cache, tmp_path):
        part(1)
        write(photos, tmp_path / "parts", resume=True)
        same_files(tmp_path / "parts", cache.root)

    def test_more_parts_than_files(self, part, cache, tmp_path):
        for number in (1, 5, 6, 2, 4, 3):
            part(number, of=6)
        same_files(tmp_path / "parts", cache.root)

    def test_damaged_file_is_not_sealed(self, part, tmp_path):
        part(1)
        part(2)
        path = tmp_path / "parts" / "train-00000.arrayrecord"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(DataError, match="1 of 4 files .* are damaged.*: train-00000.arrayrecord"):
            part(3)
        path.unlink()
        part(1)
        assert read_cache(path.parent).verify() == 4 and not list(path.parent.glob("part-*"))

    def test_of_other_settings(self, part):
        part(1)
        with pytest.raises(DataError, match="seed 0, now 1"):
            part(2, seed=1)
        with pytest.raises(ValueError, match=r"Received: part=\(4, 3\)"):
            part(4)

    def test_add_views(self, photos, copy, cache, tmp_path):
        def add(out, part=None):
            return cache_latents(photos, out, None, verbose=0, more_views=2, part=part)

        one = shutil.copytree(copy, tmp_path / "one")
        add(one)
        assert add(copy, (1, 2)).views("train") == 2
        for number in (2, 1):
            assert add(copy, (number, 2)).views("train") == 4
        assert seal_cache(copy).views("train") == 4
        same_files(copy, one)
        # The next views are new ones.
        assert [len(add(copy, (1, 2)).later_parts())] == [2]


class TestFailures:
    def test_no_space(self, photos, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(utils.DiskFullError, match=r"cache, for 54 latents, needs 0\.\d+ MB, and 0\.001 MB"):
            write(photos, tmp_path / "cache")
        assert not (tmp_path / "cache").exists()

    def test_a_photo_that_vanishes(self, photos, tmp_path):
        manifest = scan_folder(shutil.copytree(photos, tmp_path / "photos"))
        gone = manifest.split("train").files[20]
        (tmp_path / "photos" / gone).unlink()
        with pytest.raises(DataError, match=f"{gone} can no longer be read"):
            write(manifest, tmp_path / "cache")
        with pytest.raises(DataError, match="2 of 4 files"):
            open_cache(tmp_path / "cache")

    def test_latents_that_are_not_finite(self, photos, tmp_path):
        layer = transform()
        layer.stages[-1].bias.assign(np.full(12, np.nan, "float32"))
        with pytest.raises(ValueError, match="stored as float16"):
            write(photos, tmp_path / "cache", layer)
        assert not list(tmp_path.glob("cache/*arrayrecord"))

    @pytest.mark.parametrize(
        "wrong",
        [{"views": 0}, {"image_size": 48}, {"store": "jpeg"}, {"seed": -1}, {"batch_size": 0}, {"shard_records": 0}],
    )
    def test_settings(self, wrong):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be"):
            settings(**wrong)
