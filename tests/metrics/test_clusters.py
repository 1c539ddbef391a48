"""Agreement of clusters with known labels."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scimpute import metrics
from scimpute.metrics import _clusters, _log_profiles

BOTH = ["kmeans", "leiden"]


def of_types(adata, values) -> np.ndarray:
    """Every cell as the mean of its type."""
    member = pd.get_dummies(adata.obs["cell_type"]).to_numpy(float)
    return (member @ ((member.T @ values) / member.sum(0)[:, None])).astype(np.float32)


@pytest.fixture
def typed(adata) -> ad.AnnData:
    """With the layers ``types``, the mean of each type, and ``flat``, the mean of all, at every cell's own depth."""
    counts = adata.X.toarray()
    depth = counts.sum(1, keepdims=True)
    adata.layers["types"] = of_types(adata, counts / depth) * depth
    adata.layers["flat"] = depth * (counts.sum(0) / counts.sum())
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    return adata


@pytest.fixture
def quick(monkeypatch) -> None:
    """The graph without the import of umap, which takes seconds."""
    original = sc.pp.neighbors
    monkeypatch.setattr(sc.pp, "neighbors", lambda *args, **options: original(*args, **options | {"method": "gauss"}))


def test_known_answers(typed, fingerprint):
    before = fingerprint(typed)
    table = metrics.cluster_agreement(typed, ["rate", "types", "flat"], "cell_type", method=BOTH)
    assert fingerprint(typed) == before
    assert list(table.index) == ["raw", "rate", "types", "flat"]
    assert list(table.columns) == ["kmeans_ari", "kmeans_nmi", "leiden_ari", "leiden_nmi", "leiden_clusters"]
    np.testing.assert_allclose(table.loc["types"], [1, 1, 1, 1, 3])
    np.testing.assert_allclose(table.loc["flat"], [0, 0, 0, 0, 1], atol=1e-12)
    assert table.loc["rate", "kmeans_ari"] >= table.loc["raw", "kmeans_ari"] > 0.3
    pd.testing.assert_frame_equal(metrics.cluster_agreement(typed, ["rate", "types", "flat"], "cell_type"), table.iloc[:, :2])


def test_against_scikit_learn(adata):
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = adata.X.toarray()
    scores = PCA(5).fit_transform(np.log1p(1e4 * counts / counts.sum(1, keepdims=True)))
    clusters = KMeans(3, n_init=50, random_state=0).fit_predict(scores)
    row = metrics.cluster_agreement(adata, [], "cell_type", n_pcs=5).loc["raw"]
    np.testing.assert_allclose(row, [f(adata.obs["cell_type"], clusters) for f in (adjusted_rand_score, normalized_mutual_info_score)])


@pytest.mark.usefixtures("quick")
def test_every_scale_and_kind_of_matrix_gives_the_same(adata):
    counts = adata.X.toarray()
    rate = (counts / counts.sum(1, keepdims=True)).astype(np.float32)
    same = {"int": counts.astype(np.int64), "csc": adata.X.tocsc(), "rate": rate, "ours": rate, "log": sp.csr_matrix(np.log1p(1e4 * rate))}
    adata.layers.update(same)
    adata.uns["ours"] = {"method": "began", "params": {"output": "rate"}}
    adata.uns["log"] = {"method": "began", "params": {"output": "log1p"}}
    table = metrics.cluster_agreement(adata, list(same), "cell_type", method=BOTH)
    for name in same:
        np.testing.assert_allclose(table.loc[name], table.loc["raw"])
    adata.layers["theirs"] = adata.layers["log"]
    theirs = metrics.cluster_agreement(adata, ["theirs", "ours"], "cell_type", method=BOTH, output="log1p")
    np.testing.assert_allclose(theirs.loc[["theirs", "ours"]], table.loc[["raw", "raw"]])
    # Counts of another layer.
    adata.layers["counts"], adata.X = adata.X, np.log1p(counts)
    other = metrics.cluster_agreement(adata, [], "cell_type", method=BOTH, layer="counts")
    pd.testing.assert_frame_equal(other, table.iloc[:1])


def test_logarithms_are_not_taken_for_counts(adata):
    counts = adata.X.toarray()
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    assert counts.max() > 20
    adata.layers["magic"] = logs
    with pytest.raises(ValueError, match="'magic' has no value above .* it looks like log1p.*output='log1p' if it is, output='counts'"):
        metrics.cluster_agreement(adata, "magic", "cell_type")
    for output in ("counts", "log1p"):
        assert np.isfinite(metrics.cluster_agreement(adata, "magic", "cell_type", output=output)).all(axis=None)
    # Centred logarithms are fine where they are said to be some.
    adata.layers["magic"] = logs - logs.mean(0)
    assert np.isfinite(metrics.cluster_agreement(adata, "magic", "cell_type", output="log1p")).all(axis=None)
    with pytest.raises(ValueError, match="'magic' has negative values"):
        metrics.cluster_agreement(adata, "magic", "cell_type")


def test_cells_without_a_label_are_clustered_but_not_scored(typed):
    """Of the types layer the labels say everything; those of a fifth of the cells, wrong, are taken away."""
    labels = typed.obs["cell_type"].astype(object)
    labels[::5] = np.roll(labels[::5], 1)
    typed.obs["wrong"] = labels
    assert metrics.cluster_agreement(typed, "types", "wrong").loc["types", "kmeans_ari"] < 0.9
    labels[::5] = None
    typed.obs["missing"] = labels.astype("category")
    labels[::5] = "unknown"
    typed.obs["unknown"] = labels.astype("category")
    missing = metrics.cluster_agreement(typed, "types", "missing")
    assert missing.loc["types"].tolist() == pytest.approx([1, 1])
    pd.testing.assert_frame_equal(metrics.cluster_agreement(typed, "types", "unknown", unlabelled="unknown"), missing)
    # A type of which nothing is known: found among three clusters, of which the labels know two.
    typed.obs["two"] = typed.obs["cell_type"].where(typed.obs["cell_type"] != "type0")
    assert metrics.cluster_agreement(typed, "types", "two", n_clusters=3).loc["types", "kmeans_ari"] == pytest.approx(1)


def test_genes_are_chosen_once_by_the_counts(adata):
    """A layer that is wild elsewhere is the same as the counts."""
    raw = _log_profiles.read(adata, [], None, None)["raw"]
    logs, chosen = raw.of(np.arange(40)).toarray(), _clusters.variable_genes(raw, 15)
    assert len(chosen) == 15
    wild = np.minimum(np.random.default_rng(0).normal(size=logs.shape).astype(np.float32) * 50, 9)  # no log is higher
    wild[:, chosen] = logs[:, chosen]
    adata.layers["wild"] = wild
    table = metrics.cluster_agreement(adata, "wild", "cell_type", output="log1p", n_top_genes=15)
    np.testing.assert_allclose(table.loc["wild"], table.loc["raw"])
    table = metrics.cluster_agreement(adata, "wild", "cell_type", output="log1p")
    assert table.loc["wild", "kmeans_ari"] < table.loc["raw", "kmeans_ari"] - 0.2


@pytest.mark.usefixtures("quick")
def test_leiden_finds_the_number_of_clusters_or_takes_the_resolution(adata):
    agreement = metrics.cluster_agreement
    for number in (2, 3, 5):
        table = agreement(adata, "rate", "cell_type", method="leiden", n_clusters=number)
        assert table["leiden_clusters"].tolist() == [number, number]
    assert agreement(adata, [], "cell_type", method="leiden", resolution=1e-3)["leiden_clusters"].tolist() == [1]
    assert agreement(adata, [], "cell_type", method="leiden", resolution=20, n_neighbors=5)["leiden_clusters"].item() > 10


@pytest.mark.usefixtures("quick", "greedy_scanpy")
def test_same_seed_same_result_and_no_global_state(adata, states):
    first = metrics.cluster_agreement(adata, "rate", "cell_type", method=BOTH)
    before = states()
    pd.testing.assert_frame_equal(metrics.cluster_agreement(adata, "rate", "cell_type", method=BOTH), first)
    assert states() == before
    metrics.cluster_agreement(adata, "rate", "cell_type", random_state=np.random.default_rng(0))


@pytest.mark.usefixtures("quick")
def test_nothing_is_left_to_what_scanpy_takes_where_nothing_is_said(adata, other_scanpy):
    found = metrics.cluster_agreement(adata, "rate", "cell_type", method=BOTH, n_top_genes=20)
    other_scanpy()
    pd.testing.assert_frame_equal(metrics.cluster_agreement(adata, "rate", "cell_type", method=BOTH, n_top_genes=20), found)


def test_backed_and_few_cells(typed, tmp_path):
    want = metrics.cluster_agreement(typed, "types", "cell_type")
    typed.write_h5ad(tmp_path / "typed.h5ad")
    backed = ad.read_h5ad(tmp_path / "typed.h5ad", backed="r")
    pd.testing.assert_frame_equal(metrics.cluster_agreement(backed, "types", "cell_type"), want)
    backed.file.close()
    few = typed[:4].copy()
    few.obs["cell_type"] = ["a", "a", "b", "b"]
    assert metrics.cluster_agreement(few, "rate", "cell_type").shape == (2, 2)


def test_leiden_needs_igraph_and_kmeans_does_not(adata, monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ImportError, match="method='leiden' needs the package igraph: pip install igraph"):
        metrics.cluster_agreement(adata, "rate", "cell_type", method=BOTH)
    assert metrics.cluster_agreement(adata, "rate", "cell_type").shape == (2, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_refuses_what_is_no_expression(adata, refused, value):
    adata.layers["rate"][4, 3] = value
    message = "negative values" if value == -1 else "NaN or infinite values .first: cell 'cell4', gene 'gene3'"
    refused(adata, lambda a: metrics.cluster_agreement(a, "rate", "cell_type"), ValueError, f"layer 'rate' has {message}")
    adata.layers["rate"] = sp.csr_matrix(adata.layers["rate"])
    refused(adata, lambda a: metrics.cluster_agreement(a, "rate", "cell_type"), ValueError, f"layer 'rate' has {message}")


@pytest.mark.parametrize(
    ("edit", "options", "error", "message"),
    [
        (lambda a: a.X, {}, TypeError, "expected AnnData"),
        (None, {"layers": "rte"}, KeyError, "did you mean 'rate'"),
        (None, {"layers": ["raw", "rate"]}, ValueError, "'raw'.*more than once"),
        (None, {"labels": "cell_typ"}, KeyError, "did you mean 'cell_type'"),
        (lambda a: a.obs.insert(0, "one", "a"), {"labels": "one"}, ValueError, "has 1 level.s. beside missing ones"),
        (lambda a: a.obs.insert(0, "none", np.nan), {"labels": "none"}, ValueError, "has 0 level.s. beside missing ones"),
        (None, {"labels": "cell_type", "unlabelled": ["type0", "type1"]}, ValueError, "has 1 level"),
        (None, {"unlabelled": "unknown"}, ValueError, r"unlabelled: \['unknown'\] are not in labels='cell_type'"),
        (lambda a: a.obs.insert(0, "number", np.arange(60) / 7), {"labels": "number"}, ValueError, "looks continuous"),
        (lambda a: setattr(a, "X", np.log1p(a.X)), {}, ValueError, "adata.X has values that are not whole numbers"),
        (None, {"method": "louvain"}, ValueError, "method must be one of"),
        (None, {"method": 3}, ValueError, "method must be one of"),
        (None, {"method": [["kmeans"]]}, ValueError, "method must be one of"),
        (None, {"method": []}, ValueError, "method must be one or several"),
        (None, {"method": ["kmeans", "kmeans"]}, ValueError, "each once"),
        (None, {"resolution": 1.0}, ValueError, "resolution needs method='leiden'"),
        (None, {"method": "leiden", "resolution": 1.0, "n_clusters": 3}, ValueError, "give one of them"),
        (None, {"method": "leiden", "resolution": 0}, ValueError, "resolution must be in"),
        (None, {"method": "leiden", "n_neighbors": 60}, ValueError, "n_neighbors=60 must be below the number of cells, 60"),
        (None, {"n_clusters": 1}, ValueError, "n_clusters must be at least 2"),
        (None, {"n_clusters": 61}, ValueError, "must not exceed the number of cells, 60"),
        (None, {"n_pcs": 0}, ValueError, "n_pcs must be at least 1"),
        (None, {"n_top_genes": 2.0}, ValueError, "n_top_genes must be a whole number"),
        (None, {"random_state": True}, TypeError, "random_state"),
        (lambda a: a.uns.update(rate={"method": "began", "params": {"output": "z"}}), {}, ValueError, r"uns\['rate'\].*must be one of"),
    ],
)
def test_faults(adata, edited, refused, edit, options, error, message):
    adata = edited(adata, edit)
    refused(adata, lambda a: metrics.cluster_agreement(a, **{"layers": "rate", "labels": "cell_type"} | options), error, message)
