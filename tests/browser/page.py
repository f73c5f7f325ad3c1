"""What the page shows for a photo, and what the package gives for it in Python."""

import base64
import functools
import http.server
import importlib
import io
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from skimage import data

import keras_ci2p
from keras_ci2p.data import center_crop, load_image
from keras_ci2p.export import open_exported, write_demo

int8 = importlib.import_module("keras_ci2p.export.int8")

PHONE = {"width": 390, "height": 844}
SCREEN = {"width": 1100, "height": 800}


@pytest.fixture(scope="module")
def model():
    return keras_ci2p.load_preset("animals10")


@pytest.fixture(scope="module")
def site(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "site"
    write_demo(model, path, name="animals10")
    return path


@pytest.fixture(scope="module")
def server(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens an address on a screen of some size, waits for the model; the page's errors and requests are recorded."""
    pages = []

    def open_page(address, size=SCREEN, **options):
        page = browser.new_page(viewport=size, **options)
        page.requests, page.errors = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(error))
        pages.append(page)
        page.goto(address)
        page.wait_for_function("!document.getElementById('status').textContent.startsWith('Loading')", timeout=120_000)
        return page

    yield open_page
    for page in pages:
        assert page.errors == []
        page.close()


@pytest.fixture
def page(open_page, server):
    return open_page(server)


def choose(page, name, content):
    """Gives the page a file, and returns what it says when it is done."""
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_function("!document.getElementById('status').textContent.startsWith('Looking')", timeout=60_000)
    return page.inner_text("#status")


def as_file(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cat():
    return Image.fromarray(data.chelsea())


def test_the_same_pixels_give_the_same(page, site):
    pixels = center_crop(cat(), tuple(page.evaluate("demo.config.image_size")))
    encoded = base64.b64encode(pixels.tobytes()).decode()
    found = page.evaluate(
        """async (encoded) => {
            const result = await demo.run(Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0)));
            return [Array.from(result.scores), Array.from(result.attention)];
        }""",
        encoded,
    )
    run = open_exported(site / "model.onnx", "onnx", ["logits", "attention"])
    logits, attention = run(pixels[None].astype("float32"))
    np.testing.assert_allclose(found[0], logits[0], atol=1e-3)
    np.testing.assert_allclose(found[1], attention.ravel(), atol=1e-3)


@pytest.fixture(scope="module")
def one_file(model, site, tmp_path_factory):
    """`(path, Int8Report)` of a page that is one file, of 8 bits."""
    directory = tmp_path_factory.mktemp("one")
    for i, name in enumerate(model.class_names):
        for split, count in (("train", 3), ("val", 1)):
            photos = directory / "photos" / split / name
            photos.mkdir(parents=True)
            for j in range(count):
                cat().crop((7 * i, 5 * j + 9 * (split == "val"), 300 + 7 * i, 250)).save(photos / f"{j}.png")
    with pytest.MonkeyPatch.context() as monkeypatch:
        # The float file is there already.
        monkeypatch.setattr(int8, "export", lambda model, path, *_, **__: shutil.copy(site / "model.onnx", path))
        # All are cats, and top-1 means nothing.
        monkeypatch.setattr(int8, "MOST_LOSS", 1)
        report = write_demo(model, directory / "page.html", name="animals10", int8_data=directory / "photos")
    return directory / "page.html", report


def test_8_bits(model, open_page, one_file):
    """WebAssembly multiplies 8-bit numbers otherwise than a processor with VNNI."""
    path, report = one_file
    assert report.num_bytes < 0.4 * report.float_bytes
    page = open_page(path.as_uri())
    assert choose(page, "cat.png", as_file(cat())).startswith("cat.png: cat, ")
    shown = float(page.inner_text("#status").split(", ")[1].split(" %")[0])
    assert shown == pytest.approx(100 * dict(model.classify(cat()))["cat"], abs=5)


def files():
    photo = cat()
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = photo.convert("RGBA")
    transparent.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, photo.width).astype("uint8"), (photo.height, 1))))
    return {
        "a.png": as_file(photo),
        "a.jpg": as_file(photo, "JPEG", quality=90),
        "a.webp": as_file(photo, "WEBP", quality=90),
        "turned.jpg": as_file(photo.rotate(90, expand=True), "JPEG", quality=95, exif=turned),
        "grey.png": as_file(photo.convert("L")),
        "transparent.png": as_file(transparent),
        "large.jpg": as_file(photo.resize((photo.width * 6, photo.height * 6)), "JPEG", quality=90),
        "tiny.png": as_file(photo.resize((40, 27))),
        "tall.png": as_file(photo.crop((150, 0, 300, 300))),
    }


@pytest.mark.parametrize("name", files())
def test_the_same_file_gives_the_same_class(page, model, name):
    content = files()[name]
    assert choose(page, name, content).startswith(f"{name}: ")
    found = page.eval_on_selector_all("#classes .name", "rows => rows.map(row => row.innerText.split('\\n'))")
    found = [(kind, float(share.rstrip(" %"))) for kind, share in found]
    with io.BytesIO(content) as file:
        expected = model.classify(load_image(file))
    assert [found[0][0], len(found)] == [expected[0][0], 5]
    shares = dict(expected)
    for kind, share in found[:1]:
        assert share == pytest.approx(100 * shares[kind], abs=3)


def test_bytes_are_pillows(page):
    """The crop, where the browser has nothing to decode but what Pillow decodes alike."""
    for image in (cat(), cat().resize((640, 480)), cat().resize((100, 300))):
        page.evaluate("async (url) => { window.blob = await (await fetch(url)).blob(); }", url_of(as_file(image)))
        found = page.evaluate("async () => Array.from((await demo.classify(window.blob)).pixels)")
        expected = center_crop(image, tuple(page.evaluate("demo.config.image_size"))).astype(int)
        assert np.max(np.abs(np.reshape(found, expected.shape) - expected)) <= 1


def url_of(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("content", [b"", b"no photo", as_file(Image.new("RGB", (9, 9)))[:40]])
def test_what_is_no_photo_gets_a_sentence(page, content):
    said = choose(page, "notes.png", content)
    assert said.startswith("notes.png cannot be read as a photo: choose a JPEG")
    assert page.eval_on_selector("#status", "node => node.getAttribute('role')") == "status"
    assert choose(page, "a.png", as_file(cat())).startswith("a.png: cat, ")


def test_by_the_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result:not([hidden])")
    assert page.inner_text("#status").startswith("cat: cat, ")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "attention"
    with_attention = page.evaluate("document.getElementById('photo').toDataURL()")
    page.keyboard.press("Space")
    assert page.evaluate("document.getElementById('photo').toDataURL()") != with_attention


def test_what_a_reader_of_the_screen_is_told(page):
    page.click("#samples button")
    page.wait_for_selector("#result:not([hidden])")
    told = page.locator("body").aria_snapshot()
    for part in (
        'heading "What is in this photo?"',
        'button "Choose a photo"',
        'group "Samples"',
        'button "cat"',
        "status: ",
        'img "The part of the photo that the model sees"',
        'checkbox "where the model looks"',
        'list "Classes by probability"',
    ):
        assert part in told, told


def test_a_photo_is_dropped(page):
    page.evaluate(
        """async (url) => {
            const blob = await (await fetch(url)).blob();
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }""",
        url_of(as_file(cat())),
    )
    page.wait_for_selector("#result:not([hidden])")
    assert page.inner_text("#status").startswith("dropped.png: cat, ")


@pytest.mark.parametrize("size", [PHONE, SCREEN])
def test_nothing_hangs_over_the_edge_and_nothing_is_asked_of_others(open_page, server, size):
    page = open_page(server, size)
    page.click("#samples button")
    page.wait_for_selector("#result:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(address.startswith((server, f"blob:{server}")) for address in page.requests)
    if "SHOTS" in os.environ:
        name = "demo-phone.png" if size is PHONE else "demo.png"
        page.screenshot(path=Path(os.environ["SHOTS"]) / name, full_page=True)


def test_one_file_opens_by_itself(open_page, one_file):
    page = open_page(one_file[0].as_uri())
    page.click("#samples button")
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
    assert page.inner_text("#status").startswith("cat: cat, ")
    assert {address.partition(":")[0] for address in page.requests} == {"file", "blob"}


def test_a_directory_opened_as_a_file_says_what_to_do(open_page, site):
    page = open_page((site / "index.html").as_uri())
    assert "python -m http.server" in page.inner_text("#status")
