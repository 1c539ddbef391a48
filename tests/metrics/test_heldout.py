"""Scores on held-out molecules, by hand and against the benchmark's dense formulas."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import poisson

from scimpute import metrics, pp, tl

QUICK = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "progress": False}


def small(train, test, **layers) -> ad.AnnData:
    train, test = np.array(train, np.float32), np.array(test, np.float32)
    thinned = {"thin_train": sp.csr_matrix(train), "thin_test": sp.csr_matrix(test)}
    return ad.AnnData(train + test, layers=thinned | {name: np.array(value, np.float32) for name, value in layers.items()})


@pytest.mark.filterwarnings("ignore:.*does not look like expected counts:UserWarning")
def test_by_hand():
    adata = small([[1, 0], [0, 3]], [[1, 0], [0, 1]], mine=[[2, 0], [1, 1]])
    table = metrics.heldout(adata, "mine")
    assert list(table.index) == ["raw", "gene_mean", "mine"]
    assert list(table.columns) == ["poisson", "poisson_openproblems", "mse_log", "mse_log_renormalized"]
    # 4 training and 2 test molecules: q = p / 2. Raw 1/2, 0; 0, 3/2. Gene mean 1/8, 3/8; 3/8, 9/8. Mine 1, 0; 1/2, 1/2.
    expected = [(2 - np.log(0.5) - np.log(1.5)) / 4, (2 - np.log(1 / 8) - np.log(9 / 8)) / 4, (2 - np.log(1) - np.log(0.5)) / 4]
    np.testing.assert_allclose(table["poisson"], expected, atol=5e-6)
    # What is predicted where the test part has nothing costs log(1e6) a molecule.
    expected = [2 / 4, (2 + 0.75 * np.log(1e6)) / 4, (2 + 0.5 * np.log(1e6)) / 4]
    np.testing.assert_allclose(table["poisson_openproblems"], expected, atol=5e-6)
    full, half, rest = np.log1p(1e4), np.log1p(5e3), np.log1p([2.5e3, 7.5e3])
    gene_mean = 2 * rest @ rest / 4 - 2 * full * rest.sum() / 4 + 2 * full**2 / 4
    np.testing.assert_allclose(table["mse_log_renormalized"], [0, gene_mean, (half**2 + (full - half) ** 2) / 4], atol=1e-5)


def lognorm(values: np.ndarray) -> np.ndarray:
    sums = values.sum(1, keepdims=True)
    return np.log1p(values / np.where(sums == 0, 1, sums) * 1e4)


def naive(p: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The scores by their definitions, dense; ``mse_log`` by the sum over the Poisson distribution."""
    keep = train.sum(0) > 0
    p, train, test = (x[:, keep].astype(np.float64) for x in (p, train, test))
    q = p * test.sum() / train.sum()
    support = np.arange(400)
    scale = 1e4 / np.maximum(test.sum(1), 1)
    expected = np.array([poisson.pmf(support, row[:, None]) @ np.log1p(s * support) for row, s in zip(q, scale, strict=True)])
    return {
        "poisson": np.mean(q - test * np.log(q + 1e-6)),
        "poisson_openproblems": np.mean(test - q * np.log(test + 1e-6)),
        "mse_log": np.mean((lognorm(test) - expected) ** 2),
        "mse_log_renormalized": np.mean((lognorm(test) - lognorm(p)) ** 2),
    }


@pytest.fixture
def thinned(adata) -> ad.AnnData:
    """With a gene whose molecules are all in the test part, one without any, and a cell without test molecules."""
    adata.X = adata.X.toarray()
    adata.X[:, 5] = 0
    pp.thin(adata, 0.8)
    train, test = (adata.layers[f"thin_{part}"].toarray() for part in ("train", "test"))
    test[:, 7] += train[:, 7]
    train[:, 7] = 0
    test[3] = 0
    adata.layers["thin_train"], adata.layers["thin_test"] = sp.csr_matrix(train), sp.csr_matrix(test)
    return adata


@pytest.mark.filterwarnings("ignore:.*does not look like expected counts:UserWarning")
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix], ids=["dense", "sparse"])
def test_against_the_dense_formulas(thinned, monkeypatch, kind):
    train, test = (thinned.layers[f"thin_{part}"].toarray() for part in ("train", "test"))
    rng = np.random.default_rng(0)
    mine = rng.gamma(1, 1, size=train.shape).astype(np.float32) * (rng.random(train.shape) < 0.8)
    mine[4] = 0
    thinned.layers["mine"], thinned.layers["other"] = kind(mine), kind(train + np.float32(0.1))
    table = metrics.heldout(thinned, ["mine", "other"])
    gene_mean = train.sum(1, keepdims=True) * train.sum(0) / train.sum()
    for name, p in {"raw": train, "gene_mean": gene_mean, "mine": mine, "other": train + 0.1}.items():
        for column, value in naive(p, train, test).items():
            assert table.loc[name, column] == pytest.approx(value, rel=1e-3), (name, column)
    # Chunks of seven rows give the same.
    from scimpute.metrics import _heldout

    original = _heldout.chunks
    monkeypatch.setattr(_heldout, "chunks", lambda n, width: original(n, width, 7 * width))
    np.testing.assert_allclose(metrics.heldout(thinned, ["mine", "other"]), table, rtol=1e-6)


def test_the_truth_is_best_and_a_millionth_is_not(adata):
    """Of the first column only: the swapped score prefers a millionth of the prediction."""
    rng = np.random.default_rng(0)
    rate = adata.layers["rate"]
    adata.X = rng.poisson(rate).astype(np.float32)
    pp.thin(adata, 0.9)
    adata.layers["true"], adata.layers["millionth"] = rate * np.float32(0.9), rate * np.float32(1e-6)
    adata.layers["doubled"] = rate * np.float32(1.8)
    with pytest.warns(UserWarning, match=r"layer '(millionth|doubled)' does not look like expected counts"):
        table = metrics.heldout(adata, ["true", "millionth", "doubled"])
    for column in ("poisson", "mse_log"):
        assert table[column].idxmin() == "true"
    assert table["poisson_openproblems"].idxmin() == "millionth"


def test_reads_other_keys_and_changes_nothing(adata, fingerprint):
    pp.thin(adata, key_added="other", random_state=1)
    adata.layers["mine"] = adata.layers["other_train"].copy()
    before = fingerprint(adata)
    table = metrics.heldout(adata, ["mine"], key="other")
    assert fingerprint(adata) == before
    np.testing.assert_allclose(table.loc["mine"], table.loc["raw"])
    with pytest.raises(KeyError, match="thin"):
        metrics.heldout(adata, ["mine"])


@pytest.mark.parametrize("score", [metrics.heldout, metrics.gene_trust], ids=["heldout", "gene_trust"])
def test_warns_of_a_layer_on_another_scale(adata, score):
    """Of CP10k, as others write it or as it is in place; at the median depth; and of a share. Rescaled they are as they were."""
    pp.thin(adata)
    tl.began(adata, layer="thin_train", **QUICK)
    depth = adata.layers["thin_train"].sum(axis=1).A1
    expected = score(adata, "began")
    total = adata.layers["began"].sum(axis=1, keepdims=True)
    level = adata.layers["began"] / total * depth[:, None]
    adata.layers["level"] = level
    known = score(adata, "level")
    for target, told in ((1e4, "the same total, 10000"), (np.median(depth), "the same total"), (1.0, "the same total, 1, ")):
        for name in ("other", "began"):
            adata.layers[name] = (level / depth[:, None] * target).astype(np.float32)
            with pytest.warns(
                UserWarning, match=f"layer '{name}' does not look like expected counts: every cell of it has {told}.*rescale=True"
            ):
                score(adata, name)
            found = score(adata, name, rescale=True)
            np.testing.assert_allclose(found.iloc[-1], known.iloc[-1], rtol=1e-4)
    adata.layers["other"] = level * 20
    with pytest.warns(UserWarning, match="the totals of its cells are 20 times those of the training part") as said:
        score(adata, "other")
    assert said[0].filename == __file__
    assert np.isfinite(expected.iloc[0]).all()


def test_equal_depths_are_no_other_scale(adata):
    """Where all cells have as many molecules, a layer whose totals are equal is right."""
    train = np.tile(np.arange(40), (60, 1))
    rng = np.random.default_rng(0)
    adata.layers["thin_train"], adata.layers["thin_test"] = sp.csr_matrix(rng.permuted(train, axis=1).astype(np.float32)), adata.X
    adata.layers["mine"] = np.full((60, 40), train.sum() / 2400, np.float32)
    metrics.heldout(adata, "mine")


def test_second_runs_are_those_by_hand(adata, fingerprint):
    tl.began(adata, **QUICK)
    tl.began(adata, "batch", key_added="batches", output="rate", **QUICK)
    by_hand = adata.copy()
    pp.thin(by_hand, random_state=2)
    tl.began(by_hand, layer="thin_train", **QUICK)
    tl.began(by_hand, "batch", layer="thin_train", key_added="batches", **QUICK)
    expected = metrics.heldout(by_hand, ["began", "batches"])
    before = fingerprint(adata)
    pd.testing.assert_frame_equal(metrics.heldout(adata, ["began", "batches"], run=True, random_state=2), expected)
    assert fingerprint(adata) == before
    # A generator hides the same molecules from both.
    raw = metrics.heldout(adata, ["began", "batches"], run=True, random_state=np.random.default_rng(0))
    assert not np.allclose(raw.loc["raw"], expected.loc["raw"])


def test_second_runs_of_different_counts_are_refused(adata, refused):
    tl.began(adata, **QUICK)
    adata.layers["more"] = adata.X + adata.X
    tl.began(adata, layer="more", key_added="doubled", **QUICK)
    tl.began(adata, genes=["gene1", "gene2"], key_added="some", **QUICK)
    refused(adata, lambda a: metrics.heldout(a, ["began", "doubled"], run=True), ValueError, "imputed from different counts")
    refused(adata, lambda a: metrics.heldout(a, "some", run=True), ValueError, r"\['some'\] have some genes only")
    refused(adata, lambda a: metrics.heldout(a, ["began", "rate"], run=True), ValueError, "does not say how this layer was imputed")
    refused(adata, lambda a: metrics.heldout(a, [], run=True), ValueError, "layers is empty")


@pytest.mark.parametrize("score", [metrics.heldout, metrics.gene_trust], ids=["heldout", "gene_trust"])
def test_warns_of_a_layer_that_has_seen_the_answers(adata, tmp_path, score):
    adata.layers["counts"] = adata.X.copy()
    pp.thin(adata)
    tl.began(adata, save=tmp_path / "model", **QUICK)
    with pytest.warns(
        UserWarning,
        match=r"'began' was made from adata.X and has seen the held-out molecules.*"
        r"scimpute.tl.began\(adata, ..., layer='thin_train', key_added='began'\)",
    ) as said:
        score(adata, "began")
    assert said[0].filename == __file__
    tl.apply(adata, tmp_path / "model", layer="counts", key_added="again")
    with pytest.warns(
        UserWarning, match=r"made from adata.layers\['counts'\].*scimpute.tl.apply\(adata, ..., layer='thin_train', key_added='again'"
    ):
        score(adata, "again")
    # The place cannot be looked at any more, but it was another.
    del adata.layers["counts"]
    with pytest.warns(UserWarning, match="has seen the held-out molecules"):
        score(adata, "again")
    # The same matrix in another place is as good, and what others wrote is not known.
    adata.layers["copy"] = adata.layers["thin_train"].toarray().astype(np.float64)
    tl.began(adata, layer="copy", **QUICK)
    score(adata, "began")
    tl.began(adata, layer="thin_train", **QUICK)
    score(adata, "began")
    adata.layers["theirs"] = adata.layers["again"]
    score(adata, "theirs")


@pytest.mark.parametrize("output", ["rate", "log1p"])
def test_refuses_our_layers_on_another_scale(adata, output):
    pp.thin(adata)
    tl.began(adata, layer="thin_train", output=output, **QUICK)
    with pytest.raises(ValueError, match=f"output='{output}'"):
        metrics.heldout(adata, "began")
    tl.began(adata, layer="thin_train", **QUICK)
    assert np.isfinite(metrics.heldout(adata, "began")).all(axis=None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_refuses_what_is_no_count(adata, value):
    pp.thin(adata)
    wrong = adata.X.toarray()
    wrong[4, 4] = value
    adata.layers["wrong"] = wrong
    with pytest.raises(ValueError, match="'wrong' has NaN, infinite or negative"):
        metrics.heldout(adata, "wrong")
