"""A teacher's targets beside stored latents."""

import importlib
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import write_photos
from test_cache_latents import everything, same_files, settings, transform
from tiny_teacher import onnx_file

from keras_ci2p import utils
from keras_ci2p.data import DataError, latent_folder, transforms
from keras_ci2p.data.augmentation import sample_params, target_arrays
from keras_ci2p.data.latent_cache import decode_targets, encode_targets, open_cache
from keras_ci2p.data.latent_loader import TargetRecords
from keras_ci2p.training import distillation as teacher_targets
from keras_ci2p.training.cache_latents import cache_latents
from keras_ci2p.training.distillation import FeatureProjection, TeacherTargets
from keras_ci2p.training.teacher import open_teacher

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:The latents are made with a compressor of random weights"),
]


NAMES = ("bird", "cat", "dog")
SIZE = (32, 64)  # Of the latents' views; the teacher looks at 48 x 48.
IS_EXACT = keras.backend.backend() != "tensorflow"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos, a teacher's file, and a cache made with it."""
    root = tmp_path_factory.mktemp("targets")
    write_photos(root / "photos")
    metadata = {"class_names": list(NAMES), "value_range": [0, 1], "name": "means", "license": "MIT"}
    onnx_file(root / "means.onnx", metadata=metadata, size=(48, 48))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherTargets, "fit", fit_nothing)
        write(root, root / "cache")
    return root


def fit_nothing(self, batches, grid):
    """A projection that does not depend on which views were looked at."""
    pixels = np.random.default_rng(0).uniform(0, 1, (50, 24, 24, 3)).astype("float32")
    assert next(iter(batches)).shape[1:] == (48, 48, 3)
    self.projection = FeatureProjection.fit([pixels], grid, max_components=6)


def means(place, **options):
    return open_teacher(place / "means.onnx", NAMES, **options)


def write(place, out, teacher="means", resume=False, more_views=None, **changed):
    teacher = means(place) if teacher == "means" else teacher
    compressor, chosen = (None, None) if more_views else (transform(), settings(**changed))
    return cache_latents(
        place / "photos", out, compressor, chosen, resume, verbose=0, teacher=teacher, more_views=more_views
    )


def all_targets(cache):
    records = TargetRecords(cache)
    logits, features = zip(*(records[number] for number in range(len(records))), strict=True)
    return np.stack(logits), [np.stack(maps) for maps in zip(*features, strict=True)]


@pytest.fixture
def cache(place):
    return open_cache(place / "cache")


@pytest.fixture
def copy(place, tmp_path):
    return shutil.copytree(place / "cache", tmp_path / "copy")


@pytest.fixture
def stopped(monkeypatch):
    """Function that lets the writing of shards fail after so many."""
    caching = importlib.import_module("keras_ci2p.training.cache_latents")

    written = caching._write_shard

    def after(count):
        left = [count]

        def write_shard(*args):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            written(*args)

        monkeypatch.setattr(caching, "_write_shard", write_shard)

    yield after


def stop(after, count, monkeypatch, *args, **kwargs):
    after(count)
    with pytest.raises(KeyboardInterrupt):
        write(*args, **kwargs)
    monkeypatch.undo()


class TestTargets:
    def test_latents_are_those_without_a_teacher(self, place, tmp_path, cache):
        alone = write(place, tmp_path / "cache", teacher=None)
        assert alone.teacher is None and not (alone.root / "teacher.npz").exists()
        for split in ("train", "val"):
            if IS_EXACT:
                assert [s["sha256"] for s in alone.shards(split)] == [s["sha256"] for s in cache.shards(split)]
            np.testing.assert_allclose(everything(alone, split), everything(cache, split), atol=1e-3)
        with pytest.raises(DataError, match="holds no targets of a teacher. Make a new one"):
            latent_folder(alone, temperature=1.0)

    def test_are_what_the_teacher_says_of_these_views(self, place, cache):
        train, teacher = cache.split("train"), means(place)
        logits, (features,) = all_targets(cache)
        assert logits.shape == (48, 3) and features.shape == (48, 1, 2, 6) and features.dtype == "float32"
        projection = FeatureProjection.from_bytes((cache.root / "teacher.npz").read_bytes())
        (steps,) = projection.steps
        for photo in (0, 7, 23):
            views = []
            for view in range(2):
                rng, image = np.random.default_rng((0, photo, view)), train.open(photo)
                drawn = sample_params(settings().augmentation, (image.height, image.width), SIZE, rng)
                # As the student's view is made, which takes its own noise first.
                transforms.apply_params(image, drawn, SIZE, rng)
                views.append(transforms.apply_params(image, drawn.scaled(SIZE, (48, 48)), (48, 48), rng))
            said, maps = teacher(np.stack(views))
            numbers = slice(2 * photo, 2 * photo + 2)
            np.testing.assert_allclose(logits[numbers], said, atol=0.01)
            (projected,) = projection(maps)
            clipped = np.clip(projected, -127 * steps, 127 * steps)
            # Half a step, and what bfloat16 leaves of the teacher's numbers.
            np.testing.assert_allclose(features[numbers], clipped, atol=0.6 * steps.max() + 0.05)
        assert len(np.unique(logits, axis=0)) == 48

    def test_the_manifest_describes_the_teacher(self, cache, place):
        said = json.loads((cache.root / "latents.json").read_text())["teacher"]
        assert (said["name"], said["license"], said["image_size"]) == ("means", "MIT", [48, 48])
        assert said["sha256"] == utils.file_sha256(place / "means.onnx") and said["val_top1"] == 1
        (row,) = said["features"]
        assert {key: row[key] for key in ("name", "rows", "columns", "channels")} == {
            "name": "features_2",
            "rows": 1,
            "columns": 2,
            "channels": 6,
        }
        assert 0 < row["explained"] < 1 and len(row["steps"]) == 6
        assert all("targets" not in shard for shard in cache.shards("val"))
        assert cache.num_bytes == sum(path.stat().st_size for path in cache.root.glob("*.arrayrecord"))
        assert len(list(cache.root.glob("train-*.targets.arrayrecord"))) == 3
        cache.verify()

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_batches(self, cache, num_workers):
        logits, (features,) = all_targets(cache)
        of_latent = {row.tobytes(): number for number, row in enumerate(everything(cache))}
        options = {"batch_size": 8, "temperature": 2.0, "num_workers": num_workers}
        count = 0
        for latents, labels in latent_folder(cache, **options):
            numbers = [of_latent[latent.tobytes()] for latent in latents]
            expected = target_arrays(logits[numbers], [features[numbers]], 2.0)
            for name, array in expected.items():
                np.testing.assert_array_equal(labels[name], array)
            photos = np.array(numbers) // 2
            assert (labels["labels"].argmax(-1) == np.array(cache.split("train").labels)[photos]).all()
            count += len(latents)
        assert count == 24
        (_, validation), *_ = latent_folder(cache, split="val", temperature=2.0)
        assert validation.shape == (6, 3)
        (_, alone), *_ = latent_folder(cache, batch_size=8)
        assert alone.shape == (8, 3)

    def test_without_feature_maps(self, place, tmp_path):
        cache = write(place, tmp_path / "cache", teacher=means(place, features=[]))
        assert cache.teacher["features"] == []
        logits, features = all_targets(cache)
        assert logits.shape == (48, 3) and features == []
        _, labels = next(iter(latent_folder(cache, batch_size=8, temperature=1.0)))
        assert set(labels) == {"labels", "teacher"}

    def test_parts_take_the_projection_of_the_first(self, place, tmp_path, cache, monkeypatch):
        fits = []

        def fit(self, batches, grid):
            fits.append(grid)
            fit_nothing(self, batches, grid)

        monkeypatch.setattr(TeacherTargets, "fit", fit)
        out, teacher = tmp_path / "parts", means(place)
        for number in (1, 3, 2):
            cache_latents(place / "photos", out, transform(), settings(), verbose=0, teacher=teacher, part=(number, 3))
        assert len(fits) == 1
        same_files(out, cache.root)

    def test_projection_is_fitted_on_views_of_photos_from_everywhere(self, place, tmp_path, monkeypatch):
        """24 photos of three classes in order; of each that is looked at all views."""
        monkeypatch.setattr(importlib.import_module("keras_ci2p.training.cache_latents"), "FIT_VIEWS", 6)
        monkeypatch.setattr(teacher_targets, "FIT_VIEWS", 6)
        seen, fit = [], FeatureProjection.fit.__func__

        def watched(cls, maps, grid):
            seen.append((maps[0], grid))
            return fit(cls, maps, grid)

        monkeypatch.setattr(FeatureProjection, "fit", classmethod(watched))
        cache = write(place, tmp_path / "cache")
        ((maps, grid),) = seen
        assert grid == [1, 2] and maps.shape == (6, 24, 24, 3)
        assert cache.teacher["features"][0]["explained"] == pytest.approx(1, abs=1e-3), "six views, twelve tokens"
        logits, _ = all_targets(cache)
        # Photos 0, 12 (of 0..23: 11.5, rounded to even) and 23.
        np.testing.assert_allclose(maps.mean((1, 2)), logits.reshape(24, 2, 3)[[0, 12, 23]].reshape(6, 3), atol=0.05)


class TestResume:
    def test_after_an_interruption(self, place, tmp_path, cache, stopped, monkeypatch):
        monkeypatch.setattr(TeacherTargets, "fit", fit_nothing)
        out = tmp_path / "cache"
        stop(stopped, 1, monkeypatch, place, out)
        with pytest.raises(DataError, match="3 of 4 files are missing"):
            open_cache(out)
        # The projection is the one that it was begun with.
        monkeypatch.setattr(TeacherTargets, "fit", None)
        (out / "train-00000.targets.arrayrecord").unlink()
        again = write(place, out, resume=True)
        assert {path.name for path in out.iterdir()} == {path.name for path in cache.root.iterdir()}
        for one, two in zip(again.shards("train"), cache.shards("train"), strict=True):
            assert one["targets"] == two["targets"], "bit for bit"
        again.verify()

    def test_another_teacher(self, place, copy, tmp_path):
        def refused(teacher, text):
            for more in ({"resume": True}, {"more_views": 1}):
                with pytest.raises(DataError, match=text):
                    write(place, copy, teacher, **more)

        other = onnx_file(tmp_path / "other.onnx", metadata={"class_names": list(NAMES), "value_range": [0, 1]})
        refused(open_teacher(other, NAMES), f"teacher .*, now {utils.file_sha256(other)}")
        refused(None, "teacher .*, now None")
        refused(means(place, value_range=(-1, 1)), r"teacher's value_range \[0.*, 1.*\], now \[-1.*, 1.*\]")
        refused(means(place, features=[]), r"teacher's features \['features_2'\], now \[\]")
        any_size = onnx_file(
            tmp_path / "any.onnx",
            metadata={"class_names": list(NAMES), "value_range": [0, 1]},
            size=("rows", "columns"),
        )
        out = tmp_path / "any"
        write(place, out, open_teacher(any_size, NAMES, 32), views=1)
        with pytest.raises(DataError, match=r"teacher's image_size \[32, 32\], now \[48, 48\]"):
            write(place, out, open_teacher(any_size, NAMES, 48), views=1, resume=True)

    def test_a_teacher_too_late(self, place, tmp_path):
        write(place, tmp_path / "cache", teacher=None)
        with pytest.raises(DataError, match="teacher None, now "):
            write(place, tmp_path / "cache", resume=True)

    def test_a_damaged_projection(self, place, copy):
        content = (copy / "teacher.npz").read_bytes()
        (copy / "teacher.npz").write_bytes(content[:-40])
        with pytest.raises(ValueError, match="feature maps is damaged"):
            write(place, copy, more_views=1)

    def test_damaged_targets(self, place, copy):
        path = copy / "train-00001.targets.arrayrecord"
        content = bytearray(path.read_bytes())
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match="1 of 4 files are missing or damaged, first train-00001.arrayrecord"):
            open_cache(copy)
        for place_of_damage in range(1000, len(content), 4000):
            content[place_of_damage] ^= 255
        path.write_bytes(content)
        damaged = open_cache(copy)
        with pytest.raises(
            DataError, match=r"1 of \d+ files .*damaged, their SHA-256.*: train-00001.targets.arrayrecord\."
        ):
            damaged.verify()
        with pytest.raises(DataError, match="is damaged at record"):
            all_targets(damaged)
        path.unlink()
        write(place, copy, resume=True).verify()


class TestMoreViews:
    @pytest.fixture(scope="class")
    def four(self, place, tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TeacherTargets, "fit", fit_nothing)
            return write(place, tmp_path_factory.mktemp("four") / "cache", views=4)

    def check_same(self, cache, four):
        assert cache.views("train") == four.views("train") == 4
        np.testing.assert_allclose(everything(cache), everything(four), atol=0 if IS_EXACT else 1e-3)
        for one, two in zip(*(keras.tree.flatten(all_targets(c)) for c in (cache, four)), strict=True):
            np.testing.assert_array_equal(one, two)

    def test_two_and_two_are_four(self, place, copy, four):
        before = {path.name: path.stat().st_mtime_ns for path in copy.glob("*record")}
        cache = write(place, copy, more_views=2)
        self.check_same(cache, four)
        assert [part[:2] for part in cache.parts("train")] == [(0, 2), (2, 2)] and len(cache.parts("val")) == 1
        assert before == {name: (copy / name).stat().st_mtime_ns for name in before}
        cache.verify()

    def test_each_epoch_takes_another_view_of_them(self, place, copy):
        cache = write(place, copy, more_views=1)
        of_latent = {row.tobytes(): divmod(number, 3) for number, row in enumerate(everything(cache))}
        data = latent_folder(cache, batch_size=8, temperature=1.0)
        seen = [of_latent[latent.tobytes()] for _ in range(3) for latents, _ in data for latent in latents]
        assert sorted(seen) == [(photo, view) for photo in range(24) for view in range(3)]
        fewer = latent_folder(cache, batch_size=8, views=2)
        assert {of_latent[x.tobytes()][1] for _ in range(2) for latents, _ in fewer for x in latents} == {0, 1}

    def test_interrupted(self, place, copy, four, stopped, monkeypatch):
        stop(stopped, 2, monkeypatch, place, copy, more_views=2)
        (copy / "train-more1-00002.partial-0.arrayrecord").write_bytes(b"left by a killed process")
        unfinished = open_cache(copy)
        assert unfinished.views("train") == 2 and unfinished.num_records("train") == 48
        assert len(everything(unfinished)) == len(all_targets(unfinished)[0]) == 48
        unfinished.verify()
        for other in (1, 3):
            with pytest.raises(DataError, match=f"2 further views that are not finished.*more_views={other}"):
                write(place, copy, more_views=other)
        kept = (copy / "train-more1-00001.targets.arrayrecord").stat().st_mtime_ns
        cache = write(place, copy, more_views=2)
        assert (copy / "train-more1-00001.targets.arrayrecord").stat().st_mtime_ns == kept
        assert not list(copy.glob("*.partial-*"))
        self.check_same(cache, four)
        # A whole part is followed by a new one.
        again = write(place, copy, more_views=2)
        assert again.views("train") == 6 and [part.first_view for part in again.parts("train")] == [0, 2, 4]
        (copy / "train-more1-00000.arrayrecord").unlink()
        assert [part.first_view for part in open_cache(copy).parts("train")] == [0, 4]

    def test_needs_a_whole_cache(self, place, copy, tmp_path):
        with pytest.raises(DataError, match="is no latent cache"):
            write(place, tmp_path / "nothing", more_views=1)
        (copy / "val-00000.arrayrecord").unlink()
        with pytest.raises(DataError, match="is not complete"):
            write(place, copy, more_views=1)
        with pytest.raises(ValueError, match="views must be at least 1. Received: 0"):
            cache_latents(place / "photos", place / "cache", None, more_views=0, teacher=means(place), verbose=0)


class TestRecords:
    def test_bytes_give_them_back(self, rng):
        logits = np.array([[1.5, -70000, 70000], [0, 1e-3, -2]], "float32")
        features = [rng.integers(-127, 128, (2, *shape)).astype("int8") for shape in ((1, 2, 3), (2, 2, 4))]
        records = encode_targets(logits, features)
        assert [len(record) for record in records] == [6 + 6 + 16] * 2
        for i, record in enumerate(records):
            found, maps = decode_targets(record, 3, [(1, 2, 3), (2, 2, 4)])
            np.testing.assert_allclose(found, np.clip(logits[i], -65504, 65504), rtol=1e-3)
            for one, two in zip(maps, features, strict=True):
                np.testing.assert_array_equal(one, two[i])
        with pytest.raises(ValueError, match="27 bytes are expected, 28 found"):
            decode_targets(records[0], 3, [(1, 2, 3), (1, 3, 5)])

    def test_must_be_finite(self):
        for wrong in (np.nan, np.inf):
            with pytest.raises(ValueError, match="logits must be finite"):
                encode_targets(np.array([[0, wrong]], "float32"), [])
