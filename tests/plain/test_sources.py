import sys

import pytest

from keras_ci2p.data import DataError, scan_folder
from keras_ci2p.data.sources import open_data, scan_images


def test_folders_and_manifests(photos):
    manifest = open_data(photos)
    assert manifest == open_data(str(photos)) == scan_folder(photos)
    assert open_data(manifest) is manifest
    with pytest.raises(DataError, match="no folder"):
        open_data(photos / "absent")


def test_sets_of_tfds(tmp_path):
    with pytest.raises(DataError, match="tfds:animals10 is not prepared"):
        open_data("tfds:animals10", tmp_path)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"keras_ci2p\[tfds\]"):
        open_data("tfds:mnist")


@pytest.mark.parametrize("scan", [open_data, scan_folder, scan_images])
def test_a_latent_cache_holds_no_images(photos, scan):
    (photos / "latents.json").write_text("{}")
    with pytest.raises(DataError, match="is a latent cache: .* Give the folder that it was made of"):
        scan(photos)
