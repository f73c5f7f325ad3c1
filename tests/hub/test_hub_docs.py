"""The recipes of docs/kerashub.md run as they are written, in their order."""

import re
from pathlib import Path

import pytest
from nano_models import our_model

from keras_ci2p import CI2PViT, Compressor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kerashub.md"


@pytest.mark.once
def test_recipes(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    our_model().save_to_preset("my_preset")
    Compressor(quality=None, channels=(8, 12)).save_to_preset("my_compressor")
    names = {}
    for recipe in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(recipe, str(PAGE), "exec"), names)
    assert "197 tokens, now 50" in capsys.readouterr().out
    assert names["model"].class_names == ["cat", "dog", "owl"]
    assert CI2PViT.from_preset("tuned").class_names == ["bird", "cat", "dog"]
    assert names["faster"].backbone.get_layer("patch_embedding").compressor.latent_channels == 12
    assert names["small"].output.shape == (None, 3)
