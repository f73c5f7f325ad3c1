"""Exported files, run by their runtimes against the Keras model; what is refused, and that failure leaves nothing."""

import dataclasses
import importlib
import json
import subprocess

import keras
import numpy as np
import pytest
from test_fold_batch_norm import COMPRESSOR, models, trained

from keras_ci2p import Compressor, ViT
from keras_ci2p.codec import ImageCodec
from keras_ci2p.export import ExportError, export, open_exported, open_network
from keras_ci2p.export.formats import FILE_NAME, FORMATS, model_metadata, read_litert, writing_backend

exporter = importlib.import_module("keras_ci2p.export.export")

BACKEND = keras.backend.backend()
HERE = [name for name, form in FORMATS.items() if BACKEND in form.backends]
# Each model and each format where it is written, and a file of another backend, by a process of its own, whose start
# takes longer than the rest. The tests below write those that are not here.
CASES = {
    "torch": [("ci2p", "onnx"), ("vit", "tf_saved_model"), ("dual", "openvino"), ("vit", "torch")],
    "jax": [("ci2p", "onnx"), ("vit", "tf_saved_model")],
    "tensorflow": [("vit", "tf_saved_model")],
}[BACKEND]


def destination(directory, name):
    return directory / f"model{FORMATS[name].suffix or ''}"


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_exported_file_computes_the_same(kind, name, tmp_path, nano, rng):
    model = trained(models(nano)[kind](), rng)
    path = destination(tmp_path, name)
    report = export(model, path, name)

    assert report.backend == (BACKEND if name in HERE else FORMATS[name].backends[0])
    assert report.difference <= 1e-5
    assert list(tmp_path.iterdir()) == [path]
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    assert report.num_bytes == size > 4 * model.count_params() * 0.9

    # The others were run where they were written; TensorFlow and OpenVINO are not for a process of another framework.
    if name in HERE or name == "onnx":
        run = open_exported(path, name)
        images = rng.integers(0, 256, (8, 64, 64, 3)).astype("float32")
        logits = np.concatenate([run(batch) for batch in np.split(images, [1, 3])])
        np.testing.assert_allclose(logits, model.predict(images, verbose=0), atol=1e-5)
    if name == "onnx":
        check_onnx(path, report)
    if name == "tf_saved_model" and BACKEND == "tensorflow":
        import tensorflow as tf

        stored = dict(tf.train.list_variables(str(path / "variables/variables")))
        assert sum(int(np.prod(shape)) for shape in stored.values() if shape) == model.count_params()
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        named = signature(images=tf.constant(images))
        assert list(named) == ["logits"]
        np.testing.assert_allclose(named["logits"], logits, atol=1e-6)


@pytest.mark.once
def test_onnx_runtime_takes_the_cores_of_the_process(tmp_path, monkeypatch):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    shape = [1, 2, 2, 3]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "logits")]
    nodes = [helper.make_node("Identity", ["images"], ["logits"])]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "copy", ports[:1], ports[1:]), ir_version=10), tmp_path / "m.onnx"
    )
    open_session, threads = onnxruntime.InferenceSession, []

    def spy(path, options, **kwargs):
        threads.append(options.intra_op_num_threads)
        return open_session(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr("keras_ci2p.export.formats.num_cpus", lambda: 1)
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    np.testing.assert_array_equal(open_exported(tmp_path / "m.onnx", "onnx")(images), images)
    assert threads == [1]


ATTENTION_CASES = {
    "torch": [("ci2p", "onnx"), ("vit", "openvino"), ("dual", "torch")],
    "jax": [],
    "tensorflow": [("dual", "tf_saved_model"), ("ci2p", "litert")],
}[BACKEND]


@pytest.mark.parametrize(("kind", "name"), ATTENTION_CASES)
def test_attention(kind, name, tmp_path, nano, rng):
    """The attention rollout, laid on the grid of tokens, beside what the model gives without it."""
    model = trained(models(nano)[kind](), rng)
    path = destination(tmp_path, name)
    assert export(model, path, name, outputs=["attention", "logits"]).difference <= 1e-5
    if name not in HERE and name != "onnx":
        return
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype("float32")
    logits, attention = open_exported(path, name, ["logits", "attention"])(images)
    np.testing.assert_allclose(logits, model.predict(images, verbose=0), atol=1e-5)
    np.testing.assert_array_equal(open_exported(path, name)(images), logits)
    tokens = np.prod(model.grid_size)
    maps = np.mean(model.attention_maps(images), axis=2)
    expected = np.full((2, 1, tokens), 1 / tokens)
    for layer in reversed(range(maps.shape[1])):
        expected = expected @ (maps[:, layer] + np.eye(tokens)) / 2
    np.testing.assert_allclose(attention, tokens * expected.reshape(2, *model.grid_size), atol=1e-5)
    np.testing.assert_allclose(attention.mean(axis=(1, 2)), 1, atol=1e-5)
    if name == "onnx":
        assert open_network(path).metadata["grid_size"] == list(model.grid_size)


@pytest.mark.parametrize("outputs", [[], ["attention"], ["logits", "logits"], ["logits", "maps"]])
def test_outputs_that_there_are_not(outputs, tmp_path, vit):
    with pytest.raises(ValueError, match="must be 'logits', perhaps with 'attention'. Received: outputs="):
        export(vit, tmp_path / "model.onnx", "onnx", outputs=outputs)
    assert not list(tmp_path.iterdir())


def check_onnx(path, report):
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert report.opset == next(entry.version for entry in model.opset_import if not entry.domain)
    (images,), (logits,) = model.graph.input, model.graph.output
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, shape) == ("images", ["batch", 64, 64, 3])
    assert logits.name == "logits"
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    # Neither paths of the machine nor its source code.
    assert not [node for node in model.graph.node if node.metadata_props]


LATENT_CASES = [("ci2p", name) for name in HERE] + ([("dual", "onnx")] if BACKEND == "torch" else [])


@pytest.mark.parametrize(("kind", "name"), LATENT_CASES)
def test_the_classifier_after_the_compressor(kind, name, tmp_path, nano, rng):
    """On the latents of a compressed file, which need no analysis transform."""
    compressor = Compressor(quality=None, channels=(COMPRESSOR["num_filters"], COMPRESSOR["latent_channels"]))
    last = compressor.analysis.stages[-1]
    last.kernel.assign(100 * last.kernel)
    model = trained(models(nano)[kind](), rng)
    model.compressor.set_weights(compressor.analysis.get_weights())
    path = destination(tmp_path, name)
    report = export(model, path, name, input="latents")
    assert report.difference <= 1e-5
    weights = sum(int(np.prod(weight.shape)) for weight in model.compressor.weights)
    assert report.num_bytes < 4 * (model.count_params() - weights) + 2**19
    codec = ImageCodec(compressor)
    image = rng.integers(0, 256, (64, 64, 3)).astype("uint8")
    latents = codec.latents(codec.compress(image)).astype("float32").repeat(3, axis=0)
    run = open_exported(path, name)
    np.testing.assert_allclose(run(latents), model.latent_classifier.predict(latents, verbose=0), atol=1e-5)
    entries = {
        "onnx": lambda: open_network(path).metadata,
        "openvino": lambda: open_network(path).metadata,
        "litert": lambda: read_litert(path),
        "tf_saved_model": lambda: json.loads((path / FILE_NAME).read_text()),
        "torch": lambda: model_metadata(model, "latents"),
    }[name]()
    assert entries["input"] == "latents" and entries["latent_shape"] == [4, 4, 12]
    assert entries["compressor"]["fingerprint"] == compressor.analysis.weights_hash()
    assert entries["image_size"] == [64, 64] and "value_range" not in entries


def test_latents_of_a_model_without_a_compressor(tmp_path, nano):
    for kind, wrong in (("vit", "latents"), ("ci2p", "pixels")):
        with pytest.raises(ValueError, match=f"`input` must be one of images, latents.*input='{wrong}'"):
            export(models(nano)[kind](), tmp_path / "model.onnx", "onnx", input=wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND != "torch", reason="of torch's tracing")
def test_variables_of_others_may_wait_for_their_values(tmp_path, nano):
    with keras.StatelessScope(initialize_variables=False):
        keras.layers.Dropout(0.5)
    assert export(models(nano)["vit"](), tmp_path / "model.pt2", "torch").difference <= 1e-5
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def vit(nano):
    return models(nano)["vit"]()


@pytest.fixture
def written(monkeypatch):
    """In place of any writer: writes a few bytes and gives the logits that the test asks for."""
    error = {"error": 0.0, "models": []}

    def write_and_run(model, path, format, opset, entries, outputs, images):
        error["models"].append(model)
        target = path / FORMATS[format].main_file if FORMATS[format].main_file else path
        target.write_bytes(b"new")
        return [model.predict(images, verbose=0) + np.float32(error["error"])]

    monkeypatch.setattr(exporter, "write_and_run", write_and_run)
    monkeypatch.setattr(exporter, "writing_backend", lambda name: BACKEND)
    monkeypatch.setattr(exporter, "_onnx_opset", lambda path: 20)
    return error


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("error", [2e-4, np.nan])
def test_file_that_differs_is_not_kept(name, error, tmp_path, vit, written):
    written["error"] = error
    path = destination(tmp_path / "new", name)
    with pytest.raises(ExportError, match="differs from the model"):
        export(vit, path, name)
    assert not list(path.parent.iterdir())

    # What was there before stays.
    written["error"] = 0.0
    export(vit, path, name)
    kept = path / FORMATS[name].main_file if path.is_dir() else path
    kept.write_bytes(b"old")
    written["error"] = error
    with pytest.raises(ExportError, match="differs from the model"):
        export(vit, path, name, overwrite=True)
    assert kept.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]

    written["error"] = 5e-5
    assert export(vit, path, name, overwrite=True).difference == pytest.approx(5e-5, rel=1e-2)
    assert kept.read_bytes() == b"new"


def test_mixed_precision_is_exported_in_float32(tmp_path, nano, written, rng):
    model = models(nano)["vit"](dtype="mixed_bfloat16")
    exact = ViT.from_config({**model.get_config(), "dtype": "float32"})
    exact.set_weights(model.get_weights())
    export(model, tmp_path / "model.onnx", "onnx")
    (sent,) = written["models"]
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(sent.predict(images, verbose=0), exact.predict(images, verbose=0), atol=1e-6)


def test_writer_that_fails_leaves_nothing(tmp_path, vit, monkeypatch):
    def fail(*arguments):
        arguments[1].write_bytes(b"half")
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(exporter, "writing_backend", lambda name: BACKEND)
    monkeypatch.setattr(exporter, "write_and_run", fail)
    with pytest.raises(ExportError, match="could not write the model as onnx: no such operator$"):
        export(vit, tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_other_process_that_fails_is_quoted(tmp_path, vit, monkeypatch):
    commands = []

    def run(command, env, **kwargs):
        commands.append((command, env))
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="Traceback ...\nValueError: out of luck\n\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(exporter, "writing_backend", lambda name: "numpy")
    with pytest.raises(ExportError, match="numpy could not write the model as onnx: ValueError: out of luck"):
        export(vit, tmp_path / "model.onnx", "onnx")
    ((_, env),) = commands
    assert env["KERAS_BACKEND"] == "numpy"
    assert not list(tmp_path.iterdir())


def test_refused(tmp_path, vit, nano, written):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="`format` must be one of"):
        export(vit, path, "caffe")
    with pytest.raises(ValueError, match="ends in .tflite"):
        export(vit, path, "litert")
    with pytest.raises(ValueError, match="Only ONNX has an opset"):
        export(vit, tmp_path / "model.pt2", "torch", opset=20)
    with pytest.raises(ValueError, match="at least 18"):
        export(vit, path, "onnx", opset=17)
    with pytest.raises(ValueError, match="Received: model=<Functional"):
        export(keras.Model(vit.input, vit.output), path, "onnx")
    any_size = models(nano)["ci2p"]().from_config(
        {**models(nano)["ci2p"]().get_config(), "image_shape": (None, None, 3), "compressor": COMPRESSOR}
    )
    with pytest.raises(ValueError, match="fixed image size"):
        export(any_size, path, "onnx")
    quantised = models({**nano, "num_layers": 1})["vit"]()
    quantised.quantize("int8")
    with pytest.raises(ValueError, match="quantised model"):
        export(quantised, path, "onnx")

    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists already"):
        export(vit, path, "onnx")
    with pytest.raises(FileExistsError, match="is no model of format openvino"):
        export(vit, tmp_path, "openvino", overwrite=True)
    assert path.read_bytes() == b"mine"


def test_backend_that_writes(monkeypatch):
    installed = {"torch", "tensorflow", "openvino"}
    monkeypatch.setattr("keras_ci2p.export.formats._is_installed", lambda package: package in installed)
    expected = BACKEND if BACKEND != "jax" else "torch"
    assert writing_backend("openvino") == expected
    with pytest.raises(ImportError, match="onnx, onnxscript, onnxruntime.*keras_ci2p\\[export\\]"):
        writing_backend("onnx")
    installed.remove("torch")
    assert writing_backend("openvino") == "tensorflow"
    with pytest.raises(ImportError, match="written by torch, which is not installed.*keras_ci2p\\[torch\\]"):
        writing_backend("torch")


def test_report_is_plain(tmp_path, vit, written):
    report = export(vit, tmp_path / "model.onnx", "onnx")
    assert dataclasses.asdict(report) == {
        "format": "onnx",
        "backend": BACKEND,
        "opset": 20,
        "num_bytes": 3,
        "difference": 0.0,
    }
