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


DRAWN = {
    "curves": lambda path: plots.plot_curves(path, CURVES, "title"),
    "compressor curves": lambda path: plots.plot_compressor_curves(path, COMPRESSOR_CURVES, "title"),
    "reconstructions": lambda path: plots.plot_reconstructions(
        path, [pixels(0), pixels(255)], [pixels(-3), pixels(258)], ["one", "two"], "title"
    ),
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


@pytest.mark.parametrize("draw", DRAWN.values())
def test_each_figure_is_a_picture_of_more_than_one_colour(draw, tmp_path):
    draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as page:
        assert np.asarray(page.convert("RGB")).std(axis=(0, 1)).min() > 5


def test_training_goes_on_without_matplotlib(without_matplotlib):
    with pytest.warns(UserWarning, match=r"without matplotlib: pip install 'keras_ci2p\[train\]'") as caught:
        plots.warn_without_matplotlib()
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_without_matplotlib_nothing_is_drawn_and_nothing_lost(draw, tmp_path, without_matplotlib):
    with pytest.warns(UserWarning, match=r"figure.png is not drawn: .*pip install 'keras_ci2p\[train\]'"):
        assert draw(tmp_path / "figure.png") is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no glyph"), OSError("full"), RuntimeError("LaTeX")])
@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_whatever_keeps_a_figure_from_being_drawn_is_a_warning(draw, error, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(plots, "_save", fail)
    with pytest.warns(UserWarning, match=f"figure.png is not drawn: {error or 'MemoryError'}"):
        assert draw(tmp_path / "figure.png") is False


def report_of(names, worst=1):
    rows = [{"true": names[0], "predicted": names[-1], "true_probability": 0.1, "predicted_probability": 0.9}] * worst
    counts = np.eye(len(names), dtype=int)
    return {"class_names": names, "confusion": counts.tolist(), "top1": 0.5, "images": 2 * worst, "worst": rows}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["$", "$x^$", "a $\\frac$ b $", "a_b%{c}\\", "a\nb\x00\x1b", "caf\udce9", "x" * 300, ""]
)
def test_any_name_is_drawn(name, tmp_path):
    report = report_of([name, f"{name} two"])
    assert plots.plot_confusion(tmp_path / "confusion.png", report)
    assert plots.plot_worst(tmp_path / "worst.png", report, [pixels(90).astype("uint8")])
    assert plots.plot_curves(tmp_path / "curves.png", CURVES, name)
    for path in tmp_path.iterdir():
        with Image.open(path) as page:
            assert max(page.size) < 2500


def test_letters_that_the_font_lacks_are_told_of_once(tmp_path):
    with pytest.warns(UserWarning, match="boxes in place of letters") as caught:
        assert plots.plot_confusion(tmp_path / "confusion.png", report_of(["\u732b", "\u72ac\U0001f415"]))
    assert len(caught) == 1 and (tmp_path / "confusion.png").is_file()


def test_pictures_do_not_grow_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MOST_SHOWN", 6)
    report = report_of([f"class {i}" for i in range(300)], worst=500)
    assert plots.plot_confusion(tmp_path / "confusion.png", report)
    assert plots.plot_worst(tmp_path / "worst.png", report, [pixels(90).astype("uint8")] * plots.MOST_SHOWN)
    for path in tmp_path.iterdir():
        with Image.open(path) as page:
            assert max(page.size) <= 3000 and len(np.unique(np.asarray(page.convert("L")))) > 5
