"""The notebooks run as they are, their committed outputs are those of a clean run, and what they say about the outputs is true.

Each notebook checks its own sentences, in cells with the tag ``remove-cell``, which the documentation leaves out.

``SCIMPUTE_TUTORIALS=write`` in the environment writes the outputs of this run into the notebooks.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import anndata as ad
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import scimpute

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCIMPUTE_DATA", ROOT.parent / "shared" / "data"))
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
WRITE = os.environ.get("SCIMPUTE_TUTORIALS") == "write"

# What must hold on real data.
REAL_CLAIMS = {
    "01_single_cell": """
assert adata.n_vars <= 300 + len(markers) and (adata.obs["n_counts"] > adata.X.sum(axis=1).A1).all()
assert agreement.xs("max", axis=1, level=1)["kmeans_ari"]["a tenth of them", "imputed"] > 0.2
assert heldout.loc["began_train", "poisson"] < heldout.loc[["gene_mean", "knn", "svd"], "poisson"].min()
assert (group_sums["imputed"] < group_sums["gene mean"]).all()
""",
    "02_bulk": """
assert adata.n_vars == 150 and adata.X.max() < 30
assert scores.loc["pmi", "r2"] > scores.loc["group_mean", "r2"] + 0.05
assert r2["pmi"].mean() > r2["group mean of the reference"].mean()
assert rows["the low values"]["mean error"] > 1
""",
    "03_spatial": """
assert adata.n_vars == 200 and set(genes) <= set(adata.var_names) and set(adata.obs["section"]) == {"B4"}
assert (adata.obs["molecules"] > adata.X.sum(axis=1).A1).all()
gain = scores.loc["gene_mean", "poisson"] - scores["poisson"]
assert (gain[methods] > 0).all()
assert abs(gain["own_counts"] / gain["all"] - 1) < 0.1
assert moran.loc["surroundings", "mean"] > moran.loc["all", "mean"] > moran.loc["raw", "mean"]
assert pattern_shares.loc["shuffled genes", list(variants)].min() > 0.5
means_at_zero = totals.loc["mean where 0 was counted"]
assert means_at_zero["poisson"] < 0.5 < 1 < means_at_zero["squared"]
assert new_section.loc["applied", "poisson"] < new_section.loc["gene_mean", "poisson"] - 0.05
""",
    "04_batches": """
assert adata.n_vars == 200 and path and not hasattr(adata, "true_first")
share, ari = measures["share of batches"], measures["ARI with types"]
assert share["no key"] > share["counts"] > share["ComBat of no key"] and share["no key"] - 0.2 < share["as average"] < share["no key"] - 0.03
assert abs(share["batch_key"] - share["no key"]) < 0.03
assert ari[["counts", "no key", "batch_key"]].max() < 0.6 < 0.9 < ari.drop(["counts", "no key", "batch_key"]).min()
scores_with_labels = heldout.drop(["raw", "gene_mean"])
assert (scores_with_labels.max() - scores_with_labels.min()).max() < 0.002
assert (unseen["closed"] < 0.4).all()
""",
}


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Any], Any]:
    """A function that runs a notebook in a folder of its own, with the package that is tested, and returns it."""

    def execute(notebook: Any) -> Any:
        env = dict(os.environ)
        env |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONDONTWRITEBYTECODE": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(scimpute.__file__).parent.parent), env.get("PYTHONPATH")]))
        env.pop("MPLBACKEND", None)  # figures go into the notebook
        (tmp_path / "work").mkdir()
        # Sockets of the file system, which the rest of the machine does not see; their paths must be short.
        with tempfile.TemporaryDirectory(prefix="nb-") as sockets:
            manager = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{sockets}/kernel.json")
            # The machine may be busy.
            patience = {"timeout": 300, "startup_timeout": 300, "iopub_timeout": 60}
            resources = {"metadata": {"path": str(tmp_path / "work")}}
            client = NotebookClient(notebook, km=manager, record_timing=False, resources=resources, **patience)
            return without_progress(asyncio.run(client.async_execute(env=env, cleanup_kc=True)))

    return execute


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def without_progress(notebook: Any) -> Any:
    """The notebook without bars, and the line above each: a reader sees them move, on a page they say nothing."""
    for cell in code(notebook):
        for out in cell.outputs:
            if out.get("name") == "stdout":
                out.text = re.sub(r"^tl\.\w+: .*\n", "", out.text, flags=re.MULTILINE)
        bars = "application/vnd.jupyter.widget-view+json"
        cell.outputs = [out for out in cell.outputs if bars not in out.get("data", {}) and out.get("text") != ""]
    notebook.metadata.pop("widgets", None)
    return notebook


def kinds(notebook: Any) -> list[list[str]]:
    """What every cell shows, without the content."""
    return [
        [out.get("name") or "+".join(sorted(out.get("data", {}))) or out.output_type for out in cell.outputs] for cell in code(notebook)
    ]


def complaints(notebook: Any) -> list[str]:
    """Errors and all that was written to stderr: warnings, progress bars."""
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    return [str(out) for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]


def with_parameters(notebook: Any, **values: Any) -> Any:
    (cell,) = (cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    assert set(values) == set(re.findall(r"^(\w+) = ", cell.source, flags=re.MULTILINE))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_says_the_truth(path, run):
    committed = nbformat.read(path, as_version=4)
    notebook = run(nbformat.read(path, as_version=4))
    assert complaints(notebook) == []
    if WRITE:
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
    else:
        assert kinds(committed) == kinds(notebook), "the outputs are not those of the notebook; see the head of this file"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_those_of_a_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert any(kinds(notebook))
    assert complaints(notebook) == []
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    texts = [cell.source for cell in notebook.cells] + [out.text for out in outputs if out.output_type == "stream"]
    texts += [str(value) for out in outputs for kind, value in out.get("data", {}).items() if kind.startswith("text/")]
    # A path from the root or from a home, but not an address, an end tag, or what follows a name.
    absolute = re.compile(r"(?<![\w.:/<])(?:/[\w.-]+){2,}|(?<!\w)~/\w|\b[A-Z]:\\")
    assert [found for text in texts for found in absolute.findall(text)] == []


@pytest.mark.skipif(not (DATA / "tcga_bulk.h5ad").exists(), reason=f"no tcga_bulk.h5ad in {DATA}; set SCIMPUTE_DATA")
def test_bulk_runs_on_real_data(run, tmp_path):
    """Three cohorts and few genes: the time grows with both."""
    adata = ad.read_h5ad(DATA / "tcga_bulk.h5ad")
    adata = adata[adata.obs["cohort"].isin(["ACC", "CHOL", "STAD"])]
    assert adata.obs["age"].isna().any()
    adata.write_h5ad(tmp_path / "tcga.h5ad")
    notebook = with_parameters(
        nbformat.read(ROOT / "tutorials" / "02_bulk.ipynb", as_version=4),
        path=str(tmp_path / "tcga.h5ad"),
        categorical=["cohort", "sex"],
        continuous=["age"],
        group="cohort",
        log=True,
        n_top_genes=150,
        quick={"n_models": 1, "n_hidden": 64, "max_epochs": 10},
    )
    notebook.cells.append(nbformat.v4.new_code_cell(REAL_CLAIMS["02_bulk"]))
    assert complaints(run(notebook)) == []


@pytest.mark.skipif(not (DATA / "her2st_he.h5ad").exists(), reason=f"no her2st_he.h5ad in {DATA}; set SCIMPUTE_DATA")
def test_spatial_runs_on_real_data(run):
    """Without labels; few genes and a short training: the time grows with both."""
    notebook = with_parameters(
        nbformat.read(ROOT / "tutorials" / "03_spatial.ipynb", as_version=4),
        path=str(DATA / "her2st_he.h5ad"),
        image="hires",
        library_key="section",
        labels=None,
        genes=["ERBB2", "COL1A1"],
        n_top_genes=200,
        quick={"n_repeats": 1, "n_context": 15, "width": 32, "penalty": 30.0, "max_epochs": 20},
    )
    notebook.cells.append(nbformat.v4.new_code_cell(REAL_CLAIMS["03_spatial"]))
    assert complaints(run(notebook)) == []


@pytest.mark.skipif(not (DATA / "pbmc3k.h5ad").exists(), reason=f"no pbmc3k.h5ad in {DATA}; set SCIMPUTE_DATA")
def test_single_cell_runs_on_real_data(run, tmp_path):
    """Every fourth cell, few genes and a short training: the time grows with all of them."""
    ad.read_h5ad(DATA / "pbmc3k.h5ad")[::4].copy().write_h5ad(tmp_path / "pbmc.h5ad")
    notebook = with_parameters(
        nbformat.read(ROOT / "tutorials" / "01_single_cell.ipynb", as_version=4),
        path=str(tmp_path / "pbmc.h5ad"),
        labels="cell_type",
        markers={"MS4A1": "B", "CD8A": "CD8 T", "LYZ": "CD14+ Mono", "NKG7": "NK"},
        n_top_genes=300,
        quick={"n_repeats": 1, "n_context": 10, "width": 32, "penalty": 30.0, "max_epochs": 15},
    )
    notebook.cells.append(nbformat.v4.new_code_cell(REAL_CLAIMS["01_single_cell"]))
    assert complaints(run(notebook)) == []


@pytest.mark.skipif(not (DATA / "cellmix_2tech.h5ad").exists(), reason=f"no cellmix_2tech.h5ad in {DATA}; set SCIMPUTE_DATA")
def test_batches_run_on_real_data(run):
    """Few genes and a short training: the time grows with both."""
    notebook = with_parameters(
        nbformat.read(ROOT / "tutorials" / "04_batches.ipynb", as_version=4),
        path=str(DATA / "cellmix_2tech.h5ad"),
        batch_key="batch",
        labels="cell_type",
        n_top_genes=200,
        quick={"n_repeats": 1, "n_context": 10, "width": 32, "penalty": 30.0, "max_epochs": 15},
    )
    notebook.cells.append(nbformat.v4.new_code_cell(REAL_CLAIMS["04_batches"]))
    assert complaints(run(notebook)) == []
