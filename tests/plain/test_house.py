"""The measures of `tools/house.py`, on small packages that each have one defect."""

import house
import pytest

CLEAN = {
    "__init__.py": '"""A package."""\n',
    "utils.py": '"""Tools."""\n\n\ndef double(x):\n    """Returns twice `x`."""\n    # As it is.\n    return 2 * x\n',
    "layers/__init__.py": "from keras_ci2p.utils import lazy_imports\n\n"
    '__all__, __getattr__, __dir__ = lazy_imports(__name__, {"core": ["Dense"]}, modules=["core"])\n',
    "layers/core.py": "from keras_ci2p.utils import double\n\n\nclass Dense:\n    size = double(3)\n",
    "cli/__init__.py": "",
    "cli/main.py": "def main():\n    from keras_ci2p.layers import Dense\n\n    return Dense\n",
}


def write(root, files):
    for path, text in files.items():
        file = root / house.PACKAGE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture
def checkout(tmp_path):
    return write(tmp_path, CLEAN)


def missed(checkout, **files):
    """The missed goals with further files, whose names are given with "__" for "/"."""
    write(checkout, {f"{name.replace('__', '/')}.py": text for name, text in files.items()})
    return list(house.missed_goals(checkout))


@pytest.fixture(autouse=True)
def own_exceptions(monkeypatch):
    monkeypatch.setattr(house, "UPWARDS", {})
    monkeypatch.setattr(house, "AT_THE_TOP", {"training/network.py": "its classes"})


def test_a_clean_package(checkout, capsys):
    assert missed(checkout) == []
    assert house.main(["--package", str(checkout), "--check"]) == 0
    assert capsys.readouterr().out == "All goals are met.\n"


def test_the_exit_code(checkout, capsys):
    write(checkout, {"utils.py": "import torch\n"})
    assert house.main(["--package", str(checkout), "--check"]) == 1
    assert capsys.readouterr().out.startswith("utils.py:1: imports torch; only backend/")


UPWARD = [
    ("import keras_ci2p.layers.core\n", "layers.core"),
    ("from keras_ci2p.layers.core import Dense\n", "layers.core"),
    ("from keras_ci2p.layers import Dense\n", "layers.core"),
    ("from keras_ci2p.layers import core\n", "layers.core"),
    ("from keras_ci2p import layers\n", "layers"),
    ("from .layers import Dense\n", "layers.core"),
    ("def late():\n    from keras_ci2p.layers import Dense\n", "layers.core"),
    ('import importlib\n\ncore = importlib.import_module("keras_ci2p.layers.core")\n', "layers.core"),
]


@pytest.mark.parametrize(("text", "name"), UPWARD)
def test_upwards(checkout, text, name):
    lines = missed(checkout, plots=text)
    assert len(lines) == 1 and lines[0].startswith("plots.py:")
    assert lines[0].endswith(f"imports {name}, which stands above it")


def test_lazy_names_count_as_imports(checkout):
    table = 'from keras_ci2p.utils import lazy_imports\n\nlazy_imports(__name__, {".layers.core": ["Dense"]})\n'
    (line,) = missed(write(checkout, {"backend/__init__.py": table}))
    assert line == "backend/__init__.py:1: imports layers.core, which stands above it"


def test_beside(checkout):
    (line,) = missed(checkout, presets="from keras_ci2p import layers\n")
    assert line == "presets.py:1: imports layers, which stands beside it"
    assert "imports keras_ci2p, which stands above it" in missed(checkout, presets="from keras_ci2p import check\n")[0]


def test_exceptions_are_named_and_needed(checkout):
    write(checkout, {"plots.py": "from keras_ci2p.layers import Dense\n"})
    modules = house.read_package(checkout / house.PACKAGE)
    exception = {("plots.py", "layers.core"): "a reason"}
    assert list(house.wrong_imports(modules, upwards=exception)) == []
    write(checkout, {"plots.py": ""})
    modules = house.read_package(checkout / house.PACKAGE)
    (line,) = house.wrong_imports(modules, upwards=exception)
    assert line.startswith("plots.py: no longer imports layers.core")


def test_a_module_without_a_place(checkout):
    assert missed(checkout, tools="")[0].startswith("tools.py: has no place in the order")


def test_circles(checkout):
    lines = missed(
        checkout,
        layers__a="from keras_ci2p.layers.b import B\n",
        layers__b="def late():\n    from keras_ci2p.layers.c import C\n",
        layers__c="from keras_ci2p.layers import a\n",
        layers__d="from keras_ci2p.layers import a\n",
    )
    assert lines == ["circle of imports: layers.a, layers.b, layers.c"]


def test_names_twice(checkout):
    lines = missed(checkout, training__core="")
    assert lines == ["file name core.py twice: layers/core.py, training/core.py"]


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("layers__x", "def late():\n    import torch\n", "imports torch; only"),
        ("layers__x", "import jax.numpy as jnp\n", "imports jax; only"),
        ("layers__x", "from tensorflow.raw_ops import Adam\n", "imports tensorflow; only"),
        ("backend__torch", "import torch\n", None),
        ("export__x", "def late():\n    import torch\n", None),
        ("export__x", "import torch\n", "imports torch outside a function"),
        ("convert__state_dict", "def late():\n    from torch import load\n", None),
        ("convert__other", "def late():\n    from torch import load\n", "imports torch; only"),
        ("data__x", "from matplotlib import figure\n", "imports matplotlib outside a function"),
        ("data__x", "class A:\n    import matplotlib.pyplot\n", "imports matplotlib outside a function"),
        (
            "data__x",
            'import importlib\n\nimportlib.import_module("tensorboardX")\n',
            "imports tensorboardX outside",
        ),
        ("data__x", "def late():\n    import tensorflow_datasets as tfds\n", None),
        ("training__network", "import grain\n", None),
        ("training__x", "from keras_ci2p.training.network import A\n", "imports training.network.A outside a function"),
        ("training__x", "def late():\n    from keras_ci2p.training.network import A\n", None),
    ],
)
def test_libraries(checkout, path, text, fault):
    write(checkout, {"training/network.py": ""})
    lines = missed(checkout, **{path: text})
    assert lines == [] if fault is None else len(lines) == 1 and fault in lines[0]


def test_sizes(checkout, monkeypatch):
    monkeypatch.setattr(house, "MOST_FILE_LINES", 20)
    monkeypatch.setattr(house, "MOST_FUNCTION_LINES", 5)
    monkeypatch.setattr(house, "MOST_CLASS_LINES", 8)
    monkeypatch.setattr(house, "MOST_IMPORT_LINES", 5)
    monkeypatch.setattr(house, "MOST_FILES", 4)
    # Docstrings and blank lines do not count for a file.
    assert missed(checkout, plots='"""A.\n' + "\n" * 30 + 'B."""\n' + "\n" * 30) == []
    assert missed(checkout, plots="x = 1\n" * 20) == []
    assert missed(checkout, plots="x = 1\n" * 20 + "# Why.\n") == [
        "plots.py: 21 lines without docstrings and blank lines; at most 20"
    ]
    assert missed(checkout, plots="def f():\n" + "    x = 1\n" * 5) == ["plots.py:1: function f of 6 lines; at most 5"]
    assert missed(checkout, plots="class A:\n    def f(self):\n" + "        x = 1\n" * 5) == [
        "plots.py:2: function A.f of 6 lines; at most 5"
    ]
    assert missed(checkout, plots="class A:\n" + "    x = 1\n" * 8) == ["plots.py:1: class A of 9 lines; at most 8"]
    assert missed(checkout, plots="from math import (\n    pi,\n    sin,\n)\n") == ["7 lines of imports; at most 5"]
    assert missed(checkout, plots="", flops="") == ["5 files beside __init__.py; at most 4"]


BODY = """
def {0}({1}, scale=1.0):
    if scale < 0:
        raise ValueError("negative")
    total = 0
    for {2} in range({1}):
        while total < {2}:
            total += scale
        with open({1}) as file:
            file.write(str(total))
        try:
            total = int({1})
        except {3}:
            pass
    return [{2} for {2} in total]
"""


def test_duplicates(checkout):
    one, two = BODY.format("f", "a", "i", "ValueError"), BODY.format("g", "b", "j", "KeyError")
    # Names, values, comments and docstrings may differ; imports between do not count.
    two = two.replace("    total = 0\n", "    # Why.\n\n    total = 15\n").replace('"negative"', "'below zero'")
    (line,) = missed(checkout, flops=one, plots="import math\n" + two)
    assert line == "flops.py:2: 14 lines equal to plots.py:3; at most 10"
    (line,) = missed(checkout, flops=one + two, plots="")
    assert line == "flops.py:2: 14 lines equal to flops.py:17; at most 10"
    assert missed(checkout, flops=one, plots=two.replace("while", "if")) == []


def test_tables_are_no_duplicates_unless_they_are_the_same(checkout):
    table = "A = {\n" + "".join(f'    "a{i}": {i},\n' for i in range(30)) + "}\n"
    assert missed(checkout, flops=table, plots=table.replace("a", "b").replace(": ", ": 1")) == []
    (line,) = missed(checkout, plots=table)
    assert line == "flops.py:1: 32 lines equal to plots.py:1; at most 10"


def test_line_kinds(checkout):
    (module,) = [m for m in house.read_package(checkout / house.PACKAGE) if m.path == "utils.py"]
    assert house.count_lines(module) == {
        "lines": 7,
        "code": 2,
        "docstrings": 2,
        "blank": 2,
        "comments": 1,
        "imports": 0,
    }


def test_the_table(checkout, capsys):
    write(
        checkout, {"training/config.py": "class TrainConfig:\n    a: int = 1\n    b: ClassVar[int] = 2\n    c: str\n"}
    )
    assert house.main(["--package", str(checkout), "--no-run"]) == 0
    table = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    assert table["files, beside `__init__`"] == "7, 4"
    assert table["settings"] == "TrainConfig 2"
    assert table["public names, packages"] == "2, 1"


def test_two_checkouts_in_a_page(checkout, tmp_path, capsys):
    page = write(tmp_path / "now", CLEAN) / "docs" / "architecture.md"
    page.parent.mkdir()
    page.write_text("Text.\n<!-- measures -->\nold\n<!-- end of measures -->\nMore.\n")
    write(tmp_path / "now", {"plots.py": ""})
    options = ["--package", str(tmp_path / "now"), "--before", str(checkout), "--no-run", "--write"]
    assert house.main(options) == 0
    table = capsys.readouterr().out
    assert "| files, beside `__init__` | 6, 3 | 7, 4 |" in table
    assert page.read_text() == f"Text.\n<!-- measures -->\n{table}<!-- end of measures -->\nMore.\n"
    page.write_text("Text.\n")
    with pytest.raises(SystemExit, match="no marks"):
        house.main(options)
    assert page.read_text() == "Text.\n"


def test_counts_of_tests(checkout, capsys):
    for path, text in {
        "run.sh": "",
        "plain/test_a.py": "def test_a():\n    assert 1\n",
        "layers/test_b.py": "class TestB:\n    def test_b(self):\n        np.testing.assert_allclose(1, 1)\n\n\n"
        "@pytest.mark.once\ndef test_c():\n    with pytest.raises(ValueError):\n        assert 2\n",
        "layers/test_d.py": "pytestmark = pytest.mark.once\n\n\ndef test_d():\n    assert 4\n",
        "helpers/help.py": "def test_no():\n    assert 3\n",
    }.items():
        (checkout / "tests" / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / "tests" / path).write_text(text)
    assert house.main(["--package", str(checkout), "--tests"]) == 0
    numbers = [int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert numbers == [4, 1, 2, 1, 6, 4, 2]


def test_files_entered(tmp_path):
    """Those of which a function was run, in any thread, not those that were only imported."""
    write(
        tmp_path,
        {
            "__init__.py": "",
            "main.py": "from keras_ci2p import imported, used\n\n\ndef main():\n    used.used()\n",
            "used.py": "import threading\n\n\ndef used():\n    from keras_ci2p.thread import job\n"
            "    t = threading.Thread(target=job)\n    t.start()\n    t.join()\n",
            "thread.py": "def job():\n    pass\n",
            "imported.py": "class Imported:\n    def f(self):\n        pass\n",
        },
    )
    code = house.TRACER + "from keras_ci2p.main import main\nstart()\nmain()\nstop()\nprint(len(entered))\n"
    assert house.run(code, tmp_path) == [3]
    assert house.run("raise ValueError('no')", tmp_path) == ["failed: ValueError: no"]
