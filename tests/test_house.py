"""Which part of the package may know which: read from the imports of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import scimpute

PACKAGE = Path(scimpute.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
GROUND = {path.stem for path in PACKAGE.glob("_*.py")} - {"__init__", "__main__", "_cli"}
"""Single modules below all folders: seeds, threads, files, checks."""
BELOW: dict[str, set[str]] = {
    "models": set(),
    "_space": GROUND,
    "_anndata": {"_space"} | GROUND,
    "_counts": {"models", "_space"} | GROUND,
    "_bulk": {"models"} | GROUND,
}
"""What each private folder may import, beside itself."""
PUBLIC = {"datasets", "pp", "tl", "metrics", "pl"}
BELOW |= dict.fromkeys([*PUBLIC, "_cli"], PUBLIC | set(BELOW) | GROUND)
SLOTS = {"X", "layers", "obs", "var", "obsm", "varm", "obsp", "varp", "uns", "raw"}

OTHERS = {"_check.layers", "self.layers", "parts.raw", "self.raw", "inner.raw"}
"""Attributes of these names that are of no AnnData."""


def room(path: Path) -> str:
    """The folder of a file, or the module on the ground floor."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, types: bool = False) -> Iterator[str]:
    """Dotted names of everything a file imports; ``types``: also for type checkers only."""
    tree = ast.parse(path.read_text())
    here = ("scimpute", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def each(*rooms: str) -> pytest.MarkDecorator:
    """A test for every file of some rooms; of all where none is named."""
    files = [path for path in FILES if not rooms or room(path) in rooms]
    assert files
    return pytest.mark.parametrize("path", files, ids=lambda path: str(path.relative_to(PACKAGE)))


@each()
def test_a_room_knows_only_what_lies_below_it(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    allowed = {here} | BELOW.get(here, GROUND)
    ours = {name.split(".")[1] for name in imports(path, types=True) if name.startswith("scimpute.")} - {"__version__"}
    assert ours <= allowed, f"{path.name} imports {sorted(ours - allowed)}"


@each("models", "_space", "_counts", "_bulk")
def test_the_engines_know_no_anndata(path):
    assert not [name for name in imports(path, types=True) if name.split(".")[0] in ("anndata", "scanpy")]


@each("_anndata", "_space", "_sparse", "_check", "_random", "_memory", "_files", "_progress")
def test_what_reads_and_writes_an_object_knows_no_torch(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "torch"]


@each()
def test_only_one_room_touches_what_an_object_holds(path):
    """No ``adata.obsm[...]`` outside ``_anndata``, the data sets, which make objects of their own, and the command line, which writes files.

    A public function may ask for the number and the names of cells and genes.
    """
    if room(path) in ("_anndata", "datasets", "_cli"):
        return
    touched = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in SLOTS
        and isinstance(node.value, ast.Name | ast.Attribute)
        and ast.unparse(node) not in OTHERS
    ]
    assert not touched


@each()
def test_no_file_is_longer_than_a_sitting(path):
    assert len(path.read_text().splitlines()) <= 300


@each()
def test_errors_are_raised_not_made(path):
    """``ValueError(...)`` on a line of its own does nothing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            assert not node.value.func.id.endswith(("Error", "Warning")), f"{path.name}:{node.lineno}"


def test_the_tests_mirror_the_package():
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert {str(folder) for folder in folders if not (PACKAGE / folder).is_dir()} == set()
    assert not list(tests.rglob("__init__.py")), "with them two files of one name could be taken for each other"
