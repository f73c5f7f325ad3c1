"""The Python of the README and of the guides runs as it is written, page by page, on tiny data and for one epoch."""

import re
from pathlib import Path

import pytest
from conftest import NANO
from PIL import Image

from keras_ci2p import CI2PViT
from keras_ci2p.names import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.once
@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/own-photos.md"])
def test_page(page, photos, tmp_path, monkeypatch):
    fit = CI2PViT.fit
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VARIANTS, "tiny", NANO)
    monkeypatch.setattr(CI2PViT, "fit", lambda *args, epochs=1, **kwargs: fit(*args, **kwargs))
    for name in ("cat.jpg", "dog.jpg"):
        Image.effect_noise((90, 70), 80).convert("RGB").save(name)
    text, names = (ROOT / page).read_text(encoding="utf-8"), {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, page, "exec"), names)
    assert isinstance(names["model"], CI2PViT)
    if "my_animals" in text:
        assert CI2PViT.from_preset("my_animals").count_params() == names["model"].count_params()
