import io
import itertools
import os
import pickle
import shutil
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import write_photos
from PIL import Image

from keras_ci2p.data import DataError, animals10, image_folder, scan_folder, validation_mask
from keras_ci2p.data import tfds as index
from keras_ci2p.data import tfds as manifest
from keras_ci2p.data.animals10 import CLASSES, PUBLISHED
from keras_ci2p.data.manifest import in_threads
from keras_ci2p.data.tfds import open_tfds, prepare_tfds, prepared_directory

ITALIAN = [italian for italian, _ in CLASSES.values()]
ITALIAN_OF = {english: italian for english, (italian, _) in CLASSES.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder like that of Kaggle's archive, prepared: `(folder, data_dir)`. Read only."""
    root = tmp_path_factory.mktemp("animals")
    folder = write_photos(root / "raw-img", ITALIAN, 5)
    prepare_tfds("animals10", folder, root / "tfds")
    return folder, root / "tfds"


@pytest.fixture
def animals(original, tmp_path):
    return shutil.copytree(original[0], tmp_path / "raw-img")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "tfds"


@pytest.fixture
def no_kagglehub(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)


def in_english(folder):
    for english, italian in ITALIAN_OF.items():
        (folder / italian).rename(folder / english)
    return folder


def pack(folder, archive, below=""):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, Path(below, path.relative_to(folder)))
    return archive


def test_published_numbers():
    assert len(CLASSES) == 10 and sum(count for _, count in CLASSES.values()) == PUBLISHED
    assert list(CLASSES) == sorted(CLASSES)


def test_bytes_hashes_and_split_are_those_of_the_folder(original):
    folder, data_dir = original
    photos, expected = open_tfds("animals10", data_dir), scan_folder(folder)
    assert len(photos) == 50 and photos.root == "tfds:animals10" and not photos.skipped
    assert dict(zip(photos.files, photos.hashes, strict=True)) == dict(
        zip(expected.files, expected.hashes, strict=True)
    )
    for name, count in (("train", 40), ("val", 10), ("all", 50)):
        part = photos.split(name)
        assert len(part) == count
        assert sorted(part.hashes) == sorted(expected.split(name).hashes)
        for i in range(0, count, 7):
            assert part.records[part.positions[i]][0] == (folder / part.files[i]).read_bytes()
            assert ITALIAN_OF[part.class_names[part.labels[i]]] == part.files[i].split("/")[0]
            np.testing.assert_array_equal(part.open(i), Image.open(folder / part.files[i]))
    assert photos.split("val").split("val") == photos.split("val")


def test_a_folder_in_english_is_the_same_data_in_the_same_order(original, animals):
    """So that training on either gives the same."""
    photos, expected = open_tfds("animals10", original[1]), scan_folder(in_english(animals))
    assert photos.class_names == expected.class_names
    assert photos.sha256 == expected.sha256 and photos.counts() == expected.counts()
    for name in ("train", "val", "all"):
        assert photos.split(name).hashes == expected.split(name).hashes
        assert photos.split(name).labels == expected.split(name).labels
    batches = [image_folder(data, image_size=32, batch_size=8, seed=3) for data in (photos, expected)]
    for one, other in zip(*(itertools.islice(batch, 2) for batch in batches), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_the_builder(original):
    info = tfds.builder("animals10", data_dir=original[1]).info
    assert info.features["label"].names == sorted(ITALIAN_OF)
    assert info.metadata["italian_names"] == ITALIAN_OF
    assert {name: split.num_examples for name, split in info.splits.items()} == {"train": 40, "validation": 10}
    example = tfds.data_source("animals10", split="train", data_dir=original[1])[0]
    assert example["image"].shape == (40, 48, 3) and example["file_name"].endswith(b".png")


@pytest.mark.parametrize("below", ["", "raw-img", "animals10/raw-img"])
def test_archive(original, animals, data_dir, tmp_path, below):
    copies = animals / "__MACOSX" / "cane"
    copies.mkdir(parents=True)
    (copies / "._000.png").touch()
    (animals / "cane" / ".DS_Store.png").touch()
    if not below:
        in_english(animals)
    prepare_tfds("animals10", pack(animals, tmp_path / "download.zip", below), data_dir)
    photos = open_tfds("animals10", data_dir)
    expected = open_tfds("animals10", original[1])
    assert photos.hashes == expected.hashes and photos.splits == expected.splits
    # Nothing has been unpacked.
    assert not list(tmp_path.glob("tfds/**/*.png"))


def huge_png():
    """A small file whose header tells of 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("as_archive", [False, True])
def test_unreadable_files_are_left_out_and_listed(original, animals, data_dir, tmp_path, as_archive):
    whole = (animals / "cane" / "000.png").read_bytes()
    bad = {
        "cane/bomb.png": huge_png(),
        "cane/cut.png": whole[: len(whole) // 2],
        "gatto/empty.png": b"",
        "gatto/more/notes.txt": b"no",
    }
    for name, content in bad.items():
        (animals / name).parent.mkdir(exist_ok=True)
        (animals / name).write_bytes(content)
    source = pack(animals, tmp_path / "animals.zip") if as_archive else animals
    with pytest.warns(UserWarning, match="Animals-10: skipped 4 files"):
        prepare_tfds("animals10", source, data_dir)
    photos = open_tfds("animals10", data_dir)
    assert sorted(name for name, _ in photos.skipped) == sorted(bad)
    assert photos.hashes == open_tfds("animals10", original[1]).hashes
    with pytest.warns(UserWarning, match="skipped 4 files"):
        assert sorted(scan_folder(animals).skipped) == sorted(photos.skipped)


def test_damaged_member_of_an_archive(animals, data_dir, tmp_path):
    archive = pack(animals, tmp_path / "animals.zip")
    member = (animals / "cane" / "002.png").read_bytes()
    content = bytearray(archive.read_bytes())
    content[content.index(member) + len(member) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.warns(UserWarning, match="skipped 1 file"):
        prepare_tfds("animals10", archive, data_dir)
    ((name, reason),) = open_tfds("animals10", data_dir).skipped
    assert name == "cane/002.png" and "CRC" in reason


def test_members_that_unpack_to_too_much(animals, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(animals10, "_MAX_BYTES", 20_000)
    (animals / "cane" / "bomb.jpg").write_bytes(bytes(10_000_000))
    with zipfile.ZipFile(pack(animals, tmp_path / "animals.zip"), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.write(animals / "cane" / "bomb.jpg", "gatto/bomb.jpg")
    with pytest.warns(UserWarning, match="skipped 2 files"):
        prepare_tfds("animals10", tmp_path / "animals.zip", data_dir)
    assert all("larger than" in reason for _, reason in open_tfds("animals10", data_dir).skipped)


def test_unusable_sources(animals, data_dir, tmp_path):
    archive = pack(animals, tmp_path / "animals.zip")
    archive.write_bytes(archive.read_bytes()[:-1000])
    shutil.rmtree(animals / "pecora")
    empty = shutil.copytree(animals, tmp_path / "empty")
    (empty / "sheep").mkdir()
    few = write_photos(tmp_path / "few", ITALIAN, 1)
    for source, message in (
        (archive, "damaged .* Download it again"),
        (animals / "cane" / "000.png", "no ZIP archive"),
        (animals, r"Missing: sheep \(pecora\)\."),
        (empty, "no readable image of the class sheep"),
        (few, "too few to split"),
        (tmp_path / "absent", "no file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_tfds("animals10", source, data_dir)
        assert prepared_directory("animals10", data_dir) is None
        assert not list(data_dir.glob("animals10/*"))


def test_the_manual_directory(animals, data_dir, no_kagglehub):
    manual = data_dir / "downloads" / "manual"
    with pytest.raises(DataError, match=r"kaggle.com/datasets/alessiocorrado99/animals10\n.*--from archive.zip"):
        prepare_tfds("animals10", data_dir=data_dir)
    write_photos(manual / "another set")
    with pytest.raises(DataError, match="pip install kagglehub"):
        prepare_tfds("animals10", data_dir=data_dir)
    archive = pack(animals, manual / "animals10.zip", "raw-img")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=r"animals10\.zip is no ZIP archive, or damaged"):
        prepare_tfds("animals10", data_dir=data_dir)
    archive.write_bytes(whole)
    prepare_tfds("animals10", data_dir=data_dir)
    assert len(open_tfds("animals10", data_dir)) == 50


def test_download_by_kagglehub(animals, data_dir, monkeypatch):
    def download(name):
        assert name == "alessiocorrado99/animals10"
        raise RuntimeError("no network")

    kagglehub = types.SimpleNamespace(dataset_download=download)
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)
    with pytest.raises(DataError, match=r"no network\n.*kaggle.com/datasets"):
        prepare_tfds("animals10", data_dir=data_dir)
    kagglehub.dataset_download = lambda name: str(animals.parent)
    prepare_tfds("animals10", data_dir=data_dir)
    assert len(open_tfds("animals10", data_dir)) == 50


def test_an_interrupted_preparation_leaves_nothing(animals, data_dir, monkeypatch):
    # The 50 are checked, then some are written.
    read, calls = animals10.read_file, itertools.count()

    def interrupted(path):
        if next(calls) == 80:
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(animals10, "read_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_tfds("animals10", animals, data_dir)
    assert not list(data_dir.glob("animals10/*"))
    with pytest.raises(DataError, match="not prepared. .* keras-ci2p data animals10 --from .* --data-dir"):
        open_tfds("animals10", data_dir)
    # One that was killed could not clean up.
    (data_dir / "animals10" / "incomplete.ABCDEF_1.1.0").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"killed, or is still running.*ABCDEF"):
        prepare_tfds("animals10", animals, data_dir)
    assert prepared_directory("animals10", data_dir) == data_dir / "animals10" / "1.1.0"


def test_the_data_directory_of_the_environment(original, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(original[1]))
    assert len(open_tfds("animals10")) == 50
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert prepared_directory("animals10:1.1.0") is None


def test_hashes_are_computed_once(original, tmp_path, monkeypatch):
    data_dir = shutil.copytree(original[1], tmp_path / "tfds")
    directory = prepared_directory("animals10", data_dir)
    check, checked = index.check_image, []
    monkeypatch.setattr(index, "check_image", lambda content: checked.append(0) or check(content))

    def read_only(path):
        raise PermissionError(f"Permission denied: {path}")

    def number_hashed():
        checked.clear()
        assert open_tfds("animals10", data_dir) == first
        return len(checked)

    (directory / index.INDEX).unlink(missing_ok=True)
    first = open_tfds("animals10", data_dir)
    assert len(checked) == 50 and number_hashed() == 0
    # Stale: a file of the set is another.
    shard = next(directory.glob("*train*"))
    os.utime(shard, (1, 1))
    assert number_hashed() == 50 and number_hashed() == 0
    # Damaged: cut off, or a flipped bit among the hashes, most of the file. (Some of the headers nobody reads.)
    content = (directory / index.INDEX).read_bytes()
    middle = len(content) // 2
    for damaged in (content[:-30], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], b""):
        (directory / index.INDEX).write_bytes(damaged)
        assert number_hashed() == 50
    # Not writable.
    (directory / index.INDEX).unlink()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="each start will compute them"):
        patch.setattr(index, "atomic_file", read_only)
        assert number_hashed() == 50
    assert number_hashed() == 50 and number_hashed() == 0


def test_long_passes_run_only_a_little_ahead():
    """Else Ctrl-C would most often hit the threads' queue, which can lock up."""
    taken = itertools.count()
    results = in_threads(lambda item: -item, (next(taken) for _ in range(100_000)))
    assert [next(results) for _ in range(3)] == [0, -1, -2]
    assert next(taken) < 100 * (os.cpu_count() + 1)
    results.close()


def test_long_passes_tell_how_far_they_are(original, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("keras_ci2p.utils._LINE_EVERY", 0.0)
    open_tfds("animals10", shutil.copytree(original[1], tmp_path / "tfds", ignore=shutil.ignore_patterns(index.INDEX)))
    assert "Hashing tfds:animals10: 49 of 50 images\n" in capsys.readouterr().err


def test_many_threads_and_other_processes_can_read(original):
    photos = open_tfds("animals10", original[1]).split("train")
    copied = pickle.loads(pickle.dumps(photos))
    assert copied == photos and len(pickle.dumps(photos)) < 20_000
    expected = [photos.open(i).tobytes() for i in range(len(photos))]
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(lambda i: copied.open(i).tobytes(), list(range(len(photos))) * 20))
    assert read == expected * 20


def test_damaged_records(original, tmp_path):
    data_dir = shutil.copytree(original[1], tmp_path / "tfds")
    photos = open_tfds("animals10", data_dir)
    directory = prepared_directory("animals10", data_dir)
    assert (directory / index.INDEX).exists()
    shard = next(directory.glob("*validation*"))
    content = bytearray(shard.read_bytes())
    content[content.index(photos.records[photos.split("val").positions[0]][0]) + 100] ^= 1
    shard.write_bytes(content)
    (directory / index.INDEX).unlink()
    with pytest.warns(UserWarning, match="skipped 1 file(.|\n)*cannot be read"):
        assert len(open_tfds("animals10", data_dir)) == 49
    # Not kept: the disk may recover.
    assert not (directory / index.INDEX).exists()
    shard.unlink()
    with pytest.raises(OSError, match="record .* cannot be read"):
        pickle.loads(pickle.dumps(photos)).split("val").open(0)


class SomeShapes(tfds.core.GeneratorBasedBuilder):
    """A set as others have published: no file names, features that are not needed, pictures without a label."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, version="1.0.0")
        for name in (
            "train_test",
            "train_validation_test",
            "train_validation_unlabelled_test",
            "train_only",
            "boxes",
            "floats",
        )
    ]

    def _info(self):
        kind = self.builder_config.name
        label = tfds.features.BBoxFeature() if kind == "boxes" else tfds.features.ClassLabel(names=["round", "square"])
        image = tfds.features.Image(dtype=np.float32, shape=(8, 8, 1)) if kind == "floats" else tfds.features.Image()
        features = {"picture": image, "kind": label, "note": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("picture", "kind")
        )

    def _split_generators(self, dl_manager):
        names = self.builder_config.name.split("_")
        return {
            name: self._generate_examples(i)
            for i, name in enumerate(name for name in names if name in ("train", "validation", "test"))
        }

    def _generate_examples(self, split):
        for i in range(20):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (split, i, 0)).save(picture, "PNG")
            unlabelled = i == 7 or (split == 2 and "unlabelled" in self.builder_config.name)
            yield i, {"picture": picture.getvalue(), "kind": -1 if unlabelled else i % 2, "note": "a"}


@pytest.mark.parametrize(
    ("config", "train", "val", "test"),
    [
        ("train_test", 0, 1, None),
        ("train_validation_test", 0, 1, 2),
        ("train_validation_unlabelled_test", 0, 1, None),
        ("train_only", None, None, None),
    ],
)
def test_any_set_of_pictures_with_labels(data_dir, config, train, val, test):
    name = f"some_shapes/{config}"
    prepare_tfds(name, data_dir=data_dir)
    with pytest.warns(UserWarning, match="skipped . files?(.|\n)*no label"):
        photos = open_tfds(name, data_dir)
    assert photos.class_names == ("round", "square")
    if train is None:
        chosen = validation_mask(photos.hashes, photos.labels)
        assert not photos.splits and photos.image_splits() == tuple("val" if one else "train" for one in chosen)
        assert len(photos.split("val")) == 4 and len(photos.split("train")) == 15
    else:
        assert ("test" in photos.sizes()) == (test is not None) and len(photos.skipped) == 2 + (test is not None)
        for part, split in (("train", train), ("val", val), *([("test", test)] if test else [])):
            pixels = [photos.split(part).open(i).getpixel((0, 0)) for i in range(len(photos.split(part)))]
            assert sorted(pixels) == [(split, i, 0) for i in range(20) if i != 7]
    assert photos.split("train").files[0].startswith("train/00000")
    assert {photos.open(i).getpixel((0, 0))[1] % 2 for i in range(len(photos)) if photos.labels[i]} == {1}


def test_sets_of_something_else_and_in_other_formats_are_refused(data_dir):
    builder = tfds.builder("some_shapes/train_test", data_dir=data_dir)
    builder.download_and_prepare(file_format="parquet")
    with pytest.raises(DataError, match="prepared as parquet, not as array_record.*--data-dir DIR"):
        open_tfds("some_shapes/train_test", data_dir)
    for config in ("boxes", "floats"):
        directory = data_dir / "some_shapes" / config / "1.0.0"
        directory.mkdir(parents=True)
        builder = tfds.builder(f"some_shapes/{config}", data_dir=data_dir)
        builder.info.write_to_directory(directory)
        with pytest.raises(DataError, match="no image classification set.*picture, kind"):
            open_tfds(f"some_shapes/{config}", data_dir)


def test_names(data_dir):
    for name in ("huggingface:mnist", "../mnist", "mnist 2", "", "mnist:3"):
        with pytest.raises(DataError, match="is named NAME"):
            open_tfds(name, data_dir)
    with pytest.raises(DataError, match="no set no_such_set: Dataset no_such_set not found"):
        open_tfds("no_such_set", data_dir)
    with pytest.raises(DataError, match="no set animals10:9.9.9"):
        open_tfds("animals10:9.9.9", data_dir)
    with pytest.raises(DataError, match="not prepared. Prepare it with: keras-ci2p data mnist --data-dir"):
        open_tfds("mnist", data_dir)


def test_a_download_without_network_fails_soon(data_dir, monkeypatch):
    """TFDS tries ten times, which takes three minutes."""
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setattr(downloader, "MAX_RETRIES", downloader.MAX_RETRIES)
    monkeypatch.setattr(index, "_RETRIES", 1)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        # Nothing listens there.
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match="tfds:mnist could not be downloaded, after 1 tries: "):
        prepare_tfds("mnist", data_dir=data_dir)
    assert downloader.MAX_RETRIES == 1 and prepared_directory("mnist", data_dir) is None


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_tensorflow_is_not_needed(animals, data_dir, backend):
    # A look for garbage takes a fifth of the start.
    program = """
import gc; gc.disable()
import importlib.util, sys

import keras
from keras_ci2p.data import image_folder
from keras_ci2p.data.tfds import open_tfds, prepare_tfds

class NoTensorFlow:
    # It is there to be found, so that nobody goes round it, and cannot be imported.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            return importlib.util.spec_from_loader(name, self)
    def create_module(self, spec):
        attempts.append(spec.name)
        raise ImportError(spec.name)
    def exec_module(self, module):
        raise ImportError

attempts = []
sys.meta_path.insert(0, NoTensorFlow())
prepare_tfds("animals10", sys.argv[1], sys.argv[2])
photos = open_tfds("animals10", sys.argv[2])
images, labels = next(iter(image_folder(photos, image_size=32, batch_size=8)))
assert images.shape == (8, 32, 32, 3) and images.max() > 100
assert not attempts, attempts
assert "tensorflow" not in sys.modules
print("read without TensorFlow")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(animals), str(data_dir)],
        capture_output=True,
        text=True,
        env=dict(os.environ, KERAS_BACKEND=backend),
    )
    assert "read without TensorFlow" in done.stdout, done.stderr


def test_positions_are_those_of_the_splits_one_after_the_other(original):
    """What `splits` and `records` rest on."""
    directory = prepared_directory("animals10", original[1])
    both = manifest.TFDSRecords(str(directory), ("train", "validation"))
    assert len(both) == 50
    validation = manifest.TFDSRecords(str(directory), ("validation",))
    assert [both[40 + i] for i in range(10)] == [validation[i] for i in range(10)]
