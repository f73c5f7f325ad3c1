"""Writes the page: model, runtime and samples beside it, or all in one file."""

import base64
import gzip
import hashlib
import io
import json
import mimetypes
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from PIL import Image

from keras_ci2p.data.manifest import ImageManifest
from keras_ci2p.data.transforms import load_image
from keras_ci2p.export.export import ExportReport, export
from keras_ci2p.export.formats import ATTENTION, model_metadata
from keras_ci2p.export.int8 import Int8Report, export_int8
from keras_ci2p.models.image_classifier import ImageClassifier
from keras_ci2p.utils import PathLike, atomic_directory, cache_directory, is_empty, listed, user_path, write_bytes

# ONNX Runtime Web (MIT), of npm: its module for WebAssembly alone, and the WebAssembly, with their SHA-256.
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
# Seconds for npm to fetch it.
_TIMEOUT = 300
# Samples are shown small, and models see less.
_SAMPLE_SIZE = 1024


class DemoError(ValueError):
    """A page that cannot be written.

    Examples:
        >>> issubclass(keras_ci2p.export.DemoError, ValueError)
        True
    """


def write_demo(
    model: ImageClassifier,
    destination: PathLike,
    name: str | None = None,
    samples: Iterable[PathLike] | None = None,
    runtime: PathLike | None = None,
    overwrite: bool = False,
    int8_data: ImageManifest | PathLike | None = None,
) -> ExportReport | Int8Report:
    """Writes a web page that runs a classifier in the browser: a photo is chosen or dropped, and never sent anywhere.

    The page shows the part of the photo that the model sees, where it looks, and the five most probable classes. A
    photo is cut as `keras_ci2p.data.center_crop` does it, to the bit but for the browser's decoder.

    Args:
        model: A classifier as `export` takes it.
        destination: A directory, to be served by any server of static files (`python -m http.server`); or a file
            ending in .html, which holds all and opens by itself.
        name: What the page calls the model; None for its class.
        samples: Paths of photos to choose from, shown by their names; None for scikit-image's cat, where that package
            is installed.
        runtime: ONNX Runtime Web 1.30.0: its archive as `npm pack` writes it, or a directory that holds its two files;
            None for the copy in the cache directory, which npm fetches the first time.
        overwrite: Whether to replace a page at `destination`.
        int8_data: None for a model in floats; or the images by which it gets 8 bits, `data` of `export_int8`.

    Returns:
        The `ExportReport` of the model; in 8 bits an `Int8Report`.

    Raises:
        DemoError: The runtime cannot be had or is another one.
        FileExistsError: Something is at `destination`.
        OSError: A sample that is no image.
        ExportError, ImportError, ValueError: As `export` and `export_int8`.

    Examples:
        >>> model = keras_ci2p.load_preset("animals10")
        >>> keras_ci2p.export.write_demo(model, "animals.html")  # doctest: +SKIP
    """
    destination = user_path(destination)
    is_one_file = destination.suffix == ".html"
    _check_destination(destination, is_one_file, overwrite)
    files = {**runtime_files(runtime), **_read_samples(samples)}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "model.onnx")
        outputs = [model_metadata(model)["output"], ATTENTION]
        if int8_data is None:
            report = export(model, path, "onnx", outputs=outputs)
        else:
            report = export_int8(model, path, "onnx", int8_data, outputs=outputs)
        files["model.onnx"] = path.read_bytes()
    page = _page(model, name or type(model).__name__, files, is_one_file)
    if is_one_file:
        write_bytes(destination, page)
        return report
    with atomic_directory(destination) as temporary:
        for file, content in {"index.html": page, **files}.items():
            (temporary / file).write_bytes(content)
    return report


def _check_destination(destination, is_one_file, overwrite):
    if not destination.exists() or (not is_one_file and destination.is_dir() and is_empty(destination)):
        return
    if not overwrite:
        raise FileExistsError(f"{destination} exists already: choose another name, or overwrite it (--overwrite).")
    if not (destination.is_file() if is_one_file else (destination / "index.html").is_file()):
        raise FileExistsError(f"{destination} exists and is no such page; choose another name.")


def runtime_files(source=None):
    """Reads the two files of ONNX Runtime Web and checks them.

    Args:
        source: As `runtime` in `write_demo`.

    Returns:
        dict of file name to bytes.

    Raises:
        DemoError: They cannot be had, or differ from those of the version that this was tested with.
    """
    if source is not None:
        return _checked(user_path(source), _read_runtime(user_path(source)))
    kept = cache_directory() / RUNTIME.replace("@", "-")
    if all((kept / file).is_file() for file in RUNTIME_FILES):
        return _checked(kept, _read_runtime(kept))
    files = _checked(RUNTIME, _fetch_runtime())
    with atomic_directory(kept) as temporary:
        for file, content in files.items():
            (temporary / file).write_bytes(content)
    return files


def _fetch_runtime():
    npm, advice = shutil.which("npm"), f"npm pack {RUNTIME}, then --runtime {RUNTIME.replace('@', '-')}.tgz"
    if npm is None:
        raise DemoError(f"The page needs {RUNTIME}; npm, which would fetch it, is not installed. Elsewhere: {advice}")
    with tempfile.TemporaryDirectory() as directory:
        try:
            command = [npm, "pack", RUNTIME, "--silent"]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise DemoError(f"npm took over {_TIMEOUT} s to fetch {RUNTIME}. By hand: {advice}") from None
        archives = list(Path(directory).glob("*.tgz"))
        if done.returncode or not archives:
            raise DemoError(f"npm could not fetch {RUNTIME}: {done.stderr.strip() or 'no word why'}. By hand: {advice}")
        return _read_runtime(archives[0])


def _read_runtime(source):
    """The files, wherever they lie in an archive or a directory."""
    found = {}
    if source.is_dir():
        places = [directory / file for directory in (source, source / "dist") for file in RUNTIME_FILES]
        return {place.name: place.read_bytes() for place in places if place.is_file()}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                file = Path(member.name).name
                if member.isfile() and file in RUNTIME_FILES:
                    found[file] = archive.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DemoError(f"{source} is no archive of {RUNTIME}: {error}") from error
    return found


def _checked(source, files):
    for file, digest in RUNTIME_FILES.items():
        if file not in files:
            raise DemoError(f"{source} has no {file}: it must be {RUNTIME}, as `npm pack {RUNTIME}` gives it.")
        if hashlib.sha256(files[file]).hexdigest() != digest:
            raise DemoError(f"{file} in {source} is not that of {RUNTIME}, or is damaged: its SHA-256 differs.")
    return files


def _read_samples(paths):
    """Photos as JPEG files, by the names that they get beside the page."""
    if paths is None:
        try:
            from skimage import data
        except ImportError:
            return {}
        images = {"cat": Image.fromarray(data.chelsea())}
    else:
        images = {Path(path).stem: load_image(user_path(path)) for path in paths}
    return {f"{name}.jpg": _jpeg(image) for name, image in images.items()}


def _jpeg(image):
    image.thumbnail((_SAMPLE_SIZE, _SAMPLE_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _page(model, name, files, is_one_file):
    entries = model_metadata(model)
    classes = entries.get("class_names") or [str(index) for index in range(model.num_classes)]
    source = _data_url if is_one_file else lambda file, content: file
    code, wasm = (source(file, files[file]) for file in RUNTIME_FILES)
    samples = [file for file in files if file.endswith(".jpg")]
    config = {
        **{key: entries[key] for key in ("image_size", "crop", "output")},
        "class_names": classes,
        "grid_size": list(model.grid_size),
        "about": f"{name} knows {len(classes)} classes: {listed(classes)}. It runs here, in your browser.",
        "model": source("model.onnx", files["model.onnx"]),
        "runtime": {"code": code, "wasm": wasm},
        "samples": [{"name": Path(file).stem, "source": source(file, files[file])} for file in samples],
        "is_one_file": is_one_file,
    }
    # Within a script element nothing but its end tag ends it.
    parts = {"CONFIG": json.dumps(config).replace("</", "<\\/"), "STYLE": _text("demo.css"), "SCRIPT": _text("demo.js")}
    page = _text("index.html")
    for part, text in parts.items():
        page = page.replace(f"/*{part}*/", text)
    return page.encode()


def _text(file):
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _data_url(file, content):
    """Images as they are, all else gzipped: the browser unpacks it."""
    kind = mimetypes.guess_type(file)[0] or ""
    if not kind.startswith("image/"):
        # Without the time, so that the same model gives the same page. Level 9 takes twice as long for 1 % less.
        kind, content = "application/gzip", gzip.compress(content, compresslevel=6, mtime=0)
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
