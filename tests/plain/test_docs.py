"""The README and the pages of docs/ say what is there: links, commands, names of the public API."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from keras_ci2p import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("convert", "data", "export", "layers", "models", "training")


def commands(page):
    """Of its indented blocks, as lists of words."""
    lines = re.findall(r"^    (?:\w+=\S+ )*keras-ci2p (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    # What follows is for the shell.
    return [shlex.split(re.split(r" [|>&]", line)[0], comments=True) for line in lines if "..." not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)", prose):
        if not link.startswith("http"):
            target = page.parent / link
            assert target.exists(), link
            # The site is built of docs/ alone.
            assert page.name == "README.md" or target.parent == page.parent, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page):
    for words in commands(page):
        try:
            cli.make_parser().parse_args(words)
        except SystemExit as ended:
            pytest.fail(f"{page.name}: {words} ends with {ended.code}")


def test_commands_are_found():
    assert sum(len(commands(page)) for page in PAGES) > 30


def test_every_page_is_in_the_site():
    def leaves(tree):
        return [tree] if isinstance(tree, str) else [leaf for x in tree for y in x.values() for leaf in leaves(y)]

    nav = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == [page.name for page in PAGES[1:]]


def test_api_lists_every_public_name():
    listed = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    names = {path.rsplit(".", 1)[1] for path in listed}
    for folder in FOLDERS:
        assert set(importlib.import_module(f"keras_ci2p.{folder}").__all__) <= names, folder
    for path in listed:
        module, name = path.rsplit(".", 1)
        source = ROOT / Path(*module.split("."))
        source = (source / "__init__.py" if source.is_dir() else source.with_suffix(".py")).read_text(encoding="utf-8")
        # Without importing it, as the site is built.
        assert re.search(rf"^(?:(?:def|class) {name}\b|{name} = )", source, re.MULTILINE), path
