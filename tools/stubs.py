"""Writes the `__init__.pyi` of each package whose names are imported when they are first used: what type checkers see.

    python tools/stubs.py            # writes them
    python tools/stubs.py --check    # exit code 1 where one is not as it would be written

The tables in the `__init__.py` are the only place where names are chosen.
"""

import ast
import sys
from pathlib import Path

import house

HEADER = "# Written by tools/stubs.py: what type checkers see of what __init__.py imports when it is used.\n\n"


def stub(module, package=house.PACKAGE):
    """Returns the stub of a package, a `house.Module`; None for one whose names are not lazy."""
    names = house.lazy_names(module.tree)
    if not names:
        return None
    here = [package, *filter(None, module.name.split("."))]
    lines = []
    for name, target in names.items():
        bare, level = house.relative(target)
        lines.append(f"from {'.'.join([*here[: len(here) - level], bare])} import {name} as {name}")
    functions = []
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES":
            lines += [f"from {'.'.join(here)} import {name} as {name}" for name in house.strings(node.value)]
        elif isinstance(node, ast.ImportFrom) and node.module.endswith(".version"):
            lines += [f"from {node.module} import {alias.name} as {alias.name}" for alias in node.names]
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            functions.append(f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ...")
    return HEADER + "\n".join([*sorted(lines), *([""] if functions else []), *functions]) + "\n"


def stubs(root):
    """Yields the path and the text of each stub of the package in directory `root`."""
    for module in house.read_package(root):
        text = stub(module) if module.is_package else None
        if text is not None:
            yield Path(root) / f"{module.path}i", text


def main(arguments):
    root = Path(__file__).parents[1] / house.PACKAGE
    stale = [path for path, text in stubs(root) if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is not as tools/stubs.py writes it")
        return int(bool(stale))
    for path, text in stubs(root):
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
