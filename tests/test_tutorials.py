"""The notebooks run as they are, their committed outputs are those of a clean run, and what they say about the outputs is true.

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

# What the text of a notebook says about its numbers, in its own variables.
CLAIMS = {
    "00_first_steps": """
assert (adata.layers["began"] > 0).all() and adata.X.max() == int(adata.X.max())
assert adata.var["highly_variable"].sum() == 500 and adata.obs["leiden"].nunique() > 8
first_five = sc.get.rank_genes_groups_df(adata, None).groupby("group", observed=True).head(5)["names"]
assert {"CD79A", "NKG7", "CD3D"} <= set(first_five)
full = (adata.to_df(layer="began_log1p")[markers["B"]] > 0).mean()
above = (adata.to_df(layer="began_log1p")[markers["B"]] > half_a_molecule).groupby(adata.obs[labels], observed=True).mean()
assert (full == 1).all() and above.loc["CD19+ B"].min() > 0.6 and above.loc[["CD14+ Monocyte", "Dendritic", "CD56+ NK"]].max().max() < 0.1
""",
    "01_single_cell": """
assert adata.shape == (700, 765) and adata.obs["bulk_labels"].nunique() == 10
assert adata.obs["leiden_imputed"].nunique() > adata.obs["leiden_counts"].nunique()
ari = agreement.xs("max", axis=1, level=1)["kmeans_ari"]
assert abs(ari["all molecules", "imputed"] - ari["all molecules", "raw"]) < 0.06
assert agreement["kmeans_ari"]["min"]["a tenth of them", "imputed"] > ari["a tenth of them", "raw"] + 0.02
lost = ari["all molecules"] - ari["a tenth of them"]
assert lost["raw"] > lost["imputed"] + 0.01
leiden = agreement.xs("max", axis=1, level=1)["leiden_ari"]
assert leiden["all molecules", "imputed"] < leiden["all molecules", "raw"] + 0.08
assert abs(leiden["a tenth of them", "imputed"] - leiden["a tenth of them", "raw"]) < 0.05
gained = marker_auc["imputed"] - marker_auc["counts"]
assert (gained.drop(["CD4", "LYZ", "NKG7"]) > 0.005).all() and gained[["LYZ", "NKG7"]].abs().max() < 0.05
assert gained[marker_auc["molecules"] < 100].min() > gained[marker_auc["molecules"] > 900].max()
assert marker_auc.loc[["GATA2", "KLRC2"], "molecules"].between(7, 12).all() and marker_auc.loc[["GATA2", "KLRC2"], "imputed"].min() > 0.95
assert abs(marker_auc.loc["CD4", "counts"] - 0.5) < 0.05 and marker_auc.loc["CD4", "imputed"] < marker_auc.loc["CD4", "counts"] - 0.03
cd4 = (adata.to_df()["CD4"] / size).groupby(adata.obs[labels], observed=True).mean()
assert cd4["CD14+ Monocyte"] > cd4["CD4+/CD25 T Reg"]
assert 150 < told.sum() < 400 and not (zeros & (adata.to_df() > 0)).to_numpy().any()
in_counts, in_imputed = (found_markers.xs(name, level=1) for name in ("counts", "imputed"))
assert in_counts["significant"].max() < 0.4 * adata.n_vars and in_imputed["significant"].min() > 0.5 * adata.n_vars
assert found_markers.loc[("CD4+/CD25 T Reg", "imputed"), "first"].startswith("ST6GALNAC1") and adata.to_df()["ST6GALNAC1"].sum() == 8
assert found_markers.loc[("CD34+", "imputed"), "first"].startswith("GATA2") and in_imputed["fewest molecules"].min() < 10 < 200 <= in_counts["fewest molecules"].min()
in_type = {gene: zeros.loc[adata.obs[labels] == kind, gene].mean() for gene, kind in markers.items()}
assert in_type["MS4A1"] < 0.1 < in_type["FCER1A"] < 0.4 and told[adata.var_names.get_indexer(["GATA2", "KLRC2"])].all()
elsewhere = {gene: zeros.loc[adata.obs[labels] != kind, gene].mean() for gene, kind in markers.items()}
assert elsewhere["MS4A1"] > 0.8
first_gene = list(markers)[0]
assert adata.to_df(layer="began")[first_gene].max() < adata.to_df()[first_gene].max()
middle = relative.median()
assert (middle.iloc[-1] < 0.2).all() and (abs(middle.iloc[2] - 1) < 0.4).all() and middle.iloc[:2].min().min() > 1.05, middle
assert (middle["began"].iloc[4:] < middle["cells_like_it"].iloc[4:]).all()
poisson = heldout["poisson"]
assert poisson["raw"] > poisson["gene_mean"] > poisson["svd"] > poisson["knn"] > poisson["began_train_like_it"] + 0.003
assert poisson["began_train_like_it"] > poisson["began_train"]
assert (abs(calibration.iloc[2:] - 1) < 0.15).all().all() and calibration.iloc[0]["held out / expected"] < 0.95
by_band = second.groupby(band, observed=True).median()
assert by_band["z"].is_monotonic_increasing and by_band["trust"].iloc[:2].max() < 0.05 < 0.25 < by_band["trust"].iloc[-1]
assert 200 < believed.n_vars < 350
for split in (first, second):
    assert (split.loc[["KLRC2", "GATA2"], "molecules"] < 4).all() and not (split.loc[["KLRC2", "GATA2"], "z"] > 2).any()
    assert split.loc["CD4", "trust"] < 0.05
assert nothing.loc[["raw", "imputed"], "differential_genes"].max() < 1 < 5 < nothing.loc["imputed_with_label", "differential_genes"]
assert nothing.loc["imputed", "correlation"] > nothing.loc["raw", "correlation"] + 0.015
permuted, again = without_signal["permuted"], without_signal["test part once more"]
assert (again[["began_train_like_it", "began_train"]] > again["gene_mean"] + 0.005).all()
assert permuted["began_train"] < permuted["began_train_like_it"] < permuted["gene_mean"] - 0.005
methods = ["began_train_like_it", "began_train"]
assert (permuted["gene_mean"] - permuted[methods] < poisson["gene_mean"] - poisson[methods] - 0.001).all()
small, large = group_sums[group_sums["cells"] < 40], group_sums[group_sums["cells"] > 90]
assert len(small) == 4 and len(large) == 3 and (small["imputed"] < small["counts"] - 0.05).all()
assert (abs(large["imputed"] / large["counts"] - 1) < 0.06).all()
""",
    "02_bulk": """
assert 0.2 < scores.loc["group_mean", "r2"] < 0.4
assert scores.loc["pmi", "r2"] > scores.loc["group_mean", "r2"] + 0.3
assert scores.loc["pmi", "r2_within"] > 0.5
assert abs(scores.loc["pmi", "r2"] - scores.loc["gain", "r2"]) < 0.01
assert adata.uns["pmi"]["network_share"] < 0.1
new_samples = scimpute.metrics.recovery(query, "pmi", groupby=group)
assert abs(new_samples.loc["pmi", "r2"] - scores.loc["pmi", "r2"]) < 0.1
assert r2["pmi"].mean() > r2["group mean of the reference"].mean() + 0.2
assert (shares["all"] - shares.index).abs().max() < 0.05
assert (shares["few values"] < shares["many values"]).all()
medians = genes.groupby(quarters, observed=True)["truth"].median()
assert medians.iloc[0] == medians.min()
assert medians.iloc[-1] > medians.iloc[0] + 0.05
assert abs(rows["at random"]["mean error"]) < 0.1 < 0.5 < rows["the low values"]["mean error"]
assert rows["the low values"]["inside the 90% interval"] < 0.7
assert rows["the low values"]["median of its own R2"] > 0.5
assert found["observed values only"]["unchanged genes"] < 0.15 < found["filled, arm as a covariate"]["unchanged genes"]
assert found["observed values only"]["raised genes"] < found["filled, arm as a covariate"]["raised genes"]
""",
    "03_spatial": """
assert everything.obs["section"].nunique() == 3 and adata.obs["region"].nunique() == 4
assert adata.obsp["spatial_connectivities"].sum(axis=1).max() == 6 and adata.obsp["spatial_ring2"].sum(axis=1).max() == 12
assert (adata.layers["spatial_imputed"] > 0).all()
shown = adata.to_df(layer="spatial_imputed")[genes].div(adata.layers["spatial_imputed"].sum(axis=1), axis=0)
assert shown[genes[0]].groupby(adata.obs["region"], observed=True).mean().idxmax() == "region2"
assert shown[genes[1]].corr(adata.obs["density"]) < -0.4
worth = adata.uns["spatial_imputed"]["contribution"]["contribution"]
assert 0.03 < worth["position"] / worth["counts"] < 0.25 and 0.03 < worth["image"] / worth["counts"] < 0.25
gained = scores.loc["gene_mean", "poisson"] - scores["poisson"]
assert scores["poisson"].idxmax() == "raw" and (gained[methods] > 0).all()
assert abs(gained["own_counts"] / gained["all"] - 1) < 0.05 and abs(gained["began"] / gained["all"] - 1) < 0.05
assert 0.7 < gained["surroundings"] / gained["all"] < 0.9 and 0.7 < gained["nmf"] / gained["all"] < 0.9
gained = (shallow.loc["gene_mean", "poisson"] - shallow["poisson"]).rename(lambda name: name.removeprefix("shallow_"))
assert gained["own_counts"] < gained["surroundings"]
assert 1.3 < gained["all"] / gained["own_counts"] < 1.8
assert agreement.loc["own_counts"].min() > 0.8 > 0.7 > agreement.loc["raw"].max()
assert agreement.loc[["surroundings", "all"]].min().min() < 0.85
assert (agreement.loc["nmf"] < agreement.loc["raw"]).all()
assert abs(moran.loc["raw", "mean"] - 0.08) < 0.02 and abs(moran.loc["rate", "mean"] - 0.5) < 0.02
assert moran.loc["own_counts", "mean"] > moran.loc["raw", "mean"] + 0.2
assert moran.loc["surroundings", "mean"] > moran.loc["rate", "mean"] + 0.1
assert scores.loc[list(tellings), "poisson"].idxmax() == "surroundings"
assert patterned.loc["shuffled genes", "raw"] < 0.1 < 0.5 < patterned.loc["shuffled genes", list(tellings)].min()
assert patterned.loc["shuffled genes", "surroundings"] > 0.9
assert abs(recovered.loc["spatial_squared", "r2"] - 0.63) < 0.03 and abs(recovered.loc["mean_of_nonzeros", "r2"] - 0.6) < 0.01
assert recovered.loc["spatial_poisson", "r2"] < 0 == recovered.loc["mean_of_nonzeros", "correlation"]
assert recovered.loc["spatial_squared", "correlation"] > 0.1
assert abs(filled.loc["region0", "true"] - 0.05) < 0.01 and abs(filled.loc["region0", "poisson"] - 0.2) < 0.1
assert (filled["squared"] > 1).all()
where, spots = totals.loc["mean where 0 was counted"], totals.loc["molecules per spot"]
assert abs(where["true"] - 0.35) < 0.01 and abs(where["poisson"] - 0.32) < 0.03 and abs(where["squared"] - 1.21) < 0.1
assert 1.65 < spots["squared"] / spots["counted"] < 1.95
gained = new_section.loc["gene_mean", "poisson"] - new_section["poisson"]
assert abs(gained["applied"] / gained["trained_on_it"] - 1) < 0.1
""",
    "04_batches": """
assert list(adata.obs[batch_key].cat.categories) == [first, second] and (pd.crosstab(adata.obs[batch_key], adata.obs[labels]) > 50).all().all()
assert abs(seen.loc[second, "molecules"] / seen.loc[first, "molecules"] - 0.5) < 0.06
share, distance, ari = (measures[name] for name in ("share of batches", "distance of batches", "ARI with types"))
assert share["counts"] < 0.12 and share["no key"] > share["counts"] + 0.1
assert abs(share["batch_key"] - share["no key"]) < 0.05 and abs(ari["batch_key"] - ari["no key"]) < 0.05
for target in ("as first", "as average"):
    assert 0.05 < share[target] < share["no key"] - 0.07 and 0.15 < distance[target] < distance["no key"] - 0.05
assert share[["ComBat of counts", "ComBat of no key"]].max() < 0.05
assert ari.max() - ari.min() < 0.1
rmse = truth.xs("rmse", axis=1, level=1)
assert abs(rmse.loc["batch_key"] - rmse.loc["no key"]).max() < 0.04
for target in ("as first", "as average"):
    assert (rmse.loc[target] < rmse.loc["no key"] - 0.02).all()
    assert (truth.xs("gene_correlation", axis=1, level=1).loc[target] > truth.xs("gene_correlation", axis=1, level=1).loc["no key"] + 0.01).all()
assert rmse["true_first"].idxmin() == "as first" and rmse["true_average"].idxmin() == "ComBat of no key"
assert rmse.loc["ComBat of no key", "true_average"] < rmse.loc["ComBat of counts", "true_average"] - 1
left = strength["as average"] / strength["no key"]
assert left[0.25] < 0.6 < 0.85 < left[1.0] and left.is_monotonic_increasing
assert (strength["ComBat of no key"] < 0.06).all()
assert (depths.loc[second].drop("sd / value") < 0.6 * depths.loc[first].drop("sd / value")).all()
assert 1 < depths.loc[second, "sd / value"] / depths.loc[first, "sd / value"] < 1.3
assert unseen.loc[kind, "cells in second"] == 0 and (unseen["closed"] < 0.6).all() and (unseen["closed"] > 0.05).all()
assert unseen["closed"].idxmin() == kind
genes = pd.concat(nothing)["differential_genes"].unstack()
assert genes[["raw", "imputed"]].max().max() < 1 and genes.loc["batch_key", "imputed_with_label"] > 5
assert genes.loc["target_batch='average'", "imputed_with_label"] < 1
told_scores = heldout.drop(["raw", "gene_mean"])
assert (told_scores.max() - told_scores.min()).max() < abs(heldout["split 0"] - heldout["split 1"]).loc[told_scores.index].max()
assert (told_scores.max() < heldout.loc["gene_mean"] - 0.03).all()
""",
}
# What must hold on real data too.
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
gained = scores.loc["gene_mean", "poisson"] - scores["poisson"]
assert (gained[methods] > 0).all()
assert abs(gained["own_counts"] / gained["all"] - 1) < 0.1
assert moran.loc["surroundings", "mean"] > moran.loc["all", "mean"] > moran.loc["raw", "mean"]
assert patterned.loc["shuffled genes", list(tellings)].min() > 0.5
where = totals.loc["mean where 0 was counted"]
assert where["poisson"] < 0.5 < 1 < where["squared"]
assert new_section.loc["applied", "poisson"] < new_section.loc["gene_mean", "poisson"] - 0.05
""",
    "04_batches": """
assert adata.n_vars == 200 and path and not hasattr(adata, "true_first")
share, ari = measures["share of batches"], measures["ARI with types"]
assert share["no key"] > share["counts"] > share["ComBat of no key"] and share["no key"] - 0.2 < share["as average"] < share["no key"] - 0.03
assert abs(share["batch_key"] - share["no key"]) < 0.03
assert ari[["counts", "no key", "batch_key"]].max() < 0.6 < 0.9 < ari.drop(["counts", "no key", "batch_key"]).min()
told_scores = heldout.drop(["raw", "gene_mean"])
assert (told_scores.max() - told_scores.min()).max() < 0.002
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


def with_claims(notebook: Any, name: str) -> Any:
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS.get(name, "")))
    return notebook


def with_parameters(notebook: Any, **values: Any) -> Any:
    (cell,) = (cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    assert set(values) == set(re.findall(r"^(\w+) = ", cell.source, flags=re.MULTILINE))
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_says_the_truth(path, run):
    committed = nbformat.read(path, as_version=4)
    notebook = run(with_claims(nbformat.read(path, as_version=4), path.stem))
    del notebook.cells[-1]
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
