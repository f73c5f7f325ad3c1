"""Who imports whom, and what is imported only when it is used; the rules stand in `tools/house.py`."""

import subprocess
import sys
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def modules():
    found = house.read_package(ROOT / house.PACKAGE)
    # That an empty list of faults says something.
    assert len(found) > 60 and len(house.edges(found)) > 200
    return found


def test_imports_go_one_way(modules):
    assert list(house.wrong_imports(modules)) == []


def test_no_circles(modules):
    assert list(house.circles(modules)) == []


def test_no_file_name_twice(modules):
    assert list(house.twice(modules)) == []


def test_frameworks_and_slow_libraries(modules):
    assert list(house.misplaced_libraries(modules)) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("train --help", 0),
        ("train photos --out run --epochs many", 2),
        ("train photos --out run --no-such-option", 2),
        ("no-such-command", 2),
    ],
)
def test_the_command_line_answers_without_keras(arguments, code, tmp_path):
    program = """
import runpy, sys
try:
    runpy.run_module("keras_ci2p", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
slow = {"keras", "torch", "jax", "tensorflow", "grain", "matplotlib", "tensorflow_datasets"}
print("exit", code, sorted(slow & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        timeout=300,
    )
    assert done.stdout.splitlines()[-1] == f"exit {code} []", done.stderr
    assert not list(tmp_path.iterdir())
