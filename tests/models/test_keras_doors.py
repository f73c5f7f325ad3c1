"""Keras's own ways to save, copy, trace, train and export a model; their table is `docs/keras-doors.md`."""

import asyncio
import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import NANO, once
from nano_models import DUAL, PLAIN, assert_same_weights, our_model, to_numpy

from keras_ci2p import CI2PViT, CI2PViTDualScale, Compressor, ViT, layers
from keras_ci2p.layers.core import Dense

BACKEND = keras.backend.backend()
ON_TORCH = pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch's compilers and devices")
LABELS = np.array([0, 1, 2, 0])


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def hub_classifier(name, arguments):
    pytest.importorskip("keras_hub")
    from keras_ci2p import hub

    backbone = getattr(hub, f"{name}Backbone")(**arguments)
    return getattr(hub, f"{name}ImageClassifier")(backbone, num_classes=3, class_names=["cat", "dog", "owl"])


KINDS = {
    "ci2p": our_model,
    "dual": lambda: our_model(CI2PViTDualScale),
    "vit": lambda: ViT((64, 64, 3), num_classes=3, class_names=["cat", "dog", "owl"], **NANO),
    "compressor": lambda: Compressor(quality=None, channels=(8, 12)),
    "hub": lambda: hub_classifier("CI2PViT", PLAIN),
    "hub_dual": lambda: hub_classifier("CI2PViTDualScale", DUAL),
}
# For what another backend would only repeat with the other kinds.
FIRST = ["ci2p", *map(once, list(KINDS)[1:])]


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (4, 64, 64, 3)).astype("float32")


def outputs(model, images):
    return [to_numpy(output) for output in keras.tree.flatten(model(images))]


# === Files and copies ===


def keras_file(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def weights_file(model, path):
    model.save_weights(path / "model.weights.h5")
    other = type(model).from_config(model.get_config())
    other.load_weights(path / "model.weights.h5")
    return other


def from_json(model, path):
    other = keras.models.model_from_json(model.to_json())
    other.set_weights(model.get_weights())
    return other


def cloned(model, path):
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    return other


COPIES = [
    keras_file,
    weights_file,
    from_json,
    cloned,
    lambda model, path: pickle.loads(pickle.dumps(model)),
    lambda model, path: copy.deepcopy(model),
]


@pytest.mark.parametrize("kind", FIRST)
def test_copies(kind, images, tmp_path):
    model = KINDS[kind]()
    expected = outputs(model, images[:1])
    for make_copy in COPIES:
        other = make_copy(model, tmp_path)
        # Keras clones a functional model of whatever class as a plain one.
        if make_copy is not cloned:
            assert type(other) is type(model)
            assert getattr(other, "class_names", None) == getattr(model, "class_names", None)
        assert_same_weights(other, model)
        assert len(other.trainable_weights) == len(model.trainable_weights)
        for output, wanted in zip(outputs(other, images[:1]), expected, strict=True):
            np.testing.assert_array_equal(output, wanted)
        # Of its own weights.
        other.set_weights([weight + 1 for weight in other.get_weights()])
        np.testing.assert_array_equal(outputs(model, images[:1])[0], expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_summary(kind):
    model, lines = KINDS[kind](), []
    model.summary(expand_nested=True, show_trainable=True, print_fn=lambda line, **_: lines.append(line))
    assert f"{model.count_params():,}" in "\n".join(lines)


# === Training, once compiled ===


class Tracker(keras.callbacks.Callback):
    """What services that record experiments ask a model for."""

    def on_train_begin(self, logs=None):
        self.config = json.loads(self.model.to_json())
        self.optimizer = json.dumps(self.model.optimizer.get_config())
        self.graph = [(layer.name, layer.output.shape, layer.count_params()) for layer in self.model.layers]

    def on_epoch_end(self, epoch, logs=None):
        self.logs = dict(logs)
        self.histograms = {weight.path: np.histogram(to_numpy(weight)) for weight in self.model.trainable_weights}


def test_fit(images, tmp_path):
    """In steps of several batches, compiled by XLA, inside an event loop, and what is recorded meanwhile."""
    model = our_model()
    compiled = {} if BACKEND == "torch" else {"steps_per_execution": 2, "jit_compile": True}
    model.compile("adam", loss(), metrics=["accuracy"], **compiled)
    tracker, checkpoint = Tracker(), keras.callbacks.ModelCheckpoint(tmp_path / "last.keras")

    async def notebook():
        await asyncio.sleep(0)
        return model.fit(images, LABELS, batch_size=2, callbacks=[tracker, checkpoint], verbose=0)

    history = asyncio.run(notebook()).history
    assert np.isfinite(history["loss"]).all() and tracker.logs["loss"] == history["loss"][0]
    assert tracker.config["class_name"] == "CI2PViT" and [name for name, *_ in tracker.graph][-1] == "head"
    assert len(tracker.histograms) == len(model.trainable_weights)

    # Several threads; under JAX `predict` takes the weights from the variables meanwhile, of any model.
    predict = (lambda _: to_numpy(model(images))) if BACKEND == "jax" else lambda _: model.predict(images, verbose=0)
    expected = predict(0)
    with ThreadPoolExecutor(4) as pool:
        for logits in pool.map(predict, range(8)):
            np.testing.assert_array_equal(logits, expected)

    for other in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        keras.saving.load_model(tmp_path / "last.keras"),
    ):
        assert int(other.optimizer.iterations) == int(model.optimizer.iterations) == 2
        assert_same_weights(other, model)
        for ours, theirs in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


def one_step(images, run_eagerly=False, drop_path_rate=0.0, **arguments):
    keras.utils.set_random_seed(0)
    model = our_model(drop_path_rate=drop_path_rate, freeze_compressor=False, **arguments)
    model.compile(keras.optimizers.SGD(0.1), loss(), run_eagerly=run_eagerly)
    return model, model.train_on_batch(images, LABELS)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras traces `training`, so that its own BatchNormalization fails too")
@pytest.mark.parametrize("model_class", [once(CI2PViT), CI2PViTDualScale])
def test_rematerialization(model_class, images):
    # In a graph of TensorFlow Keras's own BatchNormalization fails too.
    arguments = {"model_class": model_class, "run_eagerly": BACKEND == "tensorflow"}
    rate = 0.5 if BACKEND == "torch" else 0.0
    model, expected_loss = one_step(images, drop_path_rate=rate, **arguments)
    with keras.RematScope(mode="full"):
        other, other_loss = one_step(images, drop_path_rate=rate, **arguments)
    np.testing.assert_allclose(other_loss, expected_loss, rtol=1e-5)
    # On torch moving statistics and states of random generators too, which TensorFlow changes twice.
    which = "variables" if BACKEND == "torch" else "trainable_weights"
    for weight, expected in zip(getattr(other, which), getattr(model, which), strict=True):
        np.testing.assert_allclose(to_numpy(weight), to_numpy(expected), atol=1e-5, err_msg=expected.path)


# Layers that draw random numbers or count what they have seen, and the shape that they take.
CHANGING = {
    "drop_path": (lambda: layers.DropPath(0.5), (4, 6, 8)),
    "block": (lambda: layers.TransformerBlock(2, 16, drop_path_rate=0.5), (4, 6, 8)),
    "leff": (lambda: layers.LeFFBlock(2, 16, (2, 3), drop_path_rate=0.5), (4, 6, 8)),
    "inverted_residual": (lambda: layers.InvertedResidual(8, 16, 3), (4, 6, 6, 8)),
    "noise": (lambda: layers.EntropyBottleneck(), (4, 6, 6, 8)),
    "augmentation": (lambda: layers.BatchAugmentation((8, 8)), (4, 8, 8, 3)),
}


@ON_TORCH
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", CHANGING)
def test_layers_computed_once_more(kind, reentrant, rng):
    """By PyTorch's `checkpoint`, in each of two calls, whose gradients are then taken from the last to the first."""
    import torch
    from torch.utils.checkpoint import checkpoint

    make_layer, shape = CHANGING[kind]
    layer, values = make_layer(), rng.uniform(0, 8, shape).astype("float32")
    frames = {
        "warp": torch.tensor([[[1.0, 0, 0], [0, 1, 0]]] * 4),
        "erase": torch.tensor([[0, 0, 4, 4]] * 4, dtype=torch.int32),
    }

    def call(x):
        outputs = layer({"images": x, **frames} if kind == "augmentation" else x, training=True)
        return outputs[0] if kind == "noise" else outputs

    def step(call):
        x = torch.tensor(values, requires_grad=True)
        weights = [x, *(weight.value for weight in layer.trainable_weights)]
        losses = [factor * (call(x) ** 2).sum() for factor in (1, 2)]
        for loss in reversed(losses):
            loss.backward()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            weight.grad = None
        return [to_numpy(value).copy() for value in (*losses, *gradients, *layer.variables)]

    call(torch.tensor(values))
    before = [to_numpy(variable).copy() for variable in layer.variables]
    expected = step(call)
    for variable, value in zip(layer.variables, before, strict=True):
        variable.assign(value)
    found = step(lambda x: checkpoint(call, x, use_reentrant=reentrant))
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@ON_TORCH
def test_other_numbers_for_the_gradient_are_refused():
    import torch
    from torch.utils.checkpoint import checkpoint

    # Not seeded as other tests are, whose draws are remembered.
    torch.manual_seed(987_654_321)
    x = torch.ones((4, 6, 8), requires_grad=True)
    drop_path = layers.DropPath(0.5)
    result = checkpoint(lambda x: drop_path(x, training=True) * x, x, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="preserve_rng_state"):
        result.sum().backward()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="torch draws the same, JAX fails")
def test_rematerialization_warns_where_it_draws_anew():
    with keras.RematScope("full"), pytest.warns(UserWarning, match="drop_path_rate=0"):
        our_model(drop_path_rate=0.5)
    with keras.RematScope("full"), warnings.catch_warnings():
        warnings.simplefilter("error")
        our_model(drop_path_rate=0.0)


@pytest.mark.once
def test_lora(images, tmp_path):
    model = our_model()
    expected = outputs(model, images)[0]
    block = model.get_layer("block_0")
    for layer in (block.qkv, block.mlp_output):
        layer.enable_lora(2)
    np.testing.assert_allclose(outputs(model, images)[0], expected, atol=1e-6)
    before = to_numpy(block.qkv._kernel)
    model.compile(keras.optimizers.SGD(1.0), loss())
    model.train_on_batch(images, LABELS)
    np.testing.assert_array_equal(to_numpy(block.qkv._kernel), before)
    assert to_numpy(block.qkv.lora_kernel_b).any()
    loaded = keras_file(model, tmp_path)
    np.testing.assert_allclose(outputs(loaded, images)[0], outputs(model, images)[0], atol=1e-5)


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantize(kind, images):
    model = KINDS[kind]()
    expected = outputs(model, images)[0]
    model.quantize("int8")
    products = {layer.path for layer in model._flatten_layers() if isinstance(layer, Dense)}
    assert {layer.path for layer in model._flatten_layers() if layer.quantization_mode} == products
    assert len(products) == (0 if kind == "compressor" else 4 * NANO["num_layers"])
    difference = np.abs(outputs(model, images)[0] - expected).max()
    assert difference < 0.1 * np.ptp(expected) and (difference > 0) == bool(products)


MODEL_PARALLEL = """
import keras, numpy as np
from nano_models import our_model
from test_keras_doors import one_step

images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype("float32")
_, expected = one_step(images)
mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), keras.distribution.list_devices("cpu"))
layout = keras.distribution.LayoutMap(mesh)
layout[".*(qkv|mlp_hidden)/kernel"] = (None, "model")
keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
model, loss = one_step(images)
kernel = model.get_layer("block_0").qkv.kernel.value
assert kernel.addressable_shards[0].data.shape == (32, 48), kernel.sharding
np.testing.assert_allclose(loss, expected, rtol=1e-5)
"""


@pytest.mark.skipif(BACKEND != "jax", reason="Keras has ModelParallel for JAX alone")
def test_model_parallel():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)}
    code = [sys.executable, "-c", MODEL_PARALLEL]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


# === Processes ===


# Neither a fork nor a new process depends on the backend, and JAX and TensorFlow do not bear the former.
@pytest.mark.once
def test_fork_and_spawn(images, tmp_path):
    model = our_model()
    expected = outputs(model, images)[0]

    def child():
        np.save(tmp_path / "forked.npy", model.predict(images, verbose=0))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode == 0
    np.testing.assert_allclose(np.load(tmp_path / "forked.npy"), expected, atol=1e-5)

    # A new process gets it as a pickle, and has not imported this package.
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, numpy as np\n"
        "model = pickle.load(open('model.pickle', 'rb'))\n"
        "np.save('spawned.npy', model.predict(np.load('images.npy'), verbose=0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "spawned.npy"), expected, atol=1e-5)


# Who holds what is the same on every backend.
@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_tried_models_are_let_go(kind, images):
    """Tuners build, clone, train and delete models by the hundred."""
    for _ in range(2):
        model = KINDS[kind]()
        other = keras.models.clone_model(model)
        if kind == "compressor":
            other.compile(lmbda=0.01)
            other.fit(images, verbose=0)
        else:
            other.compile("adam", loss())
            other.fit(images, LABELS, verbose=0)
        if kind == "ci2p":
            model.latent_classifier(model.compressor.encode(images))
        gone = [weakref.ref(model), weakref.ref(other)]
        del model, other
        # Collects what nobody refers to.
        keras.backend.clear_session()
        assert [reference() for reference in gone] == [None, None]


# === What PyTorch traces ===


@ON_TORCH
def test_compiled_for_any_size(rng, monkeypatch):
    """By `torch.compile`, up to the C++ that it would have compiled next, which takes long."""
    import torch
    from torch._inductor.graph import GraphLowering

    from keras_ci2p import backend

    class Lowered(Exception):
        pass

    def stop(self):
        raise Lowered("lowered")

    def block(images, depthwise, kernel, scale):
        images, *_ = backend.batch_norm(images, scale, scale, 1e-3)
        images = backend.depthwise_conv2d(images, depthwise, None, (1, 1), (1, 1))
        return backend.conv2d(images, kernel, None, (2, 2), (1, 1))

    monkeypatch.setattr(GraphLowering, "compile_to_module", stop)
    shapes = [(2, 8, 6, 16), (3, 3, 16, 1), (3, 3, 16, 8), (16,)]
    arguments = [torch.from_numpy(rng.normal(size=shape).astype("float32")).requires_grad_() for shape in shapes]
    for axis in range(3):
        torch._dynamo.mark_dynamic(arguments[0], axis)
    with pytest.raises(Exception, match="lowered"):
        torch.compile(block)(*arguments)


@ON_TORCH
def test_no_float64(images):
    """Apple's GPUs have none: neither models nor training may make a tensor of it, not even to cast it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in keras.tree.flatten((args, kwargs, result)):
                assert "float64" not in str(getattr(tensor, "dtype", "")), function
            return result

    from keras_ci2p.export import fold_batch_norm

    with NoFloat64():
        for kind in ("ci2p", "dual", "vit"):
            model = KINDS[kind]()
            model.compile("adam", loss())
            model.fit(images, LABELS, verbose=0)
            fold_batch_norm(model).predict(images, verbose=0)
        compressor = KINDS["compressor"]()
        compressor.compile(lmbda=0.01)
        compressor.fit(images, verbose=0)


# === Export ===


def run_onnx(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda images: session.run(None, {"images": images})[0]


def run_torch(path):
    import torch

    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def run_saved_model(path):
    import tensorflow

    loaded = tensorflow.saved_model.load(str(path))
    return lambda images: loaded.serve(images).numpy()


def run_litert(path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    return lambda images: next(iter(interpreter.get_signature_runner()(images=images).values()))


# What Keras's own `export` writes, by backend: format, file, how it is run, batch size, classes.
EXPORTS = {
    "torch": [("onnx", "m.onnx", run_onnx, 4, ("ci2p", "dual", "vit")), ("torch", "m.pt2", run_torch, 1, ("ci2p",))],
    "tensorflow": [
        ("tf_saved_model", "m", run_saved_model, 4, ("hub",)),
        ("litert", "m.tflite", run_litert, 1, ("ci2p",)),
    ],
    "jax": [("tf_saved_model", "m", run_saved_model, 4, ("ci2p",))],
}


@pytest.mark.parametrize(
    ("kind", "format", "file", "run", "batch_size"),
    [(kind, *how) for *how, kinds in EXPORTS[BACKEND] for kind in kinds],
)
def test_export(kind, format, file, run, batch_size, images, tmp_path):
    model = KINDS[kind]()
    images = images[:batch_size]
    expected = outputs(model, images)[0]
    model.export(tmp_path / file, format=format, verbose=False)
    np.testing.assert_allclose(run(tmp_path / file)(images), expected, atol=1e-4)
