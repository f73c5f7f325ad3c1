import numpy as np
import pytest
from scipy import stats

from keras_ci2p.data import DataError, image_folder
from keras_ci2p.data.augmentation import MixParams, mix, sample_mix

IMAGES = np.stack([np.full((4, 6, 2), value, "float32") for value in (0, 100, 200)])
LABELS = np.eye(3, dtype="float32")
PARTNER = np.array([1, 2, 0], "int32")


def test_mixup_by_hand():
    images, labels = mix(IMAGES, LABELS, MixParams(PARTNER, 0.75, (0, 0, 0, 0), 0.75))
    np.testing.assert_allclose(images[:, 0, 0, 0], [25, 125, 150])
    np.testing.assert_allclose(images.std((1, 2, 3)), 0)
    np.testing.assert_allclose(labels, [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]])


def test_cutmix_by_hand():
    before = IMAGES.copy()
    images, labels = mix(IMAGES, LABELS, MixParams(PARTNER, 1.0, (1, 2, 3, 5), 0.75))
    expected = np.zeros((4, 6))
    expected[1:3, 2:5] = 100
    np.testing.assert_array_equal(images[0, :, :, 0], expected)
    np.testing.assert_allclose(labels, [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]])
    np.testing.assert_array_equal(IMAGES, before)
    assert images.dtype == labels.dtype == "float32"


def draws(mixup, cutmix, n=4000, size=(40, 60)):
    rng = np.random.default_rng(0)
    return [sample_mix(mixup, cutmix, 5, size, rng) for _ in range(n)]


def test_one_of_both_half_of_the_time():
    both = draws(0.8, 1.0)
    is_mixup = [draw.box == (0, 0, 0, 0) and draw.weight < 1 for draw in both]
    # Five standard deviations; a box may be empty in CutMix too, which `weight` tells.
    assert abs(np.mean(is_mixup) - 0.5) < 5 * 0.5 / len(both) ** 0.5
    assert all(sorted(draw.partner) == list(range(5)) for draw in both)
    assert len({tuple(draw.partner) for draw in both}) == 120


def test_distribution_of_mixup():
    weights = [draw.weight for draw in draws(0.8, 0.0)]
    assert stats.kstest(weights, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(weights, stats.beta(1.0, 1.0).cdf).pvalue < 1e-3, "the test can tell them apart"


def test_distribution_of_cutmix():
    sample = draws(0.0, 1.0)
    for draw in sample:
        top, left, bottom, right = draw.box
        assert 0 <= top <= bottom <= 40 and 0 <= left <= right <= 60 and draw.weight == 1
        assert draw.label_weight == pytest.approx(1 - (bottom - top) * (right - left) / 2400)
    # The box before it is cut off has the share 1 - Beta(1, 1) of the area: where it is whole, its sides tell.
    whole = [d.box for d in sample if d.box[0] > 0 and d.box[1] > 0 and d.box[2] < 40 and d.box[3] < 60]
    ratios = [(bottom - top) / (right - left) for top, left, bottom, right in whole if right - left > 12]
    np.testing.assert_allclose(np.mean(ratios), 40 / 60, rtol=0.05)
    # A uniform centre and share: the mean share that is left after cutting off is known by integration.
    assert np.mean([d.label_weight for d in sample]) == pytest.approx(_mean_label_weight(), abs=0.02)


def _mean_label_weight():
    """1 - E[(overlap of an interval of length s, centre uniform, with [0, 1])^2], s^2 uniform."""
    side = np.sqrt((np.arange(2000) + 0.5) / 2000)
    overlap = side - side**2 / 4
    return 1 - (overlap**2).mean()


def test_neither():
    images, labels = mix(IMAGES, LABELS, sample_mix(0, 0, 3, (4, 6), np.random.default_rng(0)))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_batches_are_mixed_anew_in_each_epoch(photos):
    def weights(seed):
        dataset = image_folder(photos, image_size=32, batch_size=8, mixup=0.8, cutmix=1.0, seed=seed)
        epochs = [np.concatenate([labels for _, labels in dataset]) for _ in range(2)]
        assert np.allclose([labels.sum(1) for labels in epochs], 1)
        return epochs

    first, second = weights(0)
    assert not np.array_equal(np.sort(first, 0), np.sort(second, 0))
    assert ((first > 0).sum(1) == 2).any(), "two classes in one image"
    np.testing.assert_array_equal(first, weights(0)[0])
    validation = image_folder(photos, image_size=32, split="val", mixup=0.8)
    assert all((labels.max(1) == 1).all() for _, labels in validation)


class TestTargets:
    """What belongs to parts of the image is mixed there."""

    MAPS = np.stack([np.full((2, 3, 1), value, "float32") for value in (0, 1, 2)])

    def test_mixup(self):
        draw = MixParams(PARTNER, 0.75, (0, 0, 0, 0), 0.75)
        targets = {"labels": LABELS, "features_0": self.MAPS, "teacher": LABELS[::-1]}
        images, mixed = mix(IMAGES, targets, draw)
        plain = mix(IMAGES, LABELS, draw)
        np.testing.assert_array_equal(images, plain[0])
        np.testing.assert_array_equal(mixed["labels"], plain[1])
        np.testing.assert_array_equal(mixed["teacher"], mix(IMAGES, LABELS[::-1], draw)[1])
        np.testing.assert_allclose(mixed["features_0"][:, 0, 0, 0], [0.25, 1.25, 1.5])
        assert mixed["features_0"].dtype == "float32" and mixed["features_0"].std((1, 2, 3)).max() == 0

    def test_cutmix_by_covered_share(self):
        """A box of rows 1..3 and columns 1..5 over maps whose positions are two by two pixels."""
        draw = MixParams(PARTNER, 1.0, (1, 1, 3, 5), 1 - 8 / 24)
        _, mixed = mix(IMAGES, {"labels": LABELS, "features_0": self.MAPS}, draw)
        covered = np.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]])
        np.testing.assert_allclose(mixed["features_0"][0, :, :, 0], covered)
        np.testing.assert_allclose(mixed["features_0"][2, :, :, 0], 2 - 2 * covered)
        np.testing.assert_allclose(mixed["labels"], mix(IMAGES, LABELS, draw)[1])
        np.testing.assert_allclose(covered.mean(), 8 / 24)

    def test_maps_finer_and_coarser_than_the_pixels_of_the_box(self, rng):
        maps = {"fine": rng.normal(size=(3, 8, 18, 2)), "coarse": rng.normal(size=(3, 1, 1, 2)), "odd": self.MAPS}
        maps = {name: array.astype("float32") for name, array in maps.items()}
        draw = MixParams(PARTNER, 1.0, (0, 2, 3, 6), 0.5)
        _, mixed = mix(IMAGES, maps, draw)
        inside, outside = mixed["fine"][:, :6, 6:], mixed["fine"][:, :, :6]
        np.testing.assert_allclose(inside, maps["fine"][PARTNER][:, :6, 6:], atol=1e-6)
        np.testing.assert_array_equal(outside, maps["fine"][:, :, :6])
        np.testing.assert_array_equal(mixed["fine"][:, 6:], maps["fine"][:, 6:])
        np.testing.assert_allclose(mixed["coarse"], (maps["coarse"] + maps["coarse"][PARTNER]) / 2, atol=1e-6)

    def test_no_box_and_an_empty_box_change_nothing(self):
        for box in ((0, 0, 0, 0), (2, 3, 2, 5)):
            _, mixed = mix(IMAGES, {"labels": LABELS, "features_0": self.MAPS}, MixParams(PARTNER, 1.0, box, 1.0))
            np.testing.assert_array_equal(mixed["features_0"], self.MAPS)
            np.testing.assert_array_equal(mixed["labels"], LABELS)

    def test_of_photos_they_are_mixed_with_them(self, photos):
        """A map that is the image itself stays it."""

        def targets(images):
            return {"features_0": images / 255}

        options = {"image_size": 32, "batch_size": 8, "mixup": 0.8, "cutmix": 1.0}
        mixed = 0
        for images, labels in image_folder(photos, targets=targets, **options):
            np.testing.assert_allclose(labels["features_0"], images / 255, atol=1e-5)
            mixed += (labels["labels"].max(1) < 1).any()
        assert mixed
        for wrong in ({"augment_on": "device"}, {"num_workers": 1}):
            with pytest.raises(DataError, match=f"augmented on the host, by threads.*{next(iter(wrong))}"):
                image_folder(photos, targets=targets, **{**options, **wrong})
