import hashlib
import re

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_ci2p import CI2PViT, Compressor, ViT
from keras_ci2p.cli import main
from keras_ci2p.convert import from_compressai, from_mmpretrain, to_compressai, to_mmpretrain
from keras_ci2p.names import VARIANTS

pytestmark = pytest.mark.once


def same(one, other):
    to_numpy = keras.ops.convert_to_numpy
    return all((to_numpy(a) == to_numpy(b)).all() for a, b in zip(one.weights, other.weights, strict=True))


@pytest.fixture
def compressor():
    return Compressor(quality=None, channels=(8, 12))


def test_compressai_to_preset_and_back(compressor, tmp_path, capsys):
    source = tmp_path / "source.safetensors"
    save_file(to_compressai(compressor), source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert main(["convert", str(source), str(tmp_path / "preset"), "--sha256", digest[:8]]) == 0
    printed = capsys.readouterr().out
    assert "converted: g_a (14 entries)" in printed and "converted: entropy_bottleneck (15 entries)" in printed
    assert "left out, constant" in printed and digest in printed
    loaded = Compressor.from_preset(tmp_path / "preset")
    assert same(loaded, compressor) and loaded.origin["sha256"] == digest
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(tmp_path / "preset"), str(back), "--to", "compressai"]) == 0
    assert same(from_compressai(back), compressor)


def test_mmpretrain_to_preset_and_back(nano, tmp_path):
    model = ViT((64, 64, 3), num_classes=3, **{**nano, "num_heads": 1})
    save_file(to_mmpretrain(model), tmp_path / "source.safetensors")
    assert main(["convert", str(tmp_path / "source.safetensors"), str(tmp_path / "preset")]) == 0
    assert same(ViT.from_preset(tmp_path / "preset"), model)
    assert main(["convert", str(tmp_path / "preset"), str(tmp_path / "back.pth"), "--to", "mmpretrain"]) == 0
    assert same(from_mmpretrain(tmp_path / "back.pth"), model)


def test_wrapped_weights(compressor, tmp_path, capsys):
    import torch

    def tensors(compressor):
        return {f"module.{key}": torch.tensor(value) for key, value in to_compressai(compressor).items()}

    averaged = Compressor(quality=None, channels=(8, 12))
    model = {**tensors(compressor), "loss.weight": torch.ones(2)}
    stored = {"model": model, "model_ema": tensors(averaged), "epoch": 3}
    source = tmp_path / "source.pth"
    torch.save(stored, source)
    assert main(["convert", str(source), str(tmp_path / "plain")]) == 0
    printed = capsys.readouterr().out
    assert "weights: model.module; also there, for --key: model_ema.module\n" in printed
    assert "left out, not part of the model: loss (1)" in printed and "converted: g_a (14 entries)" in printed
    assert same(Compressor.from_preset(tmp_path / "plain"), compressor)
    assert main(["convert", str(source), str(tmp_path / "averaged"), "--key", "model_ema"]) == 0
    assert same(Compressor.from_preset(tmp_path / "averaged"), averaged)
    assert main(["convert", str(source), str(tmp_path / "none"), "--key", "student"]) == 2
    assert "under 'student': it has model.module, model_ema.module" in capsys.readouterr().err


def test_former_names_of_keys_are_converted(compressor, tmp_path, capsys):
    state = {key.replace("._matrix", "._matrices."): value for key, value in to_compressai(compressor).items()}
    save_file(state, tmp_path / "source.safetensors")
    assert main(["convert", str(tmp_path / "source.safetensors"), str(tmp_path / "preset")]) == 0
    printed = capsys.readouterr().out
    assert "converted: entropy_bottleneck (15 entries)" in printed and "not part of the model" not in printed


def test_classes_of_the_papers_model(nano, tmp_path, capsys):
    import torch

    state = to_mmpretrain(ViT((64, 64, 3), num_classes=3, **{**nano, "num_heads": 1}))
    state = {key: torch.tensor(value) for key, value in state.items()}
    source = tmp_path / "epoch_3.pth"
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": ("ant", "bee", "cow")}}}, source)
    assert main(["convert", str(source), str(tmp_path / "named")]) == 0
    assert ViT.from_preset(tmp_path / "named").class_names == ["ant", "bee", "cow"]
    assert main(["convert", str(source), str(tmp_path / "fresh"), "--num-classes", "5"]) == 0
    assert "head: new, for 5 classes; train it" in capsys.readouterr().out
    assert ViT.from_preset(tmp_path / "fresh").num_classes == 5
    torch.save({key: value for key, value in state.items() if not key.startswith("head.")}, source)
    assert main(["convert", str(source), str(tmp_path / "none")]) == 2
    assert "no head" in capsys.readouterr().err


def test_errors_leave_nothing(compressor, nano, tmp_path, tmp_path_factory, capsys):
    paper = tmp_path_factory.mktemp("paper") / "paper.safetensors"
    save_file(to_mmpretrain(ViT((64, 64, 3), num_classes=3, **{**nano, "num_heads": 1})), paper)
    source, dest = tmp_path / "source.safetensors", tmp_path / "preset"
    save_file(to_compressai(compressor), source)
    (tmp_path / "other.safetensors").write_bytes(b"damaged")
    save_file({"layer.weight": np.zeros(3, "float32")}, tmp_path / "unknown.safetensors")
    for arguments, message in (
        ([source, dest, "--sha256", "00000000"], "not the expected file"),
        ([source, dest, "--quality", "5"], "quality 5"),
        ([source, dest, "--image-size", "64"], "--image-size does not apply: .* is a checkpoint of CompressAI"),
        ([paper, dest, "--quality", "5"], "--quality does not apply: .* is a checkpoint of the paper's code"),
        (["animals10", dest, "--quality", "3"], "--quality does not apply: animals10 is a preset, not a checkpoint"),
        (["animals10", dest, "--image-size", "512"], "--image-size does not apply: animals10 is a preset"),
        (["animals10", dest, "--sha256", "abcd"], "--sha256 does not apply: animals10 is a preset, not a checkpoint"),
        ([tmp_path / "absent", dest, "--sha256", "abcd"], "Unknown preset"),
        ([source, dest, "--to", "mmpretrain"], "cannot be written"),
        ([tmp_path / "other.safetensors", dest], "not a readable safetensors"),
        (
            [tmp_path / "unknown.safetensors", dest],
            "no weights of CompressAI or the paper's code: it begins",
        ),
        ([source, dest, "--num-classes", "5"], "--num-classes does not apply: .* is a checkpoint of CompressAI"),
        (["animals10", dest, "--key", "model"], "--key does not apply: animals10 is a preset"),
        ([source, source], "exists already"),
        ([tmp_path / "absent", dest], "Unknown preset"),
    ):
        assert main(["convert", *map(str, arguments)]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "other.safetensors",
            "source.safetensors",
            "unknown.safetensors",
        ]


def test_train_with_a_compressor(compressor, nano, photos, tmp_path, monkeypatch, capsys):
    """A checkpoint or a preset; frozen unless said otherwise, and without a warning."""
    monkeypatch.setitem(VARIANTS, "nano", nano)
    # Else the preset would say that it is random.
    compressor.analysis.set_weights([1.01 * weight for weight in compressor.analysis.get_weights()])
    save_file(to_compressai(compressor), tmp_path / "checkpoint.safetensors")
    compressor.save_to_preset(tmp_path / "preset")
    # Another seed than that of the fixture, whose random weights would be the same.
    options = ["--variant", "nano", "--image-size", "32", "--epochs", "1", "--batch-size", "8", "--seed", "1"]
    for i, source in enumerate(("checkpoint.safetensors", "preset")):
        run = tmp_path / f"run-{i}"
        command = ["train", str(photos), "--out", str(run), *options, "--compressor", str(tmp_path / source)]
        assert main(command) == 0
        assert "random weights" not in capsys.readouterr().err
        model = CI2PViT.from_preset(run / "last")
        assert model.freeze_compressor and same(model.compressor, compressor.analysis)
    assert main(["train", str(photos), "--out", str(tmp_path / "x"), "--model", "vit", "--compressor", "preset"]) == 2
