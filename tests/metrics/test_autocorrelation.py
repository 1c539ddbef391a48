"""Moran's I before and after, by hand and against the dense formula."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scimpute import metrics
from scimpute.metrics import _autocorrelation


def path(n: int) -> np.ndarray:
    """Spots in a row, each next to the one before."""
    return np.eye(n, k=1) + np.eye(n, k=-1)


def small(*genes, graph=None, **layers) -> ad.AnnData:
    """Counts by gene, filled up by a last gene to the same depth in all spots; layers by gene, in the logarithm."""
    counts = np.array(genes, np.float32).T
    counts = np.column_stack([counts, counts.sum(1).max() + 1 - counts.sum(1)])
    adata = ad.AnnData(sp.csr_matrix(counts))
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(path(len(counts)) if graph is None else graph)
    for name, values in layers.items():
        adata.layers[name] = np.column_stack([*values, np.ones(len(counts))]).astype(np.float32)
    return adata


def test_by_hand():
    # 4 spots, 6 directed edges. Counts alternate: I = 4/6 * 2 * 3 * -1/4 / 1 = -1; 0 1 1 0: 4/6 * 2 * (-1 + 1 - 1)/4 / 1 = -1/3.
    # 1 2 3 4, whose squares add up to 5: 4/6 * 2 * (3 - 1 + 3)/4 / 5 = 1/3.
    adata = small([1, 0, 1, 0], [0, 1, 1, 0], mine=[[1, 2, 3, 4], [2, 5, 5, 2]])
    genes = metrics.spatial_autocorrelation(adata, "mine", output="log1p", by="gene")
    assert list(genes.columns) == ["raw", "permuted", "mine"]
    assert list(genes.index) == list(adata.var_names)
    np.testing.assert_allclose(genes["raw"][:2], [-1, -1 / 3], rtol=1e-6)
    np.testing.assert_allclose(genes["mine"], [1 / 3, -1 / 3, np.nan], rtol=1e-6)
    table = metrics.spatial_autocorrelation(adata, ["mine"], output="log1p", genes=["0", "1"])
    assert list(table.index) == ["raw", "permuted", "mine"]
    assert list(table.columns) == ["mean", "difference", "inflated", "correlation", "genes"]
    np.testing.assert_allclose(table.loc["raw"], [-2 / 3, 0, 0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(table.loc["mine"], [0, 2 / 3, 0.5, -1, 2], rtol=1e-6, atol=1e-6)
    # A gene that is constant in the layer counts in neither mean.
    table = metrics.spatial_autocorrelation(small([1, 0, 1, 0], [0, 1, 1, 0], mine=[[1, 2, 3, 4], [1, 1, 1, 1]]), "mine", output="log1p")
    assert table.loc["mine", "genes"] == 1
    assert table.loc["mine", "difference"] == pytest.approx(4 / 3)
    assert np.isnan(table.loc["mine", "correlation"])


def test_the_same_is_not_inflated_whatever_scale_it_is_written_on(adata):
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(path(60))
    counts = adata.X.toarray()
    rate = counts / counts.sum(1, keepdims=True)
    adata.layers.update(counts=adata.X.tocsc(), ours=rate, log=np.log1p(1e4 * rate), theirs=np.log1p(1e4 * rate))
    adata.uns["ours"] = {"method": "began", "params": {"output": "rate"}}
    adata.uns["log"] = {"method": "began", "params": {"output": "log1p"}}
    table = metrics.spatial_autocorrelation(adata, ["counts", "ours", "log"])
    for name in ("counts", "ours", "log"):
        np.testing.assert_allclose(table.loc[name], table.loc["raw"], rtol=1e-6, atol=1e-6)
    table = metrics.spatial_autocorrelation(adata, ["theirs", "ours", "log"], output="log1p")
    assert table.loc[["theirs", "ours", "log"], "inflated"].tolist() == [0, 0, 0]


def dense(x: np.ndarray, graph: np.ndarray) -> np.ndarray:
    z = x - x.mean(0)
    return len(x) / graph.sum() * np.einsum("ij,ik,kj->j", z, graph, z) / (z**2).sum(0)


def test_against_the_dense_formula(adata, monkeypatch, fingerprint):
    rng = np.random.default_rng(0)
    graph = np.triu(rng.random((60, 60)) < 0.1, 1).astype(float) * 3
    graph += graph.T
    graph[7] = graph[:, 7] = 0  # without a neighbour it is left out, also of the means
    graph[7, 7] = 1
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(graph)
    counts = adata.X.toarray()
    counts[:, 5] = 0
    adata.X = sp.csr_matrix(counts)
    adata.layers["flat"] = counts.sum(1, keepdims=True) * (counts.sum(0) / counts.sum())
    before = fingerprint(adata)
    genes = metrics.spatial_autocorrelation(adata, ["rate", "flat"], by="gene")
    assert fingerprint(adata) == before
    others = np.arange(60) != 7
    for name, values in {"raw": counts, "rate": adata.layers["rate"]}.items():
        logs = np.log1p(1e4 * values / values.sum(1, keepdims=True))[others]
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(genes[name], dense(logs, (graph > 0)[np.ix_(others, others)]), atol=1e-6)
    assert genes["raw"].isna().to_numpy().nonzero()[0].tolist() == [5]
    # The same profile in all spots, at whatever depth, is constant but for rounding.
    assert genes["flat"].isna().all()
    row = metrics.spatial_autocorrelation(adata, "flat").loc["flat"]
    assert row["genes"] == 0
    assert row.drop("genes").isna().all()
    # Chunks of three genes give the same.
    original = _autocorrelation.chunks
    monkeypatch.setattr(_autocorrelation, "chunks", lambda n, width: original(n, width, 3 * width))
    pd.testing.assert_frame_equal(metrics.spatial_autocorrelation(adata, ["rate", "flat"], by="gene"), genes)


def test_permuted_spots_have_no_structure():
    rng = np.random.default_rng(0)
    side, n_genes = 8, 200
    grid = np.kron(path(side), np.eye(side)) + np.kron(np.eye(side), path(side))
    slope = np.repeat(np.arange(side), side)[:, None] * rng.choice([-0.2, 0.2], n_genes)
    adata = ad.AnnData(
        sp.csr_matrix(rng.poisson(20 * np.exp(slope)).astype(np.float32)), obsp={"spatial_connectivities": sp.csr_matrix(grid)}
    )
    genes = metrics.spatial_autocorrelation(adata, [], by="gene")
    assert genes["raw"].mean() > 0.3
    error = genes["permuted"].std() / np.sqrt(n_genes)
    # Over genes that share their permutation the values are not independent.
    assert abs(genes["permuted"].mean() + 1 / (side**2 - 1)) < 20 * error
    several = [metrics.spatial_autocorrelation(adata, [], random_state=seed).loc["permuted", "mean"] for seed in range(20)]
    assert abs(np.mean(several) + 1 / (side**2 - 1)) < 4 * np.std(several) / np.sqrt(20)
    again = metrics.spatial_autocorrelation(adata, [], by="gene")
    pd.testing.assert_frame_equal(again, genes)


def test_sections_by_hand():
    """What differs between sections only is no structure, and an edge between them is none."""
    graph = path(8)  # one edge, from the fourth to the fifth spot, joins the two
    adata = small([1, 0, 1, 0, 3, 2, 3, 2], mine=[[1, 2, 3, 4, 6, 7, 8, 9]], graph=graph)
    adata.obs["section"] = list("aaaabbbb")
    assert metrics.spatial_autocorrelation(adata, "mine", output="log1p", by="gene").loc["0", "mine"] > 0.7
    within = metrics.spatial_autocorrelation(adata, "mine", output="log1p", by="gene", library_key="section")
    assert within.loc["0", "mine"] == pytest.approx(1 / 3)
    assert within.loc["0", "raw"] == pytest.approx(-1)
    # A column with one section only is as none.
    adata.obs["one"] = "a"
    table = metrics.spatial_autocorrelation(adata, "mine", output="log1p", library_key="one")
    pd.testing.assert_frame_equal(table, metrics.spatial_autocorrelation(adata, "mine", output="log1p"))


def test_reads_another_graph(adata):
    adata.obsp["other_connectivities"] = sp.csr_matrix(path(60))
    with pytest.raises(KeyError, match=r"call scimpute.pp.spatial_rings\(adata\) first.*'other_connectivities'"):
        metrics.spatial_autocorrelation(adata, "rate")
    assert metrics.spatial_autocorrelation(adata, "rate", key="other").loc["rate", "genes"] == 40
    with pytest.raises(KeyError, match=r"spatial_rings\(adata, key_added='mine'\)"):
        metrics.spatial_autocorrelation(adata, "rate", key="mine")


def nan(adata) -> None:
    adata.layers["rate"][3, 2] = np.nan


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (None, {"layers": "rte"}, KeyError, "did you mean 'rate'"),
        (None, {"layers": 3}, TypeError, "layers must be"),
        (None, {"layers": ["rate", "rate"]}, ValueError, "more than once"),
        (None, {"layers": "permuted"}, ValueError, "'permuted'.*more than once"),
        (None, {"genes": ["gne1"]}, KeyError, "did you mean 'gene1'"),
        (None, {"by": "cell"}, ValueError, "by must be one of"),
        (None, {"layer": "rate", "layers": []}, ValueError, "counts are in: adata.X"),
        (None, {"library_key": "section"}, KeyError, "library_key: obs column"),
        (None, {"output": "log"}, ValueError, "output must be one of"),
        (None, {"random_state": -1}, ValueError, "random_state"),
        (nan, {}, ValueError, "layer 'rate' has NaN or infinite values .first: cell 'cell3', gene 'gene2'"),
        (lambda a: a.obsp["spatial_connectivities"].data.fill(np.nan), {}, ValueError, "spatial_connectivities.*NaN"),
        (lambda a: a.obsp.update(spatial_connectivities=sp.csr_matrix((60, 60))), {}, ValueError, "no edge"),
    ],
)
def test_faults(adata, edited, refused, edit, options, error, message):
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(path(60))
    adata = edited(adata, edit)
    refused(adata, lambda a: metrics.spatial_autocorrelation(a, **{"layers": "rate"} | options), error, message)
