"""A layer of expected counts that was normalised and logged where it is: whatever reads it refuses it."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from scimpute import datasets, metrics, pl, pp
from scimpute._anndata.read import read_layer

READERS = {
    "pl.imputed": lambda a: pl.imputed(a, "gene1", basis="some", show=False),
    "pl.spatial": lambda a: pl.spatial(a, "gene1", "began", show=False),
    "metrics.heldout": lambda a: metrics.heldout(a, "began"),
    "metrics.gene_trust": lambda a: metrics.gene_trust(a, "began"),
    "metrics.cluster_agreement": lambda a: metrics.cluster_agreement(a, "began", "cell_type"),
    "metrics.spatial_autocorrelation": lambda a: metrics.spatial_autocorrelation(a, "began"),
    "metrics.report": lambda a: metrics.report(a, "began", save="report.html"),
}


@pytest.fixture
def imputed() -> ad.AnnData:
    """As tl.began leaves it, without the training."""
    adata = datasets.toy_counts()
    pp.thin(adata)
    adata.obsm["some"] = adata.obsm["spatial"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.layers["began"] = adata.layers["rate"].astype(np.float32)
    adata.obsp["spatial_connectivities"] = sp.eye_array(adata.n_obs, k=1, format="csr") + sp.eye_array(adata.n_obs, k=-1, format="csr")
    adata.uns["began"] = {"method": "began", "params": {"layer": "thin_train", "output": "counts"}}
    return adata


def logged(adata: ad.AnnData, target_sum: float | None = 1e4) -> None:
    sc.pp.normalize_total(adata, layer="began", target_sum=target_sum)
    sc.pp.log1p(adata, layer="began")


@pytest.mark.parametrize("function", READERS)
def test_refused(imputed, refused, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logged(imputed)
    message = r"layer 'began' was written as expected counts, and holds log1p of normalised values.*normalise a copy"
    refused(imputed, READERS[function], ValueError, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target_sum", [None, 1e6])
@pytest.mark.parametrize("some", [slice(5, 30), slice(None, None, -1)])
def test_any_target_and_any_cells(imputed, target_sum, some):
    logged(imputed, target_sum)
    with pytest.raises(ValueError, match="holds log1p"):
        read_layer(imputed[some].copy(), "began")


def test_sparse_and_not_of_ours(imputed):
    logged(imputed)
    imputed.layers["began"] = sp.csr_matrix(imputed.layers["began"])
    del imputed.uns["began"]
    read_layer(imputed, "began")  # on whatever scale
    with pytest.raises(ValueError, match="'began' must hold expected counts, and holds log1p"):
        metrics.heldout(imputed, "began")


def test_what_are_counts_is_read(imputed):
    """Counts of one depth, cells that are all alike, and logs that were meant."""
    values = np.asarray(imputed.layers["began"])
    for name, counts in {"depth": 300 * values / values.sum(1, keepdims=True), "alike": np.tile(values[0], (len(values), 1))}.items():
        imputed.layers[name] = counts.astype(np.float32)
    with pytest.warns(UserWarning, match="every cell of it has the same total") as caught:
        metrics.heldout(imputed, ["began", "depth", "alike"])
    assert {str(warning.message).split("'")[1] for warning in caught} == {"depth", "alike"}
    logged(imputed)
    imputed.uns["began"]["params"]["output"] = "log1p"
    assert len(pl.imputed(imputed, "gene1", basis="some", show=False)) == 2
