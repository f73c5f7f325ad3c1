"""Published compressors: a server on this machine stands for CompressAI's."""

import hashlib
import http.server
import threading

import keras
import numpy as np
import pytest
import torch

from keras_ci2p import CI2PViT, Compressor
from keras_ci2p.convert import DownloadError, compressai, to_compressai, zoo_names
from keras_ci2p.convert.compressai import fetch
from keras_ci2p.names import ZOO_FILES

NAME = "bmshj2018-factorized-mse-5"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The bytes of a checkpoint, and the compressor in it."""
    keras.utils.set_random_seed(1)
    compressor = Compressor("bmshj2018-factorized", quality=5)
    path = tmp_path_factory.mktemp("published") / "checkpoint.pth.tar"
    torch.save({key: torch.tensor(value) for key, value in to_compressai(compressor).items()}, path)
    return path.read_bytes(), compressor


@pytest.fixture
def server(published, tmp_path, monkeypatch):
    content, _ = published

    class Handler(http.server.BaseHTTPRequestHandler):
        status, body, length = 200, content, len(content)
        requests = []

        def do_GET(self):
            type(self).requests.append(self.path)
            self.send_response(self.status)
            self.send_header("Content-Length", str(self.length))
            self.end_headers()
            self.wfile.write(self.body)

        def log_message(self, *args):
            pass

    Handler.requests = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.sha256(content).hexdigest()[:8]
    stem, digits = ZOO_FILES["bmshj2018-factorized", "mse"]
    digits = " ".join([*digits.split()[:4], digest, *digits.split()[5:]])
    monkeypatch.setitem(ZOO_FILES, ("bmshj2018-factorized", "mse"), (stem, digits))
    monkeypatch.setattr(compressai, "ADDRESS", f"http://127.0.0.1:{server.server_port}/models")
    monkeypatch.setenv("KERAS_CI2P_CACHE", str(tmp_path / "cache"))
    Handler.file = f"{stem}-5-{digest}.pth.tar"
    Handler.cache = tmp_path / "cache"
    yield Handler
    server.shutdown()
    server.server_close()


def left_behind(server):
    return [path.name for path in server.cache.rglob("*")] if server.cache.exists() else []


def test_names():
    names = zoo_names()
    assert len(names) == len(set(names)) == 88
    assert {"bmshj2018-factorized-ms-ssim-1", "mbt2018-mean-mse-8", "cheng2020-attn-mse-6"} <= set(names)
    assert ZOO_FILES["bmshj2018-factorized", "mse"][1].split()[4] == "866ba797"


def test_downloaded_once(server, published):
    compressor = Compressor.from_preset(NAME)
    assert server.requests == [f"/models/{server.file}"]
    assert compressor.quality == 5 and compressor.origin["name"] == NAME
    for stored, given in zip(compressor.weights, published[1].weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(stored), keras.ops.convert_to_numpy(given))
    Compressor.from_preset(NAME)
    assert len(server.requests) == 1
    model = CI2PViT.from_preset("ci2p_vit_base", load_weights=False, compressor=NAME)
    assert not model.compressor.is_randomly_initialized and model.compressor.origin["name"] == NAME
    assert len(server.requests) == 1


def test_put_there_by_hand(server, published):
    server.cache.mkdir()
    (server.cache / server.file).write_bytes(published[0])
    assert Compressor.from_preset(NAME).quality == 5
    assert not server.requests


def test_wrong_hash(server):
    server.body = server.body[:-1] + bytes([server.body[-1] ^ 1])
    with pytest.raises(DownloadError, match="not the published file"):
        Compressor.from_preset(NAME)
    assert not left_behind(server)


def test_wrong_file_by_hand(server):
    server.cache.mkdir()
    (server.cache / server.file).write_bytes(b"something else")
    with pytest.raises(DownloadError, match="not the published file"):
        Compressor.from_preset(NAME)


def test_broken_off(server):
    server.body = server.body[: len(server.body) // 2]
    with pytest.raises(DownloadError, match="Put it there by hand.*SHA-256 must begin with"):
        Compressor.from_preset(NAME)
    assert not left_behind(server)


def test_not_found_and_no_network(server, monkeypatch):
    server.status = 404
    with pytest.raises(DownloadError, match="404.*by hand"):
        Compressor.from_preset(NAME)
    monkeypatch.setattr(compressai, "ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot be downloaded.*by hand"):
        Compressor.from_preset(NAME)
    assert not left_behind(server)


def test_two_processes_with_an_empty_cache_do_not_collide(server, published):
    """As under torchrun: each fetches, the directory is there from the first end on, and stays what it is."""
    failures, first = [], threading.Event()

    def work():
        try:
            directory = fetch(NAME)
            first.set()
            Compressor.from_preset(directory)
        except Exception as error:
            failures.append(error)

    fetchers = [threading.Thread(target=work) for _ in range(3)]
    for fetcher in fetchers:
        fetcher.start()
    first.wait(60)
    written = (server.cache / NAME / "metadata.json").stat().st_ino
    for fetcher in fetchers:
        fetcher.join()
    assert not failures
    assert (server.cache / NAME / "metadata.json").stat().st_ino == written
    assert {path.name for path in server.cache.iterdir()} == {NAME, server.file}


def test_unknown_name():
    from keras_ci2p.presets import PresetError

    with pytest.raises(PresetError, match="Unknown preset"):
        Compressor.from_preset("bmshj2018-factorized-mse-9")
