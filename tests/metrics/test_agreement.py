"""``metrics.agreement``: correlations and errors against another matrix, by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import scimpute
from scimpute.metrics import _agreement, agreement


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    share = rng.gamma(0.5, 1, (3, 12)) + 0.02
    share = (share / share.sum(axis=1, keepdims=True))[np.arange(40) % 3]
    counts = rng.poisson(200 * share).astype(np.float32)
    adata = ad.AnnData(sp.csr_matrix(counts), layers={"profile": share})
    adata.var_names = [f"gene{j}" for j in range(12)]
    adata.layers["imputed"] = (200 * (0.7 * share + 0.3 * share.mean(axis=0)) * rng.lognormal(0, 0.1, share.shape)).astype(np.float32)
    adata.layers["sparse"] = sp.csr_matrix(adata.layers["imputed"])
    proteins = np.column_stack([share[:, 3] + rng.normal(0, 0.001, 40), -share[:, 5], rng.normal(size=40)])
    adata.obsm["protein"] = pd.DataFrame(proteins, index=adata.obs_names, columns=["gene3", "CD5", "isotype"])
    return adata


def logged(matrix: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * matrix / matrix.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("chunk", [4_000_000, 100], ids=["whole", "chunks"])
def test_by_hand(adata, monkeypatch, chunk):
    of = _agreement.chunks
    monkeypatch.setattr(_agreement, "chunks", lambda n, m: of(n, m, chunk))
    table = agreement(adata, ["imputed", "sparse"], "profile", output="counts")
    counts = adata.X.toarray()
    total = counts.sum(axis=0)
    truth = logged(adata.layers["profile"])
    predictions = {"raw": logged(counts), "imputed": logged(adata.layers["imputed"].astype(float))}
    predictions["gene_mean"] = np.tile(np.log1p(1e4 * total / total.sum()), (40, 1))
    assert list(table.index) == ["raw", "gene_mean", "imputed", "sparse"]
    for name, p in predictions.items():
        row = table.loc[name]
        assert row["rmse"] == pytest.approx(np.sqrt(np.square(p - truth).mean()), rel=1e-5)
        assert row["cell_correlation"] == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, truth, strict=True)]), rel=1e-4)
        if name == "gene_mean":
            assert row["gene_correlation"] == row["cell_correlation_centred"] == 0
            continue
        genes = [stats.spearmanr(a, b).statistic for a, b in zip(p.T, truth.T, strict=True)]
        assert row["gene_correlation"] == pytest.approx(np.mean(genes), rel=1e-4)
        centred = [np.corrcoef(a, b)[0, 1] for a, b in zip(p - p.mean(axis=0), truth - truth.mean(axis=0), strict=True)]
        assert row["cell_correlation_centred"] == pytest.approx(np.mean(centred), rel=1e-4)
    pd.testing.assert_series_equal(table.loc["sparse"], table.loc["imputed"], check_names=False)


def test_proteins(adata):
    table = agreement(adata, "imputed", "protein")
    assert list(table.columns) == ["gene_correlation"]
    values = logged(adata.layers["imputed"].astype(float))
    protein = adata.obsm["protein"]
    assert table.loc["imputed", "gene_correlation"] == pytest.approx(stats.spearmanr(values[:, 3], protein["gene3"]).statistic)
    each = agreement(adata, "imputed", "protein", genes={"CD5": "gene5", "gene3": "gene3"}, by="gene")
    assert list(each.index) == ["CD5", "gene3"]
    assert each.loc["CD5", "imputed"] == pytest.approx(stats.spearmanr(values[:, 5], protein["CD5"]).statistic)
    assert (each["gene_mean"] == 0).all()


def test_counts_that_are_called_logs(adata, refused):
    message = r"'imputed' has values up to [\d.]+, .* log1p\(10,000\) = 9.21.*Pass output='counts'.*target_sum=1e4"
    refused(adata, lambda a: agreement(a, "imputed", "profile", output="log1p"), ValueError, message)
    message = message.replace("imputed", "sparse")
    refused(adata, lambda a: agreement(a, "sparse", "protein", output="log1p"), ValueError, message)
    for name in ("imputed", "profile"):
        adata.layers[name] = logged(adata.layers[name])
    assert agreement(adata, "imputed", "profile", output="log1p").loc["imputed", "cell_correlation"] > 0.5


def test_constant_genes_and_cells(adata):
    adata.layers["profile"][:, 4] = 0.1
    adata.layers["profile"] /= adata.layers["profile"].sum(axis=1, keepdims=True)
    adata.obsm["protein"]["gene3"] = 1.0
    assert np.isnan(agreement(adata, "imputed", "protein").loc["imputed", "gene_correlation"])
    adata.layers["flat"] = np.ones(adata.shape, np.float32)
    row = agreement(adata, "flat", "profile", output="counts").loc["flat"]
    assert row[["gene_correlation", "cell_correlation", "cell_correlation_centred"]].eq(0).all()
    each = agreement(adata, "imputed", "profile", output="counts", by="gene")
    assert list(each.index) == list(adata.var_names)


def test_of_an_imputation(adata, fingerprint):
    scimpute.tl.began(adata, max_epochs=2, n_repeats=1, progress=False)
    before = fingerprint(adata)
    table = agreement(adata, "began", "profile", output="rate")
    assert fingerprint(adata) == before
    assert table.loc["began", "rmse"] < table.loc["raw", "rmse"]


@pytest.mark.parametrize(
    ("truth", "options", "error", "message"),
    [
        ("none", {}, KeyError, "none"),
        ("imputed", {}, ValueError, "also one of the layers"),
        ("profile", {"genes": {"a": "gene1"}}, ValueError, "is a layer"),
        ("protein", {"genes": {"CD9": "gene1"}}, KeyError, "CD9"),
        ("protein", {"genes": {"CD5": "gene99"}}, KeyError, "gene99"),
        ("protein", {"by": "cell"}, ValueError, "by must be"),
        ("array", {}, TypeError, "must be a DataFrame"),
        ("words", {}, TypeError, "not numeric"),
        ("gaps", {}, ValueError, "NaN or infinite values in.*gene3"),
        ("strangers", {}, ValueError, "genes={column: gene}"),
    ],
)
def test_refused(adata, refused, truth, options, error, message):
    table = adata.obsm["protein"]
    adata.obsm["array"], adata.obsm["words"] = table.to_numpy(), table.astype({"CD5": str})
    adata.obsm["gaps"] = table.copy()
    adata.obsm["gaps"].iloc[2, 0] = np.nan
    adata.obsm["strangers"] = table[["CD5"]]
    refused(adata, lambda a: agreement(a, "imputed", truth, **options), error, message)


def test_columns_of_the_same_name(adata):
    adata.obsm["twice"] = adata.obsm["protein"].set_axis(["gene3", "gene3", "gene4"], axis=1)
    with pytest.raises(ValueError, match="columns of the same name"):
        agreement(adata, "imputed", "twice")


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_genes_of_the_same_name(adata, refused):
    adata.var_names = ["gene3"] * 12
    refused(adata, lambda a: agreement(a, "imputed", "protein"), ValueError, "var_names_make_unique")
