"""Figures: arrays and reports in, PNG files out; what is drawn and what is not without matplotlib."""

import ast
import builtins
import inspect

import numpy as np
import pytest
from PIL import Image

from keras_ci2p import plots

CURVES = [{"epoch": i, "loss": 1.0, "top1": 0.5, "val_loss": 1.1, "val_top1": 0.4} for i in range(3)]
COMPRESSOR_CURVES = [
    {"step": i, **{prefix + key: 1.0 + i for prefix in ("", "val_") for key in ("cost", "bpp", "psnr")}}
    for i in range(3)
]
REPORT = {
    "class_names": ["cat", "dog"],
    "confusion": [[3, 1], [0, 4]],
    "top1": 0.875,
    "images": 8,
    "worst": [
        {"image": "a.png", "true": "cat", "predicted": "dog", "true_probability": 0.1, "predicted_probability": 0.9}
    ],
}


def pixels(value):
    return np.full((32, 48, 3), value, "float32")


DRAWN_IN_TRAINING = {
    "curves": lambda path: plots.plot_curves(path, CURVES, "title"),
    "compressor curves": lambda path: plots.plot_compressor_curves(path, COMPRESSOR_CURVES, "title"),
    "reconstructions": lambda path: plots.plot_reconstructions(
        path, [pixels(0), pixels(255)], [pixels(-3), pixels(258)], ["one", "two"], "title"
    ),
}
DRAWN_AFTERWARDS = {
    "confusion": lambda path: plots.plot_confusion(path, REPORT),
    "worst": lambda path: plots.plot_worst(path, REPORT, [pixels(90).astype("uint8")]),
}


@pytest.fixture
def without_matplotlib(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", lambda name, package=None: refuse(name))


def test_only_utils_is_imported():
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(plots))) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports} == {"keras_ci2p.utils"}


@pytest.mark.parametrize("draw", [*DRAWN_IN_TRAINING.values(), *DRAWN_AFTERWARDS.values()])
def test_each_figure_is_a_picture_of_more_than_one_colour(draw, tmp_path):
    draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as page:
        assert np.asarray(page.convert("RGB")).std(axis=(0, 1)).min() > 5


@pytest.mark.parametrize("draw", DRAWN_IN_TRAINING.values(), ids=DRAWN_IN_TRAINING)
def test_training_goes_on_without_matplotlib(draw, tmp_path, without_matplotlib):
    draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"without matplotlib: pip install 'keras_ci2p\[train\]'") as caught:
        plots.warn_without_matplotlib()
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("draw", DRAWN_AFTERWARDS.values(), ids=DRAWN_AFTERWARDS)
def test_what_was_asked_for_needs_it(draw, tmp_path, without_matplotlib):
    with pytest.raises(ImportError, match=r"pip install 'keras_ci2p\[train\]'"):
        draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
