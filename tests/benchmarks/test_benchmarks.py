"""Each benchmark of the models runs, on tiny ones, and writes what it says."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import forks
import keras
import numpy as np
import pytest
from conftest import NANO, write_photos
from PIL import Image

from keras_ci2p.flops import PartCount
from keras_ci2p.names import VARIANTS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.once


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a benchmark; `(its result, what it printed)`."""
    import torch

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    # Two threads that wait for each other are slow where others compute too.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("subprocess.run", forks.run)

    def run_benchmark(name, *arguments, written=None):
        script = str(BENCHMARKS / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, "--small", "--out", str(tmp_path), *arguments])
        runpy.run_path(script, run_name="__main__")
        result = tmp_path / (written or f"{name}-torch")
        said = capsys.readouterr().out
        if said.strip().endswith(".png"):
            with Image.open(result.with_suffix(".png")) as picture:
                assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 10
        return json.loads(result.with_suffix(".json").read_text()), said

    yield run_benchmark
    torch.set_num_threads(threads)


def test_train_step(run):
    result, printed = run("train_step", "--contestants", "CI2P-ViT base", "ViT-B/16")
    row, vit = result["contestants"].values()
    assert len(row["seconds"]) == 2 and row["first_step"] > 0
    assert row["less_work_than_vit"] == vit["training_macs"] / row["training_macs"]
    ratios = [b / a for a, b in zip(row["seconds"], vit["seconds"], strict=True)]
    assert row["times_as_fast_as_vit"]["most"] == max(ratios)
    memory = row["memory"]
    assert memory["peak"] == memory["imported"] + memory["resident"] + memory["rest"]
    # Weights twice, frozen ones once; and AdamW's two moments.
    assert 4 * row["parameters"] < memory["resident"] < 17 * row["parameters"]
    assert result["threads"] >= 1 and "| CI2P-ViT base |" in printed


def test_optimizations(run):
    result, printed = run("optimizations")
    cases = result["cases"]
    assert len(cases) == 5 + result["keeps_freed_memory"] and cases["as it is"]["of_as_it_is"]["median"] == 1
    assert all(row["seconds"]["least"] > 0 and f"| {case} |" in printed for case, row in cases.items())


def test_inference_of_all_contestants(run):
    result, printed = run("inference", "--no-memory")
    assert list(result["batch_sizes"]) == ["1", "2"]
    for rows in result["batch_sizes"].values():
        assert len(rows) == 7 and all(row["images_per_second"]["median"] > 0 for row in rows.values())
    assert printed.count("| timm ViT-B/16 |") == 2
    assert result["parameters"]["plain PyTorch CI2P-ViT"] == result["parameters"]["CI2P-ViT base"]


def test_roofline(run):
    result, printed = run("roofline")
    assert list(result["models"]) == ["CI2P-ViT base", "CI2P-ViT tiny"]
    for model in result["models"].values():
        training, prediction = model["training"], model["prediction"]
        assert list(training) == ["compressor", "patch_generator", "transformer", "optimizer", "whole"]
        assert training["whole"]["share"] == prediction["whole"]["share"] == 1 and 1 <= model["kept_rounds"] <= 2
        for rows in (training, prediction):
            parts = [row for name, row in rows.items() if name != "whole"]
            np.testing.assert_allclose(sum(row["gmacs"] for row in parts), rows["whole"]["gmacs"])
        # A frozen compressor is run forwards alone.
        assert training["compressor"]["gmacs"] == prediction["compressor"]["gmacs"]
        assert training["patch_generator"]["gmacs"] > 1.9 * prediction["patch_generator"]["gmacs"]
    assert printed.count("| patch generator |") == 2 and printed.count("Peak: ") == 2


def test_rounds_of_a_stalled_machine_are_thrown_away(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import roofline

    names = ["training step", "step on latents", "step of the patch generator", "optimizer", "prediction"]
    names += ["compressor", "prediction on latents", "patch generator", "input"]
    work = {name: PartCount(10**9, 0, 2 * 10**9) for name in ("compressor", "patch_generator", "transformer", "head")}
    contestant = SimpleNamespace(macs=SimpleNamespace(parts=work))
    seconds = {"probe": [1.0, 1.2, 1.3], **{name: [10.0, 20.0, 900.0] for name in names}}
    model = roofline.report(contestant, seconds, SimpleNamespace(probe_size=1000, batch_size=3))
    assert model["kept_rounds"] == 2 and model["training"]["whole"]["seconds"] == 15
    assert model["peak_gmacs_per_second"] == pytest.approx(1 / 1.1)
    # 4 parts of 2 GMAC, 3 images, in 15 s.
    assert model["training"]["whole"]["of_peak"] == pytest.approx(24 / 15 * 1.1)


@pytest.mark.every_backend
def test_an_optimizer_is_timed_between_training_steps(monkeypatch):
    """On JAX a training step gives away the arrays that it was given."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import roofline

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    step = roofline.optimizer_step(model)
    for _ in range(2):
        model.train_on_batch(np.ones((4, 3), "float32"), np.zeros((4, 2), "float32"))
        assert step() > 0


def test_scaling(run):
    result, printed = run("scaling", "--train", written="scaling_train-torch")
    names = ["CI2P-ViT base", "CI2P-ViT-ds base", "ViT-B/16"]
    assert list(result["by_size"]) == ["64", "96"] and list(result["by_batch"]) == ["1", "2"]
    for name in names:
        small, large = (result["by_size"][size][name] for size in ("64", "96"))
        assert 2.2 < large["macs"] / small["macs"] < 3, "of an image of 2.25 times the size"
        assert result["by_batch"]["2"][name]["macs"] == result["by_batch"]["1"][name]["macs"]
        assert large["seconds"]["median"] > 0
    assert printed.count("| 64 |") == 1 and f"| px | {' | '.join(names)} |" in printed


def test_teacher(run, monkeypatch, tmp_path):
    monkeypatch.setitem(VARIANTS, "nano", NANO)
    options = ["--variant", "nano", "--runs", str(tmp_path / "runs")]
    result, printed = run("teacher", *options, "--only", "vit", "ci2p-teacher")
    assert list(result["runs"]) == ["ci2p-teacher-0", "vit-0"] and "| vit-0 |" in printed
    # The others are added; what is finished is as it was.
    before, (result, printed) = result["runs"], run("teacher", *options)
    assert list(result["runs"]) == ["ci2p-0", "ci2p-teacher-0", "vit-0", "vit-teacher-0"]
    assert printed.count("Best validation top-1") == 2
    for name, row in result["runs"].items():
        assert row == before.get(name, row) and row["photos"] == 16
        assert row["epochs"] == 2 and row["top1"] == max(row["top1_by_epoch"])
        assert (row["teacher_top1"] is not None) == ("teacher" in name)
        assert (row["views"] is not None) == ("ci2p" in name)

    few = ["--photos", "6", "--seeds", "0", "1", "--only", "ci2p-teacher"]
    result, printed = run("teacher", *options, *few, written="teacher_6-torch")
    assert len(result["runs"]) == 2 and {row["photos"] for row in result["runs"].values()} == {6}
    assert "CI2P-ViT, teacher: mean of 2 seeds" in printed
    # Links, of each class alike.
    links = sorted((tmp_path / "runs" / "photos6" / "photos" / "train").glob("*/*"))
    assert [link.parent.name for link in links] == ["a"] * 3 + ["b"] * 3

    from teacher import shares

    assert shares([1743, 1343, 3968], 100) == [25, 19, 56] and shares([1000, 2], 10) == [9, 1]
    assert shares([3, 4], 100) == [3, 4]


def test_latents(run):
    result, printed = run("latents")
    for store in result["stores"].values():
        assert store["latents"] == 36 and store["bytes_per_latent"] > 0 and store["cached_per_second"] > 0
    gains = result["training"]["tiny"]["gain"]
    assert set(gains) == {"in_memory", "loaded"} and all(gain["least"] > 0 for gain in gains.values())
    assert all(result["loaders"][name] > 0 for name in ("pixels", *result["stores"])) and "rounded: {" in printed


def test_drop_in(run):
    result, printed = run("drop_in")
    before, after = result["models"].values()
    assert before["tokens"] == 1 + 16 and after["tokens"] == 1 + 4
    assert before["parameters"] == before["trained_parameters"] and after["parameters"] > after["trained_parameters"]
    for name, row in result["models"].items():
        assert len(row["loss_by_epoch"]) == 2 and row["top1"] == max(row["top1_by_epoch"]) and f"\n{name} " in printed
        assert all(len(speed["rounds"]) == 2 for speed in row["images_per_second"].values())


def test_compressed(run, tmp_path):
    result, printed = run("compressed", written="compressed")
    assert list(result) == ["rate", "accuracy", "speed", "promised"]
    assert all(f"\n{part}\n" in printed for part in result)
    rows = result["rate"]["sets"]["scikit-image"]["rows"]
    assert {".ci2p", "JPEG", "WebP", "AVIF"} == {row["format"] for row in rows}
    for kind in ("JPEG", "WebP", "AVIF"):
        rates = [(row["bpp"], row["psnr"]) for row in rows if row["format"] == kind]
        assert len(rates) == 5 and rates == sorted(rates, reverse=True)
    pixels, *others = result["accuracy"]["rows"]
    assert pixels["agree"] == 1 and all(row["bytes"] < pixels["bytes"] for row in others)
    assert 0 < result["promised"]["header_bytes"] < 100
    for part in ("rate", "accuracy"):
        assert (tmp_path / f"compressed_{part}.svg").read_text().count("<path") > 10


def test_input(run):
    result, _ = run("input", written="input")
    assert result["photos"] == 20 and all(step["median"] > 0 for step in result["steps_us"].values())
    assert all(speed["least"] > 0 for speed in result["one_core"].values()) and len(result["one_core"]) == 3
    assert all(result["cores"][kind]["1"]["least"] > 0 for kind in ("threads", "workers"))


def test_folder_scale(run):
    result, printed = run("folder_scale", written="folder_scale")
    assert [row["files"] for row in result["rows"]] == [100, 200] and "| 200 |" in printed
    assert all(row[step]["megabytes"] > 50 for row in result["rows"] for step in ("open", "open again", "first batch"))


def test_export(run, tmp_path):
    write_photos(tmp_path / "photos")
    result, printed = run("export", "--data", str(tmp_path / "photos"), written="export")
    names = ["Keras float32, torch", "Keras int8, torch", "onnx", "onnx, int8"]
    assert [row["name"] for row in result["rows"]] == names
    rows = dict(zip(names, result["rows"], strict=True))
    assert rows["onnx"]["top1"] == rows["Keras float32, torch"]["top1"]
    assert rows["onnx, int8"]["megabytes"] < rows["onnx"]["megabytes"]
    for row in rows.values():
        assert all(speed["least"] > 0 for speed in row["images_per_second"].values())
    assert rows["onnx"]["times_onnx"]["1"] == {"median": 1, "least": 1, "most": 1} and "| onnx, int8 |" in printed


def test_gpu(run, monkeypatch):
    """On a CPU, as anywhere; again it measures what is missing alone."""
    result, printed = run("gpu", "--backends", "torch", "--dtypes", "float32", written="gpu")
    assert [row["part"] for row in result["rows"]] == ["speed", "augmentation", "deterministic"]
    contestants = result["rows"][0]["contestants"]
    assert {"CI2P-ViT base", "ViT-B/16", "timm ViT-B/16", "CI2P-ViT base, Keras's AdamW"} < set(contestants)
    assert all(speeds["training"]["least"] > 0 for speeds in contestants.values())
    assert result["rows"][1]["augmentation"]["device"]["images_per_second"] > 0
    assert result["rows"][2]["equal"] and "| torch, float32 | yes |" in printed
    monkeypatch.setattr("subprocess.run", None)
    again, printed = run("gpu", "--backends", "torch", "--dtypes", "float32", written="gpu")
    assert again == result and "| ViT-B/16 | torch | float32 |" in printed


def test_startup(run):
    result, printed = run("startup", "--backends", "torch", written="startup")
    assert set(result["cpu_seconds"]) == {"help", "wrong file", "import keras"} and "| help |" in printed
    seconds = {case: row["torch"]["median"] for case, row in result["cpu_seconds"].items()}
    assert seconds["help"] < seconds["import keras"] and seconds["wrong file"] < seconds["import keras"]
