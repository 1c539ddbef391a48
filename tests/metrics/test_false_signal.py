"""``metrics.false_signal``: imputers of which is known what they invent, and those that cannot be used."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import scimpute
from scimpute.metrics import _false_signal, false_signal


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2, 1, 40), (120, 40)).astype(np.float32)
    obs = pd.DataFrame({"kind": pd.Categorical(np.repeat(["many", "few"], [110, 10]))}, index=[f"c{i}" for i in range(120)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(40)]))


def smoothed(given: ad.AnnData) -> np.ndarray:
    """All cells drawn towards one axis: every gene follows it."""
    x = given.X.toarray()
    axis = np.linspace(-1, 1, len(x))[:, None] * np.where(np.arange(x.shape[1]) % 2, 1, -1)
    return x.mean(axis=0) * np.exp(axis)


def of_labels(given: ad.AnnData, label: str | None) -> np.ndarray:
    """The mean of the gene, in the half of the cell where it is told."""
    x = given.X.toarray()
    if label is None:
        return np.tile(x.mean(axis=0), (len(x), 1))
    return given.to_df().groupby(given.obs[label], observed=True).transform("mean").to_numpy()


def test_what_changes_nothing_invents_nothing(adata):
    table = false_signal(adata, lambda a: a.X, n_splits=2)
    assert list(table.index) == ["raw", "imputed"]
    pd.testing.assert_series_equal(table.loc["raw"], table.loc["imputed"], check_names=False)
    assert table.loc["raw", "differential_genes"] == 0
    # What chance gives of 120 cells: sqrt(2 / (pi n)).
    assert table.loc["raw", "correlation"] == pytest.approx(np.sqrt(2 / np.pi / 120), rel=0.1)
    assert table.loc["raw", "tested_genes"] == 40


def test_correlation_that_was_made_is_seen(adata):
    table = false_signal(adata, smoothed, n_splits=1)
    assert table.loc["imputed", "correlation"] > 0.9


def profile(given: ad.AnnData, dtype: type, *, logs: bool) -> np.ndarray:
    """The mean profile at the depth of every cell, by a product or by a sum of logs."""
    x = given.X.astype(np.float64)
    depth, share = x.sum(axis=1).A1[:, None], x.sum(axis=0).A1 / x.sum()
    return np.exp(np.log(depth).astype(dtype) + np.log(share).astype(dtype)) if logs else depth.astype(dtype) * share.astype(dtype)


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rounding_is_no_signal(adata, dtype, logs):
    found = false_signal(adata, lambda a: profile(a, dtype, logs=logs), n_splits=2).loc["imputed"]
    assert (found["differential_genes"], found["correlation"]) == (0, 0)


def test_small_differences_are_ranked():
    """A ten-thousandth of a value, that of the smallest and of the largest."""
    values = np.outer(1 + 1e-4 * np.arange(50.0), [1e-6, 1, 9])
    assert _false_signal._correlation(np.hstack([values, values[::-1]])) == pytest.approx(1)
    values[:, 1] = np.random.default_rng(0).permutation(values[:, 1])
    assert _false_signal._correlation(values) == pytest.approx(np.abs(stats.spearmanr(values).statistic)[np.triu_indices(3, 1)].mean())


def test_a_label_that_was_given_is_found_in_every_gene(adata):
    table = false_signal(adata, of_labels, groups="kind", n_splits=3)
    assert list(table.index) == ["raw", "imputed", "imputed_with_label"]
    assert table["differential_genes"].tolist()[:2] == [0, 0]
    # But for genes of which both halves have the same mean.
    assert table.loc["imputed_with_label", "differential_genes"] > 36
    assert table.loc["imputed", "correlation"] == 0
    assert table.loc["imputed_with_label", "correlation"] > 0.9


def test_the_label_can_be_given_to_some_halves_only(adata):
    calls = []

    def counted(given: ad.AnnData, label: str | None) -> np.ndarray:
        calls.append(label)
        return of_labels(given, label)

    table = false_signal(adata, counted, n_splits=3, n_labelled=1)
    assert calls == [None, None, "random_half", "random_half"]
    assert table.loc["imputed_with_label", "differential_genes"] > 36
    assert list(false_signal(adata, of_labels, n_splits=2, n_labelled=0).index) == ["raw", "imputed"]
    pd.testing.assert_frame_equal(false_signal(adata, of_labels, n_splits=2, n_labelled=9), false_signal(adata, of_labels, n_splits=2))


def test_an_argument_with_a_default_is_no_label(adata):
    assert list(false_signal(adata, lambda a, factor=2: a.X * factor, n_splits=1).index) == ["raw", "imputed"]


def test_genes_without_molecules_do_not_count(adata):
    more = ad.AnnData(sp.hstack([adata.X, sp.csr_matrix((120, 100))]).tocsr())
    expected = false_signal(adata, smoothed, n_splits=1)
    found = false_signal(more, smoothed, n_splits=1)
    assert found.loc["raw", "tested_genes"] == 40
    assert found.loc["imputed", "correlation"] == pytest.approx(expected.loc["imputed", "correlation"], rel=0.05)


def test_of_began(adata, fingerprint):
    before = fingerprint(adata)
    table = false_signal(
        adata,
        lambda a, label: scimpute.tl.began(a, celltype_key=label, copy=True, max_epochs=2, n_repeats=1, progress=False).layers["began"],
        n_splits=1,
    )
    assert fingerprint(adata) == before
    assert table.loc["imputed", "differential_genes"] == 0
    assert list(table.index) == ["raw", "imputed", "imputed_with_label"]


def test_methods_by_name(adata, monkeypatch):
    asked: list[str | None] = []

    def began(given: ad.AnnData, celltype_key: str | None) -> None:
        asked.append(celltype_key)
        given.layers["began"] = given.X

    monkeypatch.setattr(scimpute.tl, "began", began)
    false_signal(adata, "began", n_splits=2)
    assert asked == [None, None, "random_half", "random_half", "random_half"]


def test_permuted_genes_keep_their_counts(adata):
    found = _false_signal._permuted(adata.X, np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(found.toarray(), axis=0), np.sort(adata.X.toarray(), axis=0))
    assert (found != adata.X).nnz > 100


def test_tests_and_correlation_by_hand(adata):
    values = np.log1p(adata.X.toarray())
    half = np.arange(120) % 2
    shifted = values.copy()
    shifted[half == 1, :5] += 5
    assert _false_signal._differential(shifted, half, np.arange(40), 0.05, "log1p") == 5
    expected = np.abs(stats.spearmanr(values).statistic)[np.triu_indices(40, 1)].mean()
    assert _false_signal._correlation(values) == pytest.approx(expected)


def test_same_seed_same_result(adata):
    first, second = (false_signal(adata, smoothed, n_splits=2, random_state=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def changing(given: ad.AnnData) -> np.ndarray:
    given.X = given.X * 2
    return given.X


def with_nan(given: ad.AnnData) -> np.ndarray:
    return np.where(np.arange(given.n_vars) == 3, np.nan, given.X.toarray())


@pytest.mark.parametrize(
    ("impute", "options", "error", "message"),
    [
        ("magic", {}, ValueError, "impute must be one of"),
        (3, {}, TypeError, "must be a function"),
        (changing, {}, RuntimeError, "has changed its input object"),
        (with_nan, {}, ValueError, "returned NaN"),
        (lambda a: a.X[:, :5], {}, ValueError, r"shape \(120, 5\); it must return a matrix of shape \(120, 40\)"),
        (lambda a: a.to_df(), {}, ValueError, "type DataFrame"),
        (lambda a: None, {}, ValueError, "type NoneType"),
        (lambda a: -a.X, {}, ValueError, "negative"),
        (smoothed, {"groups": "kinds"}, KeyError, "kinds"),
        (smoothed, {"n_splits": 0}, ValueError, "n_splits"),
        (smoothed, {"alpha": 1.0}, ValueError, "alpha"),
        (smoothed, {"output": "logs"}, ValueError, "output must be one of"),
    ],
)
def test_refused(adata, refused, impute, options, error, message):
    refused(adata, lambda a: false_signal(a, impute, **options), error, message)


def test_small_group(adata, refused):
    refused(adata[:3].copy(), lambda a: false_signal(a, smoothed), ValueError, "has 3 cells; at least 20")
    few = adata[90:].copy()
    few.obs["kind"] = pd.Categorical(np.arange(30) % 5)
    refused(adata[:, :1].copy(), lambda a: false_signal(a, smoothed), ValueError, "1 genes have a molecule")
    refused(few, lambda a: false_signal(a, smoothed, groups="kind"), ValueError, "largest group of 'kind'.* has 6 cells")
    logs = adata.copy()
    logs.X = np.log1p(logs.X.toarray())
    refused(logs, lambda a: false_signal(a, smoothed), ValueError, "counts")
