"""The notebooks run, and hold what their scripts hold, with pictures."""

import importlib.util
import re
import runpy
from pathlib import Path

import jupytext
import matplotlib
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))

pytestmark = [pytest.mark.once, pytest.mark.parametrize("name", NAMES)]


def test_runs(name, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    # What compiles takes a minute, and is compared in other tests.
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("jax", "tensorflow") else find_spec(name)
    )
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        runpy.run_path(str(NOTEBOOKS / f"{name}.py"), run_name="__main__")
    finally:
        matplotlib.pyplot.close("all")
        matplotlib.use(backend)


def test_is_its_script(name):
    script, notebook = (jupytext.read(NOTEBOOKS / f"{name}{suffix}") for suffix in (".py", ".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (script, notebook)]
    assert cells[0] == cells[1], f"Write it anew: jupytext --to ipynb --execute {name}.py"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [
        output for output in outputs if output.output_type in ("error", "stream") and "Traceback" in str(output)
    ]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # Whoever wrote them, where.
    said = [str(output.get("text", output.get("data", {}).get("text/plain"))) for output in outputs]
    assert not [text for text in said if re.search(r"(?<![\w./])/\w+/\w", text)]
