"""What a teacher's logits and feature maps become, against formulas in numpy."""

import keras
import numpy as np
import pytest
from scipy.special import softmax
from tiny_teacher import onnx_file

from keras_ci2p.data import ImageManifest, center_crop, open_data
from keras_ci2p.data.augmentation import target_arrays
from keras_ci2p.training.distillation import (
    FeatureProjection,
    TeacherTargets,
    load_teacher,
    resized,
    teacher_top1,
    tokens_of_map,
)

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once

to_numpy = keras.ops.convert_to_numpy
NAMES = ("bird", "cat", "dog")


def resampled(features, axis, size):
    """By area: each position as often as the result is long, then means of as many as the source is long."""
    long = np.moveaxis(np.repeat(features, size, axis), axis, -1)
    return np.moveaxis(long.reshape(*long.shape[:-1], size, features.shape[axis]).mean(-1), -1, axis)


class TestTokensOfMap:
    def test_folds_what_lies_within_a_token(self, rng):
        features = rng.normal(size=(2, 4, 9, 5)).astype("float32")
        tokens = tokens_of_map(features, (2, 3))
        assert tokens.shape == (2, 2, 3, 2 * 3 * 5) and tokens.dtype == "float32"
        for row, column in np.ndindex(2, 3):
            part = features[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(tokens[:, row, column], part.reshape(2, -1))

    @pytest.mark.parametrize(
        ("size", "grid", "between"),
        [((6, 6), (4, 4), (4, 4)), ((6, 6), (8, 8), (8, 8)), ((10, 24), (4, 4), (8, 24)), ((7, 5), (2, 4), (6, 4))],
    )
    def test_resamples_by_area_where_the_grid_does_not_divide(self, rng, size, grid, between):
        features = rng.normal(size=(2, *size, 3)).astype("float32")
        expected = features.astype("float64")
        for axis, length in enumerate(between, start=1):
            expected = resampled(expected, axis, length)
        tokens = tokens_of_map(features, grid)
        np.testing.assert_allclose(tokens, tokens_of_map(expected, grid), atol=1e-5)
        assert tokens.shape[-1] == between[0] // grid[0] * (between[1] // grid[1]) * 3
        parts = tokens.reshape(2, *grid, -1, 3)
        np.testing.assert_allclose(parts.mean((1, 2, 3)), features.mean((1, 2)), atol=1e-5)

    def test_tokens_do_not_become_too_long_for_principal_components(self):
        wide = np.random.default_rng(0).normal(size=(1, 24, 24, 1280)).astype("float32")
        tokens = tokens_of_map(wide, (4, 4))
        assert tokens.shape == (1, 4, 4, 4 * 1280)
        means = wide.reshape(1, 8, 3, 8, 3, 1280).mean((2, 4))
        np.testing.assert_allclose(tokens, tokens_of_map(means, (4, 4)), atol=1e-5)
        assert tokens_of_map(np.zeros((1, 4, 4, 9000), "float32"), (2, 2)).shape == (1, 2, 2, 9000)


class TestFeatureProjection:
    @pytest.fixture
    def maps(self, rng):
        """Two maps of correlated channels far from zero, with long tails of small components."""
        mixed = rng.normal(size=(60, 4, 4, 6)) @ (rng.normal(size=(6, 6)) * [9, 3, 1, 0.5, 0.2, 0.1]) + 40
        return [mixed.astype("float32"), rng.normal(5, 2, (60, 2, 2, 8)).astype("float32")]

    def test_principal_components_of_one_scale(self, maps):
        projection = FeatureProjection.fit(maps, (2, 2), max_components=7)
        assert projection.channels == [7, 7] and projection.grid == (2, 2)
        for i, projected in enumerate(projection(maps)):
            assert projected.shape == (60, 2, 2, 7) and projected.dtype == "float32"
            rows = projected.reshape(-1, 7)
            np.testing.assert_allclose(rows.mean(0), 0, atol=1e-3)
            covariance = rows.T @ rows / len(rows)
            np.testing.assert_allclose(np.trace(covariance) / 7, 1, rtol=1e-3)
            np.testing.assert_allclose(covariance, np.diag(projection.deviations[i] ** 2), atol=2e-3)
            tokens = tokens_of_map(maps[i], (2, 2)).reshape(240, -1).astype("float64")
            values = np.linalg.svd(tokens - tokens.mean(0), compute_uv=False) ** 2
            assert projection.explained[i] == pytest.approx(values[:7].sum() / values.sum(), abs=1e-4)
            ratio = np.sqrt(values[:7] / values[0])
            np.testing.assert_allclose(projection.deviations[i] / projection.deviations[i][0], ratio, atol=1e-3)

    def test_signs_are_the_same_everywhere(self, maps):
        projection = FeatureProjection.fit(maps, (2, 2), max_components=4)
        other = FeatureProjection.fit([features[::-1] for features in maps], (2, 2), max_components=4)
        for one, two in zip(projection.components, other.components, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-3)
            assert (one[np.abs(one).argmax(0), range(4)] > 0).all()

    def test_fewer_samples_than_numbers(self, rng):
        maps = [rng.normal(size=(3, 4, 4, 6)).astype("float32")]
        projection = FeatureProjection.fit(maps, (1, 1))
        assert projection.channels == [3]
        # Three points differ in two directions.
        assert projection.deviations[0][2] < 1e-2 and projection.explained == [pytest.approx(1, abs=1e-5)]
        (integers,) = projection.quantized(projection(maps))
        assert np.isfinite(projection(maps)[0]).all() and np.abs(integers).max() > 10

    def test_a_map_without_variance_stays_zero(self):
        maps = [np.full((5, 2, 2, 3), 0.1, "float32")]
        projection = FeatureProjection.fit(maps, (2, 2))
        np.testing.assert_array_equal(projection(maps)[0], 0)
        assert projection.explained == [0]

    def test_without_maps(self):
        projection = FeatureProjection.from_bytes(FeatureProjection.fit([], (2, 3)).to_bytes())
        assert projection.grid == (2, 3) and projection.channels == projection([]) == projection.quantized([]) == []

    def test_bytes_give_it_back(self, maps):
        projection = FeatureProjection.fit(maps, (2, 2), max_components=5)
        content = projection.to_bytes()
        again = FeatureProjection.from_bytes(content)
        assert (again.grid, again.explained) == (projection.grid, projection.explained)
        for one, two in zip(projection(maps), again(maps), strict=True):
            np.testing.assert_array_equal(one, two)
        for one, two in zip(projection.steps, again.steps, strict=True):
            np.testing.assert_array_equal(one, two)
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for damaged in (content[: len(content) // 2], b"", bytes(flipped)):
            with pytest.raises(ValueError, match="projection of the teacher's feature maps is damaged"):
                FeatureProjection.from_bytes(damaged)

    def test_integers_lose_little(self, rng):
        maps = [rng.normal(size=(500, 2, 2, 8)).astype("float32") * 10]
        projection = FeatureProjection.fit(maps, (2, 2))
        projected = projection(maps)
        (integers,), (steps,) = projection.quantized(projected), projection.steps
        assert integers.dtype == "int8"
        lost = np.square(integers * steps - projected[0]).mean((0, 1, 2))
        assert (lost < 1e-3 * projected[0].var((0, 1, 2))).all() and (lost > 0).all()
        # Five standard deviations are the end.
        (cut,) = projection.quantized([projected[0] * 100])
        assert cut.min() == -127 and cut.max() == 127
        np.testing.assert_allclose(127 * steps, 5 * projection.deviations[0], rtol=1e-5)


def test_target_arrays_do_not_overflow():
    logits = np.array([[1000, 990, 900], [-3, -3, -3]], "float32")
    arrays = target_arrays(logits, [np.ones((2, 1, 1, 1), "float32")], 10)
    np.testing.assert_allclose(arrays["teacher"], softmax(logits.astype("float64") / 10, -1), rtol=1e-5)
    assert list(arrays) == ["teacher", "features_0"]


class TestTeacherTargets:
    @pytest.fixture
    def teacher(self, tmp_path):
        metadata = {"class_names": ["bird", "cat", "dog"], "value_range": [0, 1], "name": "means"}
        path = onnx_file(tmp_path / "means.onnx", metadata=metadata, size=(48, 48))
        return load_teacher(path, nothing(), verbose=0)

    @pytest.mark.every_backend
    def test_stored_and_live_say_the_same(self, teacher, rng):
        targets = TeacherTargets(teacher)
        images = rng.integers(0, 256, (6, 48, 48, 3)).astype("uint8")
        targets.fit([images[:4], images[4:]], (2, 2))
        said = targets.describe()
        assert [row["name"] for row in said["features"]] == ["features_2"]
        assert (said["features"][0]["rows"], said["features"][0]["shape"]) == (2, [24, 24, 3])
        logits, (integers,) = targets.stored(images)
        live = targets.live(2.0)(images.astype("float32"))
        np.testing.assert_allclose(live["teacher"], softmax(logits / 2, -1), atol=1e-5)
        steps = np.array(said["features"][0]["steps"])
        assert np.abs(integers * steps - live["features_0"]).max() <= 0.51 * steps.max()
        # Images of another size are resized for it.
        halved = images[:, ::2, ::2].astype("float32")
        np.testing.assert_allclose(
            targets.live(2.0)(halved)["teacher"],
            softmax(teacher(resized(halved, (48, 48)))[0] / 2, -1),
            atol=1e-5,
        )

    def test_only_as_many_views_are_looked_at_as_needed(self, teacher, rng, monkeypatch):
        monkeypatch.setattr("keras_ci2p.training.distillation.FIT_VIEWS", 3)
        images = rng.integers(0, 256, (4, 48, 48, 3)).astype("uint8")
        batches = iter([images[:2], images[2:], images])
        targets = TeacherTargets(teacher)
        targets.fit(batches, (1, 1))
        assert len(list(batches)) == 1
        expected = FeatureProjection.fit([teacher(images[:3])[1][0]], (1, 1))
        np.testing.assert_allclose(targets.projection.means[0], expected.means[0], atol=1e-5)

    def test_top1(self, teacher, photos):
        manifest = open_data(photos).split("val")
        assert teacher_top1(teacher, manifest, batch_size=4) == 1
        wrong = load_teacher(
            onnx_file(photos / "wrong.onnx", metadata={"class_names": ["bird", "dog", "cat"], "value_range": [0, 1]}),
            nothing(),
        )
        assert teacher_top1(wrong, manifest) == pytest.approx(1 / 3)

    def test_a_teacher_with_a_name_has_its_own_range(self):
        with pytest.raises(
            ValueError, match="efficientnet-lite2 has its own range of values and feature maps.* Received: value_range="
        ):
            load_teacher("efficientnet-lite2", nothing(), value_range=(0, 1))


def nothing():
    """No photos, but their classes."""
    return ImageManifest(".", NAMES, (), (), ())


def test_resized_keeps_pixels_of_the_right_size(rng):
    images = rng.uniform(-3, 260, (2, 6, 4, 3)).astype("float32")
    same = resized(images, (6, 4))
    np.testing.assert_array_equal(same, np.clip(np.rint(images), 0, 255))
    assert same.dtype == "uint8" and resized(images, (3, 8)).shape == (2, 3, 8, 3)
    flat = resized(np.full((1, 4, 4, 3), 77, "float32"), (9, 2))
    np.testing.assert_array_equal(flat, 77)


def test_center_crop_is_what_a_teacher_is_measured_on(tmp_path, photos):
    """Of the size that it takes, not of the student's."""
    sizes = []

    class Teacher:
        image_size = (24, 40)

        def __call__(self, images):
            sizes.append(images.shape)
            np.testing.assert_array_equal(images[0], center_crop(manifest.open(0), self.image_size))
            return np.eye(3)[[0] * len(images)], []

    manifest = open_data(photos).split("val")
    assert teacher_top1(Teacher(), manifest) == pytest.approx(1 / 3)
    assert sizes == [(6, 24, 40, 3)]
