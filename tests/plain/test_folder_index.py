"""The index of a folder: what is not read again, and what is."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import manifest, open_data, scan_folder, scan_images
from keras_ci2p.data.manifest import check_image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, which relies on files however new."""
    monkeypatch.setenv("KERAS_CI2P_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "_GRANULARITY", -(10**12))
    return tmp_path / "cache" / "folders"


@pytest.fixture
def read(monkeypatch):
    """The contents of the files that were read since it was last cleared."""
    contents = []

    def check(content):
        contents.append(content)
        return check_image(content)

    monkeypatch.setattr("keras_ci2p.data.sources.check_image", check)
    return contents


def test_what_is_unchanged_is_not_read_again(photos, read):
    """Nor what is no image; and the same is told of it."""
    (photos / "cat" / "notes.txt").write_text("none")
    with pytest.warns(UserWarning, match="notes.txt: no image"):
        first = scan_folder(photos)
    assert len(read) == 31
    read.clear()
    with pytest.warns(UserWarning, match="notes.txt: no image"):
        second = scan_folder(photos)
    assert not read and second == first and len(first.hashes[0]) == 64
    with pytest.warns(UserWarning, match="notes.txt: no image"):
        assert scan_images(photos).hashes == first.hashes and not read


def test_what_is_new_or_changed_is_read(photos, read):
    first = scan_folder(photos)
    read.clear()
    changed = photos / "cat" / "000.png"
    Image.new("RGB", (48, 40), "red").save(changed)
    shutil.copy(changed, photos / "dog" / "new.png")
    content = (photos / "bird" / "001.png").read_bytes()
    (photos / "bird" / "000.png").write_bytes(content)
    os.truncate(photos / "bird" / "000.png", len(content) // 2)
    (photos / "dog" / "009.png").unlink()
    with pytest.warns(UserWarning, match="bird/000.png"):
        second = scan_folder(photos)
    assert len(read) == 3 and "dog/new.png" in second.files and "dog/009.png" not in second.files
    index = second.files.index("cat/000.png")
    assert second.hashes[index] not in first.hashes
    assert second.hashes[index] == second.hashes[second.files.index("dog/new.png")]


def test_same_size_and_mtime(photos, read):
    """What `cp -p` and `rsync` leave: only ctime tells."""
    path = photos / "cat" / "000.png"
    scan_folder(photos)
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size
    read.clear()
    scan_folder(photos)
    assert read == [bytes(content)]


def test_a_file_changed_at_the_moment_of_reading_is_read_again(photos, read, monkeypatch):
    monkeypatch.setattr(manifest, "_GRANULARITY", 10**12)
    for _ in range(2):
        read.clear()
        scan_folder(photos)
        assert len(read) == 30
    # The clock has been set back: all files are of the future.
    monkeypatch.setattr(manifest, "_GRANULARITY", 2 * 10**9)
    monkeypatch.setattr(manifest.time, "time_ns", lambda: 10**9)
    for _ in range(2):
        read.clear()
        scan_folder(photos)
        assert len(read) == 30


def test_long_checks_keep_what_they_have_found(photos, read, monkeypatch):
    """Where there is something."""
    monkeypatch.setattr(manifest, "_KEEP_EVERY", -1)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_GRANULARITY", 10**12)
        scan_folder(photos)
    written, write = [], manifest._write_index
    monkeypatch.setattr(manifest, "_write_index", lambda *args: written.append(args[-1].sum()) or write(*args))
    scan_folder(photos)
    assert written == list(range(1, 31))


def test_a_file_that_changes_while_it_is_read(photos, read, monkeypatch):
    def check(content):
        (photos / "cat" / "000.png").touch()
        return check_image(content)

    with monkeypatch.context() as patch:
        patch.setattr("keras_ci2p.data.sources.check_image", check)
        scan_folder(photos)
    scan_folder(photos)
    assert (photos / "cat" / "000.png").read_bytes() in read


def test_rescan_reads_all(photos, read):
    open_data(photos)
    read.clear()
    open_data(photos, rescan=True)
    assert len(read) == 30
    for other in ("tfds:mnist", scan_folder(photos)):
        with pytest.raises(ValueError, match="Only a folder"):
            open_data(other, rescan=True)


def test_a_moved_folder_and_another_in_its_place(photos, read, tmp_path):
    first = scan_folder(photos)
    photos.rename(tmp_path / "moved")
    assert scan_folder(tmp_path / "moved").hashes == first.hashes and len(read) == 60
    read.clear()
    rng = np.random.default_rng(5)
    for path in (tmp_path / "moved").rglob("*.png"):
        other = photos / path.relative_to(tmp_path / "moved")
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), "uint8")).save(other)
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert not set(scan_folder(photos).hashes) & set(first.hashes) and len(read) == 30
    (tmp_path / "link").symlink_to(photos)
    read.clear()
    assert len(scan_folder(tmp_path / "link")) == 30 and not read


@pytest.mark.parametrize("damage", ["cut", "empty", "a bit", "text", "directory"])
def test_a_damaged_index_counts_as_none(photos, read, cache, damage):
    first = scan_folder(photos)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "directory":
        path.unlink()
        path.mkdir()
    elif damage == "a bit":
        # Of a hash, as only a checksum tells.
        place = content.index(bytes.fromhex(first.hashes[0]))
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes({"cut": content[:-40], "empty": b"", "text": b"no index"}[damage])
    read.clear()
    if damage == "directory":
        with pytest.warns(UserWarning, match="cannot be kept"):
            assert scan_folder(photos) == first
        return
    assert scan_folder(photos) == first and len(read) == 30
    read.clear()
    assert scan_folder(photos) == first and not read


def test_another_version_of_pillow(photos, read, monkeypatch):
    """It may read files that this one does not."""
    scan_folder(photos)
    read.clear()
    monkeypatch.setattr(manifest.Image, "__version__", "99")
    scan_folder(photos)
    assert len(read) == 30


def test_what_was_found_before_an_interruption_is_kept(photos, read, monkeypatch):
    def check(content):
        if len(read) == 29:
            raise KeyboardInterrupt
        read.append(content)
        return check_image(content)

    monkeypatch.setattr(manifest, "in_threads", lambda look, items: map(look, items))
    with monkeypatch.context() as patch:
        patch.setattr("keras_ci2p.data.sources.check_image", check)
        with pytest.raises(KeyboardInterrupt):
            scan_folder(photos)
    read.clear()
    scan_folder(photos)
    assert len(read) == 1


def test_files_that_cannot_be_read_are_tried_again(photos, read, monkeypatch):
    broken = photos / "cat" / "broken.png"
    broken.symlink_to(photos / "absent.png")
    for _ in range(2):
        with pytest.warns(UserWarning, match="cat/broken.png: .*No such file"):
            scan_folder(photos)
    shutil.copy(photos / "cat" / "000.png", photos / "absent.png")
    assert "cat/broken.png" in scan_folder(photos).files


def test_a_cache_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_CI2P_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept in .*folders; it will be read again each time"):
        assert len(scan_folder(photos)) == 30


def test_unused_indexes_are_deleted(photos, tmp_path, cache):
    scan_folder(photos)
    (path,) = cache.iterdir()
    os.utime(path, (0, 0))
    other = write_photos(tmp_path / "other", ("a", "b"), 2)
    scan_folder(other)
    assert path not in cache.iterdir() and len(list(cache.iterdir())) == 1


def test_several_processes_at_once(photos, read):
    """None disturbs the others, and what is left is whole."""
    code = f"""
from keras_ci2p.data import manifest, open_data
manifest._GRANULARITY = -(10**12)
for _ in range(20):
    assert len(open_data({str(photos)!r}, rescan=True)) == 30 and len(open_data({str(photos)!r})) == 30
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    assert len(scan_folder(photos)) == 30 and not read
