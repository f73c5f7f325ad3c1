"""`keras-ci2p flops`."""

import json

import pytest
from keras.src.backend.common import global_state

from keras_ci2p import CI2PViT
from keras_ci2p.cli import main

pytestmark = pytest.mark.once


def test_table_and_json(tmp_path, capsys):
    assert main(["flops", "--json", str(tmp_path / "flops.json")]) == 0
    lines = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["part"] == ["256", "px", "384", "px", "512", "px"]
    assert lines["FLOPs of the paper"] == ["8.477", "19.284", "34.811"]
    assert lines["reduction"][0] == "63.35%"
    assert lines["less work, times"][0] == "3.49"
    (result,) = json.loads((tmp_path / "flops.json").read_text())
    assert [count["image_size"] for count in result["counts"]] == [256, 384, 512]
    first = result["counts"][0]
    assert first["macs"] == 8_468_684_288 == sum(part["macs"] for part in first["parts"].values())
    assert first["vit"]["macs"] == 23_102_234_112


def test_presets_and_the_baseline(nano, tmp_path, capsys):
    preset = tmp_path / "preset"
    CI2PViT((64, 64, 3), num_classes=3, **nano).save_to_preset(preset)
    assert main(["flops", str(preset), "--image-size", "64", "96"]) == 0
    printed = capsys.readouterr().out
    assert f"CI2PViT {preset}" in printed and "64 px" in printed and "96 px" in printed
    assert main(["flops", "tiny", "small", "--model", "vit", "--image-size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "ViT tiny" in printed and "ViT small" in printed and "reduction" not in printed


@pytest.mark.parametrize("size, message", [("250", "multiples of 32"), ("x", None)])
def test_errors_are_sentences(size, message, capsys):
    if message is None:
        with pytest.raises(SystemExit):
            main(["flops", "--image-size", size])
    else:
        assert main(["flops", "--image-size", size]) == 2
        assert message in capsys.readouterr().err
    assert main(["flops", "absent"]) == 2


def test_no_variables_are_left_waiting(capsys):
    assert main(["flops", "tiny", "--image-size", "64"]) == 0
    # Keras would initialise them wherever a StatelessScope ends, also while a function is traced.
    assert not global_state.get_global_attribute("uninitialized_variables")
