"""What the build of the site does not see: links as a file browser follows them, keys as they are written, code as it is copied."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

import scimpute
from scimpute import _cli
from scimpute._methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no docs")

PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md"), *(DOCS / "api").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
MODULES = {name: getattr(scimpute, name) for name in ("datasets", "metrics", "pl", "pp", "tl")}
SLOTS = ("layers", "obs", "obsm", "obsp", "uns", "var", "varm")


def text_of(path: Path) -> str:
    """Markdown of a page, or of all text cells of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose_of(path: Path) -> str:
    """The same without code."""
    return re.sub(r"^(`{3,})(?!{).*?^\1", "", text_of(path), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ +(.+)$", prose_of(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: there is no {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {path.name} has no heading #{anchor}, only {sorted(anchors(path))}"


@pytest.mark.parametrize("module", MODULES)
def test_api_page_lists_every_function(module: str) -> None:
    listed = re.findall(rf"^   {module}\.(\w+)$", (DOCS / "api" / f"{module}.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(MODULES[module].__all__)


def test_command_line_page_has_every_command() -> None:
    page = (DOCS / "cli.md").read_text()
    for command in ("demo", "apply", *METHODS):
        assert f"| `scimpute {command}` |" in page
        assert f"generated/help_{command}.txt" in page


def test_keys_page_names_every_function() -> None:
    page = (DOCS / "keys.md").read_text()
    assert [
        f"{name}.{function}" for name, module in MODULES.items() for function in module.__all__ if f"`{name}.{function}`" not in page
    ] == []


QUICK: dict[str, Any] = {"max_epochs": 1, "progress": False}
SMALL: dict[str, Any] = {**QUICK, "n_repeats": 1, "n_context": 3, "width": 4, "penalty": 1.0}
BULK: dict[str, Any] = {**QUICK, "n_models": 1, "n_hidden": 8}


def thinned() -> ad.AnnData:
    adata = scimpute.datasets.toy_counts()
    scimpute.pp.thin(adata)
    adata.layers["began"] = adata.layers["rate"]
    return adata


def with_gaps() -> ad.AnnData:
    adata = scimpute.datasets.toy_bulk(40, 60)
    adata.X[::3, 5] = float("nan")
    return adata


WRITERS: dict[str, tuple[Callable[[], ad.AnnData], dict[str, Any]]] = {
    "tl.began": (scimpute.datasets.toy_counts, {**SMALL, "batch_key": "batch"}),
    "tl.spatial": (lambda: scimpute.datasets.toy_visium(8, 8, 60), SMALL),
    "tl.nmf": (lambda: scimpute.datasets.toy_visium(8, 8, 60), {**QUICK, "n_factors": 4}),
    "tl.pmi": (with_gaps, BULK),
    "tl.gain": (with_gaps, BULK),
    "pp.thin": (scimpute.datasets.toy_counts, {}),
    "pp.hide": (scimpute.datasets.toy_counts, {}),
    "pp.spatial_rings": (lambda: scimpute.datasets.toy_visium(8, 8, 60), {}),
    "pp.tiles": (lambda: scimpute.datasets.toy_visium(8, 8, 60), {}),
    "metrics.gene_trust": (thinned, {"key": "began"}),
}


def written(adata: ad.AnnData) -> set[tuple[str, str]]:
    """Every key of the object; to anndata 0.13 ``X`` is the layer None."""
    return {(slot, str(name)) for slot in SLOTS for name in getattr(adata, slot) if name is not None}


@pytest.mark.parametrize("function", WRITERS)
def test_keys_page_says_what_is_written(function: str) -> None:
    make, options = WRITERS[function]
    adata = make()
    before = written(adata)
    module, name = function.split(".")
    getattr(MODULES[module], name)(adata, **options)
    new = written(adata) - before

    section = re.search(rf"^### `{re.escape(function)}`\n(.*?)(?=^##|\Z)", (DOCS / "keys.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert section is not None
    promised = set(re.findall(r'^\| `(\w+)\["(\w+)"\]` \|', section[1], flags=re.MULTILINE))
    assert new == promised
    entries = set(re.findall(r"`(\w+)`", section[1]))
    for slot, key in new:
        if slot == "uns":
            assert set(adata.uns[key]) <= entries, f"uns[{key!r}] has entries the page does not name: {set(adata.uns[key]) - entries}"


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page, but for what is marked as an excerpt: ``<!-- not run -->`` on the line before the block."""
    found = re.findall(rf"^(<!-- not run -->\n)?```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for marked, code in found if not marked]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda path: path.name)
def test_calls_in_examples_are_possible(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            called = ast.unparse(node.func).split(".") if isinstance(node, ast.Call) else []
            if len(called) == 3 and called[0] == "scimpute":
                function = getattr(getattr(scimpute, called[1]), called[2])
                inspect.signature(function).bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Smaller defaults (training, toy data), so that code runs as it stands, only sooner; in its own folder, and no figure is shown."""
    shorter = {"began": SMALL, "spatial": SMALL, "nmf": {**QUICK, "n_factors": 4}, "pmi": BULK, "gain": BULK}
    for name, defaults in shorter.items():
        for option, value in defaults.items():
            monkeypatch.setitem(inspect.unwrap(getattr(scimpute.tl, name)).__kwdefaults__, option, value)
    declared = _cli.parser.function_of

    def shortened(command: str) -> Callable[..., Any]:
        function = declared(command)
        if command in shorter:
            function.__kwdefaults__.update(shorter[command])
        return function

    monkeypatch.setattr(_cli.parser, "function_of", shortened)
    monkeypatch.setattr(scimpute.datasets.toy_bulk, "__defaults__", (200, 100))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda path: path.name)
@pytest.mark.usefixtures("short_training")
@pytest.mark.filterwarnings("ignore:layer 'millionth' does not look like:UserWarning")  # that it scores well is the point
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # scanpy's, of what it does with matplotlib
def test_examples_run(page: Path) -> None:
    """Block after block, as a reader who copies the page from its head."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.usefixtures("short_training")
def test_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line of a page that calls scimpute; the others install, or need a checkout."""
    adata = scimpute.datasets.toy_visium(8, 8, 60)
    adata.obs["batch"] = adata.obs["region"]
    for name in ("in", "new"):
        adata.write_h5ad(f"{name}.h5ad")
    cohort = scimpute.datasets.toy_bulk(40, 60)
    cohort.X[::3, ::5] = np.nan
    cohort.write_h5ad("cohort.h5ad")
    for block in (block for page in PAGES for block in blocks(page, "yaml")):
        Path(block.split()[1]).write_text(block)  # begins with "# name"
    run = []
    for line in "".join(block for page in PAGES for block in blocks(page, "bash")).splitlines():
        if line.startswith("scimpute "):
            run.append(shlex.split(line, comments=True)[1:])
            assert _cli.main(run[-1]) == 0, f"{line}: {capsys.readouterr().err}"
    assert {command[0] for command in run} >= {"demo", "began", "apply", "report", "spatial", "pmi"}
