"""Measures the package and checks it against the goals of its architecture (`docs/architecture.md`).

    python tools/house.py                    # a table of measures
    python tools/house.py --package DIR      # of another checkout, as before a change
    python tools/house.py --before DIR --write   # of both, into docs/architecture.md
    python tools/house.py --check            # one line for each missed goal, exit code 1
    python tools/house.py --tests            # test functions and assertions

Needs the standard library alone, except for what is found by running the package (`--no-run` leaves that out).
"""

import argparse
import ast
import collections
import io
import itertools
import keyword
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "keras_ci2p"
PAGE = "docs/architecture.md"

# The goals. Lines are counted without docstrings and blank lines: what is explained well should not be cut for it.
MOST_FILES = 80
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 70
MOST_CLASS_LINES = 210
MOST_DUPLICATE_LINES = 10
# The plan was 550, for 70 files; those of the standard library and of other packages alone are 400 by now, and those of
# types that signatures name 110.
MOST_IMPORT_LINES = 1400

# Who imports whom: only what stands to the left. Modules of one level import none of another of it.
LEVELS = (
    ("names", "utils", "setting", "version"),
    ("config",),
    ("backend", "weight_storage", "plots"),
    ("layers", "presets"),
    ("codec",),
    ("data", "flops"),
    ("models",),
    ("convert", "export", "hub"),
    ("training",),
    # "": the package itself, of which the command line takes the check of the backend.
    ("compare", ""),
    ("cli",),
)
# Imports against that order, `(importing file, imported module)`, each with its reason.
UPWARDS = {}

FRAMEWORKS = ("torch", "jax", "tensorflow")
# Where a framework may be imported, inside functions: to read its files and to write for it.
USES_FRAMEWORKS = ("backend/", "convert/state_dict.py", "export/", "training/efficientnet")
# Imported inside functions only: not everybody has them, and they are slow to start. (Classes are made of grain's.)
SLOW = ("matplotlib", "numba", "tensorboardX", "tensorflow_datasets")
# Files that import one of these at the top, as their classes are made of it, each with its reason. They are themselves
# imported inside functions only.
AT_THE_TOP = {
    "data/animals10_builder.py": "a builder of TFDS, which finds it by its module",
    "training/efficientnet_network.py": "a network of torch",
}

# Equal lines that begin with fewer lines than this are not looked at.
WINDOW = 6
SETTINGS = {
    "TrainConfig": "TrainSettings",
    "Recipe": "Recipe",
    "Augmentation": "Augmentation",
    "CompressorTrainConfig": "CompressorSettings",
    "LatentCacheConfig": "CacheSettings",
    "CompareConfig": "CompareSettings",
}


@dataclass
class Module:
    """A file of the package.

    Attributes:
        path: Relative to the package, with "/".
        name: Dotted, without the package's: "" for the package itself, "layers" for `layers/__init__.py`.
        imports: `(imported dotted name, line, inside a function)`, absolute.
    """

    path: str
    text: str
    tree: ast.Module
    name: str
    docstring_lines: set = field(default_factory=set)
    lines: list = field(default_factory=list)
    imports: list = field(default_factory=list)

    @property
    def unit(self):
        """First part of its name: what the order of imports is about."""
        return self.name.split(".")[0]

    def is_code(self, line):
        """Whether a line, counted from 1, is neither blank nor of a docstring."""
        return line not in self.docstring_lines and bool(self.lines[line - 1].strip())

    @property
    def is_package(self):
        return self.path.endswith("__init__.py")


def read_package(root):
    """Returns the modules of the package in directory `root`, in the order of their paths."""
    root = Path(root)
    modules = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        text = file.read_text(encoding="utf-8")
        name = ".".join(part for part in path.removesuffix(".py").split("/") if part != "__init__")
        module = Module(path, text, ast.parse(text, path), name)
        module.docstring_lines = docstring_lines(module.tree)
        module.lines = text.splitlines()
        module.imports = list(imports_of(module, root.name))
        modules.append(module)
    return modules


def docstring_lines(tree):
    """Returns the numbers of the lines of all docstrings."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def imports_of(module, package=PACKAGE):
    """Yields `(dotted name, line, inside a function)` for every import, also of a lazy package's names."""
    parts = [package, *module.name.split(".")] if module.name else [package]
    here = parts if module.is_package else parts[:-1]

    def absolute(name, level):
        return ".".join([*here[: len(here) - level + 1], *([name] if name else [])]) if level else name

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            within = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, within
            elif isinstance(child, ast.ImportFrom):
                base = absolute(child.module, child.level)
                for alias in child.names:
                    yield f"{base}.{alias.name}", child.lineno, within
            elif isinstance(child, ast.Call):
                called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", None)
                first = child.args[0] if child.args else None
                if called in ("import_module", "require") and isinstance(first, ast.Constant):
                    yield (
                        absolute(first.value.lstrip("."), len(first.value) - len(first.value.lstrip("."))),
                        child.lineno,
                        within,
                    )
            yield from visit(child, within)

    yield from visit(module.tree, False)
    for name, target in lazy_names(module.tree).items():
        base, level = relative(target)
        # Found when it is used, as if within a function.
        yield f"{absolute(base, level + 1)}.{name}", 1, True


def relative(name):
    """Returns a module's name without its leading dots, and their number."""
    bare = name.lstrip(".")
    return bare, len(name) - len(bare)


def lazy_names(tree):
    """Returns the module of each name of `lazy_imports(__name__, {module: names}, modules=names)`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "lazy_imports":
            table = node.args[1] if len(node.args) > 1 else None
            if isinstance(table, ast.Dict):
                for key, values in zip(table.keys, table.values, strict=True):
                    names.update(dict.fromkeys(strings(values), key.value))
            for keyword_ in node.keywords:
                if keyword_.arg == "modules":
                    names.update({name: name for name in strings(keyword_.value)})
    return names


def strings(node):
    """Returns the constants of a list or tuple of strings, or none."""
    return [e.value for e in getattr(node, "elts", []) if isinstance(e, ast.Constant) and isinstance(e.value, str)]


def edges(modules, package=PACKAGE):
    """Returns `(importing module, imported module, line)`, a package's lazy name as the module that defines it."""
    by_name = {module.name: module for module in modules}
    lazy = {module.name: lazy_names(module.tree) for module in modules if module.is_package}

    def resolve(name, depth=4):
        parts = name.split(".")
        if parts[0] != package:
            return None
        parts = parts[1:]
        for end in range(len(parts), -1, -1):
            owner = ".".join(parts[:end])
            if owner not in by_name:
                continue
            rest = parts[end:]
            target = lazy.get(owner, {}).get(rest[0]) if rest else None
            if target is None or depth == 0:
                return by_name[owner]
            if target == rest[0] and f"{owner}.{target}".strip(".") in by_name:
                return by_name[f"{owner}.{target}".strip(".")]
            base = [package, *owner.split(".")] if owner else [package]
            if target.startswith("."):
                base, target = base[:-1], target[1:]
            return resolve(".".join([*base, target, rest[0]]), depth - 1)
        return None

    found = []
    for module in modules:
        for name, line, _ in module.imports:
            target = resolve(name, 4)
            if target is not None and target is not module:
                found.append((module, target, line))
    return found


def wrong_imports(modules, package=PACKAGE, upwards=None):
    """Yields a line for each import against the order of the levels."""
    upwards = UPWARDS if upwards is None else upwards
    level_of = {unit: level for level, units in enumerate(LEVELS) for unit in units}
    used = set()
    for module in modules:
        # The package itself and `python -m` stand above all.
        if module.unit in ("", "__main__"):
            continue
        if module.unit not in level_of:
            yield f"{module.path}: has no place in the order of imports (LEVELS in tools/house.py)"
    for module, target, line in edges(modules, package):
        if module.unit in ("", "__main__") or module.unit == target.unit:
            continue
        if (module.path, target.name) in upwards:
            used.add((module.path, target.name))
            continue
        here, there = level_of.get(module.unit, -1), level_of.get(target.unit, len(LEVELS))
        if there >= here:
            word = "beside" if there == here else "above"
            yield f"{module.path}:{line}: imports {target.name or package}, which stands {word} it"
    for path, name in sorted(set(upwards) - used):
        yield f"{path}: no longer imports {name}: take it out of UPWARDS in tools/house.py"


def circles(modules, package=PACKAGE):
    """Yields a line for each group of modules that import each other, also by imports within functions."""
    graph = collections.defaultdict(set)
    for module, target, _ in edges(modules, package):
        # A package's names are lazy: whoever imports one imports the module that defines it.
        if not module.is_package and not target.is_package:
            graph[module.name].add(target.name)
    reach = {}
    for start in list(graph):
        seen, queue = set(), [start]
        while queue:
            for after in graph[queue.pop()] - seen:
                seen.add(after)
                queue.append(after)
        reach[start] = seen
    groups = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in reach}
    for group in sorted(sorted(group) for group in groups if group):
        yield f"circle of imports: {', '.join(group)}"


def twice(modules):
    """Yields a line for each file name that occurs twice, but for `__init__`."""
    places = collections.defaultdict(list)
    for module in modules:
        places[module.path.rsplit("/", 1)[-1]].append(module.path)
    for name, paths in sorted(places.items()):
        if len(paths) > 1 and name != "__init__.py":
            yield f"file name {name} twice: {', '.join(paths)}"


def misplaced_libraries(modules, package=PACKAGE, at_the_top=None):
    """Yields a line for each import of a framework outside its places, and of a slow library outside a function."""
    at_the_top = AT_THE_TOP if at_the_top is None else at_the_top
    made_of = tuple(f"{package}.{path.removesuffix('.py').replace('/', '.')}" for path in at_the_top)
    for module in modules:
        for name, line, inside in module.imports:
            library = name.split(".")[0]
            framework = library in FRAMEWORKS and not module.path.startswith("backend/")
            if framework and not module.path.startswith(USES_FRAMEWORKS):
                yield f"{module.path}:{line}: imports {library}; only {', '.join(USES_FRAMEWORKS)} may"
            elif (framework or library in SLOW) and not inside and module.path not in at_the_top:
                yield f"{module.path}:{line}: imports {library} outside a function"
            elif made_of and name.startswith(made_of) and not inside:
                yield f"{module.path}:{line}: imports {name.removeprefix(package + '.')} outside a function"


def count_lines(module):
    """Returns numbers of lines: in all, of code, of docstrings, blank, of comments, of imports."""
    lines = module.text.splitlines()
    docstrings = module.docstring_lines
    blank = sum(not line.strip() for i, line in enumerate(lines, 1) if i not in docstrings)
    comments = sum(line.lstrip().startswith("#") for i, line in enumerate(lines, 1) if i not in docstrings)
    imports = sum(
        node.end_lineno - node.lineno + 1
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    code = len(lines) - len(docstrings) - blank - comments
    return collections.Counter(
        lines=len(lines), code=code, docstrings=len(docstrings), blank=blank, comments=comments, imports=imports
    )


def definitions(modules):
    """Yields `(kind, name, file, line, number of lines)` for each function and class."""

    def visit(node, module, prefix):
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                kind = "class" if isinstance(child, ast.ClassDef) else "function"
                name = f"{prefix}.{child.name}".lstrip(".")
                rows = range(child.lineno, child.end_lineno + 1)
                yield kind, name, module.path, child.lineno, sum(map(module.is_code, rows))
            yield from visit(child, module, name)

    for module in modules:
        yield from visit(module.tree, module, "")


def shapes(module):
    """Returns `(line number, text, shape)` for each line of code without imports.

    The text is that of the line's tokens, the shape the same with names and values replaced by their kind.
    """
    skipped = set(module.docstring_lines)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, node.end_lineno + 1))
    found = collections.defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP) or token.type >= getattr(
            tokenize, "FSTRING_START", 1000
        ):
            kind = token.string
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                kind = "N"
            elif token.type in (tokenize.NUMBER, tokenize.STRING):
                kind = "V"
            if token.start[0] not in skipped and token.type not in (tokenize.COMMENT, tokenize.NL):
                found[token.start[0]].append((token.string, kind))
    return [
        (line, " ".join(t for t, _ in tokens), " ".join(k for _, k in tokens)) for line, tokens in sorted(found.items())
    ]


def duplicates(modules, more_than=MOST_DUPLICATE_LINES):
    """Returns `(lines, (file, first line), (file, first line))` of runs of equal lines, the longest first.

    Lines are equal in shape; in runs of few different shapes, as tables and lists of arguments are, by their text.
    """
    rows = []
    for module in modules:
        rows += [(module.path, *row) for row in shapes(module)]
        rows += [(module.path, 0, f"end of {module.path}", f"end of {module.path}")]
    runs = set()
    for column, by_shape in ((2, False), (3, True)):
        keys = [row[column] for row in rows]
        places = collections.defaultdict(list)
        for i in range(len(keys) - WINDOW + 1):
            window = tuple(keys[i : i + WINDOW])
            if not by_shape or len(set(window)) > WINDOW // 2:
                places[window].append(i)
        for first, second in (pair for starts in places.values() for pair in itertools.combinations(starts, 2)):
            length = WINDOW
            while second + length < len(keys) and keys[first + length] == keys[second + length]:
                length += 1
            # In one file the second begins after the first.
            length = min(length, second - first)
            varied = 2 * len(set(keys[first : first + length])) > length
            if length > more_than and (varied or not by_shape):
                runs.add((length, first, second))
    kept = []
    for length, first, second in sorted(runs, reverse=True):
        inside = any(a <= first and first + length <= a + n and b <= second + length <= b + n for n, a, b in kept)
        if not inside:
            kept.append((length, first, second))
    return [(length, rows[first][:2], rows[second][:2]) for length, first, second in kept]


def public_names(modules):
    """Returns the public names of each package, by `__all__` or its lazy imports."""
    names = {}
    for module in modules:
        if not module.is_package:
            continue
        found = set(lazy_names(module.tree))
        for node in ast.walk(module.tree):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AugAssign) and getattr(targets[0], "id", None) == "__all__":
                found.update(strings(node.value))
        if found:
            names[module.name] = found
    return names


def settings(modules):
    """Returns the number of fields of each class of settings, by its name now."""
    counts = {}
    for module in modules:
        for node in ast.walk(module.tree):
            for name, old in SETTINGS.items():
                if isinstance(node, ast.ClassDef) and node.name in (name, old):
                    fields = [e for e in node.body if isinstance(e, ast.AnnAssign)]
                    fields = [e for e in fields if "ClassVar" not in ast.unparse(e.annotation)]
                    counts[name] = max(counts.get(name, 0), len(fields))
    return counts


# Run in a process of its own; `entered` holds the files of which a function was run.
TRACER = """
import os, sys, threading
package = os.path.join(sys.argv[1], "keras_ci2p") + os.sep
entered = set()
def trace(frame, event, argument):
    code = frame.f_code
    # 1: CO_OPTIMIZED, which the bodies of modules and classes lack.
    if code.co_flags & 1 and code.co_filename.startswith(package):
        entered.add(code.co_filename[len(package):])
def start():
    threading.settrace(trace)
    sys.settrace(trace)
def stop():
    sys.settrace(None)
    threading.settrace(None)
"""
IMPORT = """
import sys
import keras_ci2p
print(sum(name.split(".")[0] == "keras_ci2p" for name in sys.modules))
"""
TRAIN = (
    TRACER
    + """
import pathlib, tempfile
import keras, numpy as np
from PIL import Image
rng = np.random.default_rng(0)
out = pathlib.Path(tempfile.mkdtemp())
for label in ("cat", "dog", "owl"):
    (out / "photos" / label).mkdir(parents=True)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), "uint8")).save(out / "photos" / label / f"{i}.jpg")
class Fit(BaseException):
    pass
def fit(*args, **kwargs):
    stop()
    raise Fit
keras.Model.fit = fit
from keras_ci2p.cli import main
start()
try:
    main(["train", str(out / "photos"), "--out", str(out / "run")])
except Fit:
    print(len(entered))
"""
)
PRESET = (
    TRACER
    + """
import keras, numpy as np
from keras_ci2p import CI2PViT
start()
model = CI2PViT.from_preset("animals10")
stop()
print(len(entered))
entered.clear()
start()
model(np.zeros((1, *model.input_shape[1:]), "float32"))
stop()
print(len(entered))
"""
)


def run(code, checkout):
    """Returns the last lines that `code` prints in a process of its own with the package of `checkout`, as numbers."""
    environment = dict(os.environ, PYTHONPATH=str(checkout), TF_CPP_MIN_LOG_LEVEL="3")
    environment.setdefault("KERAS_BACKEND", "torch")
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", code, str(checkout)],
            capture_output=True,
            text=True,
            env=environment | {"TMPDIR": directory},
            cwd=directory,
            timeout=600,
        )
    numbers = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    return numbers or ["failed: " + (done.stderr.strip().splitlines() or ["no output"])[-1]]


def measures(checkout, with_runs=True):
    """Returns `(what, value)` of all measures."""
    modules = read_package(checkout / PACKAGE)
    counts = {module.path: count_lines(module) for module in modules}
    total = sum(counts.values(), collections.Counter())
    folders = collections.defaultdict(list)
    for path, count in counts.items():
        folders[path.split("/")[0] if "/" in path else "root"].append(count["lines"])
    lengths = sorted(count["lines"] for count in counts.values())
    parts = sorted(definitions(modules), key=lambda part: -part[-1])

    def first(kind, number=4):
        chosen = [part for part in parts if part[0] == kind][:number]
        return ", ".join(f"{name} {lines}" for _, name, _, _, lines in chosen)

    public = public_names(modules)
    yield "files, beside `__init__`", f"{len(modules)}, {sum(not m.is_package for m in modules)}"
    yield "lines", f"{total['lines']:,}"
    yield (
        "of them code, docstrings, blank, comments",
        ", ".join(f"{total[kind]:,}" for kind in ("code", "docstrings", "blank", "comments")),
    )
    yield "import lines", f"{total['imports']:,}"
    yield (
        "files and lines of each folder",
        "; ".join(f"{folder} {len(lines)}, {sum(lines):,}" for folder, lines in sorted(folders.items())),
    )
    yield "median file; files under 60 lines", f"{statistics.median(lengths):.0f}; {sum(n < 60 for n in lengths)}"
    yield (
        "largest files, without docstrings and blank lines",
        ", ".join(
            f"{path} {lines}"
            for lines, path in sorted(((c["code"] + c["comments"], path) for path, c in counts.items()), reverse=True)[
                :4
            ]
        ),
    )
    yield "longest functions", first("function")
    yield "longest classes", first("class")
    yield "file names used twice", str(len(list(twice(modules))))
    found = duplicates(modules)
    yield (
        f"runs of over {MOST_DUPLICATE_LINES} equal lines; the longest",
        (f"{len(found)}; " + (", ".join(f"{n} in {a[0]} and {b[0]}" for n, a, b in found[:3]) or "none")),
    )
    yield "public names, packages", f"{sum(map(len, public.values()))}, {len(public)}"
    yield "settings", ", ".join(f"{name} {number}" for name, number in settings(modules).items())
    known = all(module.unit in ("", "__main__", *itertools.chain(*LEVELS)) for module in modules)
    against = len(list(wrong_imports(modules))) if known else "-"
    yield "imports against the order; circles", f"{against}; {len(list(circles(modules)))}"
    if with_runs:
        yield f"modules loaded by `import {PACKAGE}`", str(run(IMPORT, checkout)[-1])
        yield "files entered by `train` until `fit`", str(run(TRAIN, checkout)[-1])
        numbers = run(PRESET, checkout)
        yield 'files entered by `from_preset("animals10")`; by a forward pass', "; ".join(map(str, numbers[-2:]))


def missed_goals(checkout):
    """Yields a line for each goal that the package misses."""
    modules = read_package(checkout / PACKAGE)
    counts = {module.path: count_lines(module) for module in modules}
    files = sum(not module.is_package for module in modules)
    if files > MOST_FILES:
        yield f"{files} files beside __init__.py; at most {MOST_FILES}"
    for path, count in counts.items():
        lines = count["code"] + count["comments"]
        if lines > MOST_FILE_LINES:
            yield f"{path}: {lines} lines without docstrings and blank lines; at most {MOST_FILE_LINES}"
    for kind, name, path, line, lines in definitions(modules):
        most = MOST_CLASS_LINES if kind == "class" else MOST_FUNCTION_LINES
        if lines > most:
            yield f"{path}:{line}: {kind} {name} of {lines} lines; at most {most}"
    imports = sum(count["imports"] for count in counts.values())
    if imports > MOST_IMPORT_LINES:
        yield f"{imports} lines of imports; at most {MOST_IMPORT_LINES}"
    for lines, (path, line), (other, other_line) in duplicates(modules):
        yield f"{path}:{line}: {lines} lines equal to {other}:{other_line}; at most {MOST_DUPLICATE_LINES}"
    yield from twice(modules)
    yield from wrong_imports(modules)
    yield from circles(modules)
    yield from misplaced_libraries(modules)


def count_tests(checkout):
    """Returns `{"plain" or "backends": Counter}` of test functions, those run once on one backend, and assertions."""
    root = checkout / "tests"
    # Before there was `plain/`, its files stood in a list.
    listed = re.search(r'^plain="([^"]*)"', (root / "run.sh").read_text(encoding="utf-8"), re.MULTILINE)
    once = {f"{name}.py" for name in listed[1].split()} if listed else set()
    counts = {"plain": collections.Counter(), "backends": collections.Counter()}
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        kind = "plain" if path.startswith("plain/") or path in once else "backends"
        tree = ast.parse(file.read_text(encoding="utf-8"))
        marks = [node.value for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                counts[kind]["functions"] += file.name.startswith("test_")
                marked = any("mark.once" in ast.unparse(mark) for mark in [*marks, *node.decorator_list])
                counts[kind]["once"] += marked
            elif isinstance(node, ast.Assert):
                counts[kind]["assert statements"] += 1
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                if name.startswith("assert") or name in ("raises", "warns"):
                    counts[kind]["raises, warns and assert_* calls"] += 1
    return counts


def print_tests(checkout):
    counts = count_tests(checkout)
    plain, others = counts["plain"], counts["backends"]
    functions = plain["functions"] + others["functions"]
    runs = plain["functions"] + 3 * (others["functions"] - others["once"]) + others["once"]
    print(f"test functions             {functions:6,}")
    print(f"  without a backend, once  {plain['functions']:6,}")
    print(f"  on one backend           {others['once']:6,}")
    print(f"  on each backend          {others['functions'] - others['once']:6,}")
    print(f"functions run on all three {runs:6,}")
    for kind in ("assert statements", "raises, warns and assert_* calls"):
        print(f"{kind:26} {plain[kind] + others[kind]:6,}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path, default=Path(__file__).parents[1], metavar="DIR", help="the checkout")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    parser.add_argument("--tests", action="store_true", help="count tests and assertions")
    parser.add_argument("--before", type=Path, metavar="DIR", help="a former checkout, to stand beside")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE}")
    parser.add_argument("--no-run", action="store_true", help="without the measures that run the package")
    options = parser.parse_args(arguments)
    checkout = options.package.resolve()
    if not (checkout / PACKAGE).is_dir():
        parser.error(f"{checkout} has no folder {PACKAGE}")
    if options.check:
        lines = list(missed_goals(checkout))
        print("\n".join(lines) if lines else "All goals are met.")
        return int(bool(lines))
    if options.tests:
        print_tests(checkout)
        return 0
    columns = [dict(measures(each, not options.no_run)) for each in (options.before, checkout) if each]
    table = as_table(columns)
    if options.write:
        write_table(checkout / PAGE, table)
    print(table)
    return 0


def as_table(columns):
    """Returns Markdown of the measures of one checkout, or of the former and the present one."""
    lines = [
        "| what | measure |" if len(columns) == 1 else "| what | before | now |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for what in columns[-1]:
        lines.append(f"| {what} | {' | '.join(column.get(what, '') for column in columns)} |")
    return "\n".join(lines)


def write_table(page, table):
    """Puts the table between the marks of a page."""
    before, first, rest = page.read_text(encoding="utf-8").partition("<!-- measures -->\n")
    _, last, after = rest.partition("<!-- end of measures -->")
    if not last:
        raise SystemExit(f"{page} has no marks for the measures")
    page.write_text(f"{before}{first}{table}\n{last}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
