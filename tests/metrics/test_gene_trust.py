"""``metrics.gene_trust``: what is explained of each gene, by hand, and what is written."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import scimpute


@pytest.fixture
def adata() -> ad.AnnData:
    """200 cells of two kinds, 30 genes: the first ten differ between the kinds, the next ten do not, the last are never seen in one part."""
    rng = np.random.default_rng(0)
    kind = np.arange(200) % 2
    rate = np.tile(rng.gamma(2, 2, 30), (200, 1))
    # Five are swapped with five, so that the shares of the other genes stay.
    rate[:, :10] = np.tile(rng.gamma(5, 3, 5), 2) * np.where((kind[:, None] == 1) == (np.arange(10) < 5), 1.0, 0.2)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)), layers={"rate": rate})
    scimpute.pp.thin(adata)
    train, test = adata.layers["thin_train"].tolil(), adata.layers["thin_test"].tolil()
    train[:, 28], test[:, 29] = 0, 0
    adata.layers["thin_train"], adata.layers["thin_test"] = train.tocsr(), test.tocsr()
    share = rate / rate.sum(axis=1, keepdims=True)
    adata.layers["truth"] = (share * np.asarray(train.sum(axis=1))).astype(np.float32)
    return adata


def test_by_hand(adata):
    table = scimpute.metrics.gene_trust(adata, "truth")
    x, y, p = (adata.layers[name] for name in ("thin_train", "thin_test", "truth"))
    x, y = x.toarray().astype(float), y.toarray().astype(float)
    seen = x.sum(axis=0) > 0
    ratio = y[:, seen].sum() / x[:, seen].sum()
    mean = x.sum(axis=1, keepdims=True) * x.sum(axis=0) / x.sum() * ratio

    def deviance(q: np.ndarray) -> np.ndarray:
        return np.array(
            [[2 * (a * np.log(a / b) - a + b) if a else 2 * b for a, b in zip(*pair, strict=True)] for pair in zip(y, q, strict=True)]
        )

    of_truth, of_mean = deviance(p * ratio), deviance(np.maximum(mean, 1e-6))
    for gene in range(28):
        assert table["trust"].iloc[gene] == pytest.approx(1 - of_truth[:, gene].sum() / of_mean[:, gene].sum(), abs=1e-5)
        gains = of_mean[:, gene] - of_truth[:, gene]
        assert table["z"].iloc[gene] == pytest.approx(stats.ttest_1samp(gains, 0).statistic, rel=1e-3, abs=1e-3)
    np.testing.assert_array_equal(table["molecules"], y.sum(axis=0))
    assert table["molecules"].iloc[28] > 0
    assert table["molecules"].dtype == np.int64
    # Without a molecule in one of the parts nothing can be said.
    assert table[["trust", "z"]].iloc[28:].isna().all().all()
    np.testing.assert_array_equal(adata.var["truth_trust"], table["trust"])


def test_genes_that_differ_are_told_from_those_that_do_not(adata):
    table = scimpute.metrics.gene_trust(adata, "truth")
    assert table["trust"][:10].min() > 0.1
    assert table["z"][:10].min() > 3
    assert table["trust"][10:28].abs().max() < 0.05
    # Another gene's pattern is worse than the mean.
    adata.layers["wrong"] = adata.layers["truth"][::-1].copy()
    adata.layers["wrong"][:, :10] = adata.layers["truth"][np.r_[1:200, 0], :10]
    assert scimpute.metrics.gene_trust(adata, "wrong")["z"][:10].max() < -3


def test_of_the_mean_itself_it_is_zero(adata):
    x = adata.layers["thin_train"].toarray()
    adata.layers["mean"] = (x.sum(axis=1, keepdims=True) * x.sum(axis=0) / x.sum()).astype(np.float32)
    table = scimpute.metrics.gene_trust(adata, "mean")
    assert table["trust"][:28].abs().max() < 1e-6


def test_only_the_column_is_new(adata, fingerprint):
    before = fingerprint(adata)
    scimpute.metrics.gene_trust(adata, "truth")
    after = fingerprint(adata)
    assert {name for name in after if after[name] != before.get(name)} == {"var"} or set(after) - set(before) == {"var/truth_trust"}


QUICK = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "drop_quantile": 50.0, "progress": False}


@pytest.fixture
def imputed() -> ad.AnnData:
    adata = scimpute.datasets.toy_counts()
    scimpute.tl.began(adata, "batch", **QUICK)
    return adata


def test_the_second_run_is_that_by_hand(imputed, fingerprint):
    """And of an object that is not thinned nothing is left but the column."""
    by_hand = imputed.copy()
    scimpute.pp.thin(by_hand, 0.8, random_state=3)
    scimpute.tl.began(by_hand, "batch", layer="thin_train", **QUICK)
    expected = scimpute.metrics.gene_trust(by_hand, "began")
    before = fingerprint(imputed)
    found = scimpute.metrics.gene_trust(imputed, "began", run=True, frac=0.8, random_state=3)
    pd.testing.assert_frame_equal(found, expected)
    np.testing.assert_array_equal(imputed.var["began_trust"], expected["trust"])
    del imputed.var["began_trust"]
    assert fingerprint(imputed) == before
    # The molecules of the object's own thinning are others.
    scimpute.pp.thin(imputed, random_state=1)
    pd.testing.assert_frame_equal(scimpute.metrics.gene_trust(imputed, "began", run=True, frac=0.8, random_state=3), expected)


@pytest.mark.parametrize("options", [{"output": "log1p"}, {"fill": "expressed"}])
def test_a_second_run_of_any_scale(imputed, options):
    expected = scimpute.metrics.gene_trust(imputed, "began", run=True)
    scimpute.tl.began(imputed, "batch", **QUICK, **options)
    pd.testing.assert_frame_equal(scimpute.metrics.gene_trust(imputed, "began", run=True), expected)


def test_a_second_run_of_some_genes(imputed):
    genes = ["gene3", "gene1", "gene30"]
    scimpute.tl.began(imputed, "batch", genes=genes, key_added="some", **QUICK)
    table = scimpute.metrics.gene_trust(imputed, "some", run=True)
    assert list(table.index) == list(imputed.var_names)
    assert set(table.index[table["trust"].notna()]) == set(genes)
    assert table["z"].notna().sum() == 3
    assert (table["molecules"] > 0).sum() > 30


def test_what_to_do_is_said(imputed):
    """An imputation of ours can be run again, a layer of others cannot."""
    for score in (scimpute.metrics.gene_trust, scimpute.metrics.heldout):
        with pytest.raises(KeyError, match=r"layer 'thin_train' not found; pass run=True .*or call scimpute.pp.thin"):
            score(imputed, "began")
        with pytest.raises(
            KeyError, match=r"layer 'thin_train' not found; call scimpute.pp.thin\(adata, key_added='thin'\) first and impute"
        ):
            score(imputed, "rate")
    scimpute.pp.thin(imputed)
    for score in (scimpute.metrics.gene_trust, scimpute.metrics.heldout):
        with pytest.warns(UserWarning, match="has seen the held-out molecules.*or pass run=True"):
            score(imputed, "began")


def test_a_second_run_says_first_what_it_does(imputed, capsys):
    scimpute.metrics.gene_trust(imputed, "began", run=True, progress=True)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert lines[0] == "metrics.gene_trust: 1 imputation (tl.began) of 60 cells x 40 genes, of copies"
    assert "tl.began" not in "".join(lines[1:])
    assert lines[-1].startswith("metrics.gene_trust: done:  100%")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "rate"}, ValueError, "does not say how this layer was imputed"),
        ({"key": "bgan"}, KeyError, "did you mean 'began'"),
        ({"run": "yes"}, TypeError, "run must be True or False"),
        ({"frac": 1.0}, ValueError, "frac must be in"),
        ({"frac": 1 - 1e-12}, ValueError, "all or none of the"),
        ({"random_state": -1}, ValueError, "random_state"),
        ({"device": "gpu"}, ValueError, "device 'gpu' not available"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
    ],
)
def test_second_runs_refused(imputed, refused, options, error, message):
    refused(imputed, lambda a: scimpute.metrics.gene_trust(a, **{"key": "began", "run": True} | options), error, message)


@pytest.mark.parametrize(
    ("key", "thin", "error", "message"),
    [
        ("none", "thin", KeyError, "none"),
        ("truth", "thinned", KeyError, "call scimpute.pp.thin"),
        ("negative", "thin", ValueError, "negative"),
        ("logs", "thin", ValueError, "output='log1p'"),
        (["truth", "rate"], "thin", ValueError, "one layer"),
    ],
)
def test_refused(adata, refused, key, thin, error, message):
    adata.layers["negative"], adata.layers["logs"] = -adata.layers["truth"], adata.layers["truth"].copy()
    adata.uns["logs"] = {"method": "began", "params": {"output": "log1p"}}
    refused(adata, lambda a: scimpute.metrics.gene_trust(a, key, thin=thin), error, message)


def test_a_table_of_some_genes_is_called_one():
    adata = scimpute.datasets.toy_counts()
    scimpute.pp.thin(adata)
    adata.obsm["mine"] = pd.DataFrame(adata.X.toarray()[:, :2], index=adata.obs_names)
    for score in (scimpute.metrics.gene_trust, scimpute.metrics.heldout):
        with pytest.raises(KeyError, match="'mine' is a table of some genes in adata.obsm, not a layer"):
            score(adata, "mine")
