"""The page's files, without a browser (tests/browser has one) and with a few bytes in place of the runtime."""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile

import numpy as np
import pytest
from conftest import write_photos
from PIL import Image

from keras_ci2p import ViT
from keras_ci2p.cli import main
from keras_ci2p.export import ExportReport, Int8Report
from keras_ci2p.export.demo import build
from keras_ci2p.export.demo.build import DemoError, runtime_files, write_demo

pytestmark = pytest.mark.once
FILES = {"ort.wasm.bundle.min.mjs": b"code", "ort-wasm-simd-threaded.wasm": b"wasm"}


@pytest.fixture(autouse=True)
def written(monkeypatch, tmp_path):
    """In place of the exporter: writes a few bytes."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(build, "RUNTIME_FILES", digests)
    monkeypatch.setenv("KERAS_CI2P_CACHE", str(tmp_path / "cache"))

    def export(model, path, format, outputs):
        assert (format, outputs) == ("onnx", ["logits", "attention"])
        path.write_bytes(b"model")
        return ExportReport("onnx", "torch", 20, 5, 0.0)

    monkeypatch.setattr(build, "export", export)


@pytest.fixture
def runtime(tmp_path):
    directory = tmp_path / "runtime"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def model(nano):
    return ViT((32, 64, 3), 3, class_names=["cat", "</script>", "ÿ"], **nano)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 90, "uint8")).save(tmp_path / "mine & yours.png")
    return tmp_path / "mine & yours.png"


def config(page):
    (text,) = re.findall(r'<script type="application/json" id="config">(.*?)</script>', page.decode())
    return json.loads(text)


def test_a_directory(model, runtime, photo, tmp_path):
    write_demo(model, tmp_path / "site", name="ours", samples=[photo], runtime=runtime)
    files = {path.name: path.read_bytes() for path in (tmp_path / "site").iterdir()}
    page = files.pop("index.html")
    with Image.open(io.BytesIO(files.pop("mine & yours.jpg"))) as image:
        assert image.size == (30, 20)
    assert files == {**FILES, "model.onnx": b"model"}
    entries = config(page)
    assert entries["class_names"] == ["cat", "</script>", "ÿ"]
    assert (entries["image_size"], entries["grid_size"], entries["output"]) == ([32, 64], [2, 4], "logits")
    assert entries["model"] == "model.onnx" and list(entries["runtime"].values()) == list(FILES)
    assert entries["samples"] == [{"name": "mine & yours", "source": "mine & yours.jpg"}]
    assert entries["about"].startswith("ours knows 3 classes: ")
    assert not re.search(rb"/\*[A-Z]+\*/", page) and page.count(b"</script>") == 2

    with pytest.raises(FileExistsError, match="--overwrite"):
        write_demo(model, tmp_path / "site", runtime=runtime)
    write_demo(model, tmp_path / "site", samples=[], runtime=runtime, overwrite=True)
    assert not (tmp_path / "site" / "mine & yours.jpg").exists()
    assert config((tmp_path / "site" / "index.html").read_bytes())["samples"] == []


def test_one_file(model, runtime, photo, tmp_path):
    path = tmp_path / "page.html"
    write_demo(model, path, samples=[photo], runtime=runtime)
    entries = config(path.read_bytes())

    def content(url):
        kind, _, text = url.partition(";base64,")
        return kind, base64.b64decode(text)

    for url, expected in [(entries["model"], b"model"), *zip(entries["runtime"].values(), FILES.values(), strict=True)]:
        kind, packed = content(url)
        assert (kind, gzip.decompress(packed)) == ("data:application/gzip", expected)
    assert content(entries["samples"][0]["source"])[0] == "data:image/jpeg"
    before = path.read_bytes()
    write_demo(model, path, samples=[photo], runtime=runtime, overwrite=True)
    assert path.read_bytes() == before


def test_8_bits(model, runtime, tmp_path, monkeypatch, capsys):
    def export_int8(given, path, format, data, outputs):
        assert (format, len(data.split("val")), outputs) == ("onnx", 6, ["logits", "attention"])
        path.write_bytes(b"8 bits")
        return Int8Report("MinMax", (), 6, 0.5, 0.5, 6, 24)

    monkeypatch.setattr(build, "export_int8", export_int8)
    model.class_names = ["bird", "cat", "dog"]
    model.save_to_preset(tmp_path / "preset")
    command = ["demo", str(tmp_path / "preset"), str(tmp_path / "site"), "--runtime", str(runtime), "--int8"]
    assert "--int8 and --data DATA go together" in failed(capsys, *command)
    assert main([*command, "--data", str(write_photos(tmp_path / "photos"))]) == 0
    assert (tmp_path / "site" / "model.onnx").read_bytes() == b"8 bits"
    assert "top-1 of 6 validation images: 50.00%, as floats 50.00%" in capsys.readouterr().out


def test_what_is_no_page_is_not_replaced(model, runtime, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all")
    for name in ("mine", "mine/thesis.txt"):
        with pytest.raises(FileExistsError, match="no such page"):
            write_demo(model, tmp_path / name, runtime=runtime, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all"


def test_where_the_runtime_is_found(runtime, tmp_path):
    archive = tmp_path / "onnxruntime-web-1.30.0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        for name in FILES:
            file.add(runtime / name, f"package/dist/{name}")
    package = tmp_path / "package"
    package.mkdir()
    runtime.rename(package / "dist")
    for source in (archive, package, package / "dist"):
        assert runtime_files(source) == FILES


def test_npm_fetches_the_runtime_once(runtime, tmp_path, monkeypatch):
    calls = []

    def fetch():
        calls.append(1)
        return dict(FILES)

    monkeypatch.setattr(build, "_fetch_runtime", fetch)
    assert runtime_files() == runtime_files() == FILES
    assert len(calls) == 1
    (kept,) = (tmp_path / "cache").iterdir()
    (kept / "ort.wasm.bundle.min.mjs").write_bytes(b"changed")
    with pytest.raises(DemoError, match="SHA-256"):
        runtime_files()


@pytest.mark.parametrize("kind", ["absent", "another", "cut", "no archive", "empty"])
def test_another_runtime(kind, runtime, tmp_path):
    source, expected = runtime, "has no ort-wasm-simd-threaded.wasm: it must be onnxruntime-web@1.30.0"
    if kind == "absent":
        (runtime / "ort-wasm-simd-threaded.wasm").unlink()
    elif kind == "another":
        (runtime / "ort-wasm-simd-threaded.wasm").write_bytes(b"1.29")
        expected = "not that of onnxruntime-web@1.30.0, or is damaged"
    else:
        source, expected = tmp_path / "runtime.tgz", "is no archive of onnxruntime-web@1.30.0"
        with tarfile.open(source, "w:gz") as file:
            file.add(runtime, "package")
        content = source.read_bytes()
        source.write_bytes({"cut": content[:60], "no archive": b"text", "empty": b""}[kind])
    with pytest.raises(DemoError, match=expected):
        runtime_files(source)


def test_without_npm(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(DemoError, match="npm pack onnxruntime-web@1.30.0, then --runtime onnxruntime-web-1.30.0.tgz"):
        runtime_files()


def failed(capsys, *arguments):
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_command(model, runtime, photo, tmp_path, capsys):
    model.save_to_preset(tmp_path / "preset")
    arguments = ["demo", str(tmp_path / "preset"), str(tmp_path / "site"), "--runtime", str(runtime)]
    assert main([*arguments, "--samples", str(photo)]) == 0
    assert "python -m http.server --directory" in capsys.readouterr().out
    assert "--overwrite" in failed(capsys, *arguments)
    (tmp_path / "notes.txt").write_text("no photo")
    assert "cannot identify" in failed(capsys, *arguments, "--overwrite", "--samples", str(tmp_path / "notes.txt"))
    assert (tmp_path / "site" / "mine & yours.jpg").is_file()
    assert "absent.jpg" in failed(capsys, *arguments, "--overwrite", "--samples", "absent.jpg")
