"""The example with CI2P in a plain Keras ViT runs as it is written, on tiny data."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from keras_ci2p import Compressor

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "drop_in_patch_embedding.py"


@pytest.mark.once
@pytest.mark.parametrize("has_compressor", [True, False])
def test_it_compares_both_embeddings(has_compressor, photos, tmp_path, monkeypatch, capsys):
    Compressor(quality=None, channels=(8, 12)).save_to_preset(tmp_path / "compressor")
    options = ["--compressor", str(tmp_path / "compressor")] if has_compressor else []
    sizes = ["--epochs", "2", "--layers", "1", "--image-size", "32", "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, str(photos), *options, *sizes])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    rows = re.findall(r"^(.+): (\d+) tokens, ([\d,]+) parameters, .+ images/s", capsys.readouterr().out, re.MULTILINE)
    assert [(name, tokens) for name, tokens, _ in rows] == [("16x16 patches", "4"), ("CI2P", "1")]
    parameters = [int(count.replace(",", "")) for *_, count in rows]
    # The paper's compressor has 1.5 million, and with it CI2P's patch generator 1.3 million.
    assert (parameters[1] - parameters[0] > 2_000_000) == (not has_compressor)
