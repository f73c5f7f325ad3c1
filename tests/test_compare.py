"""The parts of `keras-ci2p compare`, on the backend of this process."""

import copy
import subprocess

import keras
import numpy as np
import pytest
from PIL import Image

from keras_ci2p import CI2PViT, ViT, backend
from keras_ci2p.backend import arithmetic, peak_device_memory, peak_memory
from keras_ci2p.compare import BatchLoss, CompareConfig, _compared, compare, make_images, measure, table
from keras_ci2p.data import DataError
from keras_ci2p.flops import count_parameters
from keras_ci2p.plots import plot_comparison

# The same on every backend, but for what is marked.
pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "wrong",
    [{"backends": ()}, {"backends": ("torch", "torch")}, {"backends": ("numpy",)}, {"model": "x"}, {"steps": 2}],
)
def test_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .* Received"):
        CompareConfig(**wrong)


def test_synthetic_pictures():
    settings = CompareConfig(image_size=128, batch_size=2, steps=3)
    pictures = make_images(settings)
    assert pictures["images"].shape == (3, 2, 128, 128, 3) and pictures["images"].dtype == "uint8"
    assert pictures["held_out"].shape == (2, 128, 128, 3)
    np.testing.assert_array_equal(pictures["labels"].sum(-1), np.ones((3, 2)))
    again = make_images(settings)
    assert all((pictures[key] == again[key]).all() for key in pictures)
    # Neighbours are alike, pictures are not.
    images = pictures["images"].astype("float32")
    assert np.abs(np.diff(images, axis=2)).mean() < 0.15 * images.std()
    assert np.abs(images[0, 0] - images[0, 1]).mean() > 20


def test_photos(photos):
    settings = CompareConfig(image_size=32, batch_size=4, steps=8, data=str(photos))
    pictures = make_images(settings)
    assert pictures["images"].shape == (8, 4, 32, 32, 3) and pictures["labels"].shape == (8, 4, 3)
    # More steps than an epoch has: the photos come again, augmented anew.
    assert len({image.tobytes() for image in pictures["images"].reshape(-1, 32 * 32 * 3)}) > 24
    again = make_images(settings)
    assert (pictures["images"] == again["images"]).all() and (pictures["held_out"] == again["held_out"]).all()
    with pytest.raises(DataError, match="fewer than a batch"):
        make_images(CompareConfig(image_size=32, batch_size=25, data=str(photos)))


@pytest.fixture
def one_thread():
    """On torch, whose threads wait for each other: slow where others compute too."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.every_backend
def test_measure(nano, tmp_path, one_thread):
    model = ViT((32, 32, 3), num_classes=4, drop_path_rate=0.0, **{**nano, "num_layers": 1})
    model.save_to_preset(tmp_path / "model")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 2, 32, 32, 3)).astype("uint8")
    labels = np.eye(4, dtype="float32")[rng.integers(0, 4, (3, 2))]
    np.savez(tmp_path / "pictures.npz", images=images, labels=labels, held_out=images[0])
    result = measure(tmp_path, "vit", "float32")
    logits = model.predict(images[0].astype("float32"), verbose=0)
    np.testing.assert_allclose(result["logits"], logits, atol=1e-5)
    assert len(result["losses"]) == len(result["seconds"]) == 3
    # Of the first step, before anything has changed.
    smoothed = 0.9 * labels[0] + 0.1 / 4
    expected = -(smoothed * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum(-1).mean()
    assert abs(result["losses"][0] - expected) < 1e-5
    assert result["backend"] == keras.backend.backend() and result["threads"] >= 1
    assert 0 < result["memory"]["imported"] <= result["memory"]["peak"]


@pytest.mark.every_backend
def test_parameters_are_those_of_the_paper():
    with keras.StatelessScope(initialize_variables=False):
        assert count_parameters(CI2PViT()) == 88_964_010


@pytest.mark.every_backend
def test_batch_loss_is_of_the_last_batch():
    metric, targets = BatchLoss(), np.array([[0.0, 1.0]], "float32")
    metric.update_state(targets, np.array([[3.0, -3.0]], "float32"))
    metric.update_state(targets, np.array([[0.0, 0.0]], "float32"))
    assert abs(float(metric.result()) - np.log(2)) < 1e-6


def test_peak_memory_never_falls(monkeypatch, tmp_path):
    """Linux sums it from counters that lag."""
    status = tmp_path / "status"
    monkeypatch.setattr(backend, "_STATUS", status)
    monkeypatch.setattr(backend, "_peak_told", 0)
    told = []
    for kilobytes in (70, 50, 90):
        status.write_text(f"VmPeak: 100 kB\nVmHWM: {kilobytes} kB\n")
        told.append(peak_memory() // 1024)
    assert told == [70, 70, 90]


@pytest.mark.every_backend
def test_peak_memory_sees_an_array():
    before = peak_memory()
    array = np.ones(200 * 2**20, "uint8")
    assert peak_memory() >= before and peak_memory() >= array.nbytes
    assert peak_device_memory() is None or peak_device_memory() >= 0
    assert arithmetic()["float32_products"]


def report():
    def row(offset, seconds):
        return {
            "logits": [[0.0, 1.0 + offset]],
            "losses": [2.0, 1.5, 1.0 + 2 * offset],
            "seconds": [9.0, seconds, 3 * seconds],
            "memory": {"imported": 4e8, "peak": 1e9, "device_peak": None},
            "versions": {"torch": "1.2", "jax": "3.4", "tensorflow": None},
            "device": "a processor",
        }

    backends = {"torch": {"error": "not installed"}, "jax": row(0, 0.5), "tensorflow": row(1e-3, 2.0)}
    settings = CompareConfig(steps=3, batch_size=4).to_dict()
    return {"settings": settings, "parameters": 1_234_567, **_compared(backends, 4)}


def test_differences_are_to_the_first_that_works():
    result = report()
    assert result["reference"] == "jax"
    row = result["backends"]["tensorflow"]
    assert abs(row["logits_difference"] - 1e-3) < 1e-9 and abs(row["losses_difference"] - 2e-3) < 1e-9
    assert row["first_step"] == 9 and row["step"] == {"median": 4, "least": 2, "most": 6}
    assert row["images_per_second"]["most"] == 2
    assert result["backends"]["jax"]["logits_difference"] == 0


def test_table():
    lines = table(report()).splitlines()
    assert "1,234,567 parameters" in lines[0] and "a processor" in lines[0]
    rows = {line.split()[0]: line for line in lines[3:6]}
    assert rows["torch"].endswith("no result: not installed")
    assert rows["jax"].split()[1:4] == ["3.4", "9.00", "s"] and rows["jax"].split()[-2:] == ["-", "-"]
    assert rows["tensorflow"].split()[-2:] == ["1.0e-03", "2.0e-03"]
    assert "largest difference to jax" in lines[-1]


def test_figure(tmp_path):
    plot_comparison(tmp_path / "one.png", report())
    slower = copy.deepcopy(report())
    slower["backends"]["torch"] = slower["backends"]["jax"]
    plot_comparison(tmp_path / "two.png", slower)
    one, two = (np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("one.png", "two.png"))
    assert one.shape == two.shape and min(one.shape[:2]) > 300
    # The red of torch is only where it has a result.
    red = [(np.abs(image - (0xD1, 0x49, 0x5B)).sum(-1) < 10).sum() for image in (one, two)]
    assert red[0] == 0 < red[1]


def test_no_photos_no_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(DataError, match="There is no folder"):
        compare(CompareConfig(data=str(tmp_path / "absent")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
