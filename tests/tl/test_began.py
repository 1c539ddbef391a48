"""``tl.began``: order of the genes, outputs, batches, depths."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scimpute import tl
from scimpute._counts.expected import expected_log1p

QUICK: dict[str, Any] = {"max_epochs": 2, "n_repeats": 1, "n_context": 5, "width": 16, "penalty": 100.0, "progress": False}


def test_all_genes_in_another_order(adata):
    """Columns, sizes and scores follow the order asked."""
    names = list(np.random.default_rng(1).permutation(adata.var_names))
    tl.began(adata, key_added="all", **QUICK)
    tl.began(adata, key_added="asked", genes=names, **QUICK)
    frame, layer = adata.obsm["asked"], pd.DataFrame(adata.layers["all"], adata.obs_names, adata.var_names)
    assert list(frame.columns) == list(adata.obsm["asked_sd"].columns) == names
    first, second = adata.uns["all"], adata.uns["asked"]
    assert second["heldout"]["gene_mean"] == pytest.approx(first["heldout"]["gene_mean"], rel=1e-5)
    for score in ("network", "posterior"):
        # Another deal of the genes: close, while columns that are mixed up miss by nats.
        assert second["heldout"][score] == pytest.approx(first["heldout"][score], abs=0.05)
    np.testing.assert_allclose(frame.mean(), adata.to_df().mean()[names], rtol=0.2, atol=0.1)
    for name in names:
        assert np.corrcoef(frame[name], layer[name])[0, 1] > 0.8, name


def test_outputs_are_one_result_on_three_scales(adata):
    size = np.asarray(adata.X.sum(1)).ravel()
    done = {output: tl.began(adata, output=output, copy=True, **QUICK) for output in ("counts", "rate", "log1p")}
    counts = done["counts"].layers["began"]
    np.testing.assert_allclose(done["rate"].layers["began"], counts / size[:, None], rtol=1e-5)
    np.testing.assert_allclose(done["log1p"].layers["began"], expected_log1p(counts, 1e4 / size), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(done["rate"].layers["began_sd"], done["counts"].layers["began_sd"] / size[:, None], rtol=1e-5)


@pytest.fixture(scope="module")
def batched() -> ad.AnnData:
    """120 cells of one kind in two batches; half of the genes are three times as high in the second, and not so the other half."""
    rng = np.random.default_rng(0)
    batch = np.arange(120) % 2
    rate = np.tile(rng.gamma(5, 1, size=30), (120, 1))
    rate[batch == 1, :15] *= 3
    obs = pd.DataFrame({"batch": pd.Categorical(np.where(batch, "second", "first"))}, index=[f"c{i}" for i in range(120)])
    return ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(30)]))


def gap(adata: ad.AnnData, values: np.ndarray) -> np.ndarray:
    """Log ratio of the batches' mean shares, of each gene."""
    shares = values / values.sum(1, keepdims=True)
    second = (adata.obs["batch"] == "second").to_numpy()
    return np.log(shares[second].mean(0) / shares[~second].mean(0))


@pytest.mark.parametrize("posterior", [True, False])
def test_target_batch_moves_the_means_to_the_target(batched, posterior):
    quick = QUICK | {"max_epochs": 20, "n_context": 1, "penalty": 1.0, "learning_rate": 5e-3, "posterior": posterior, "copy": True}
    values = {}
    for target in (None, "first", "second", "average"):
        values[target] = tl.began(batched, "batch", target_batch=target, **quick).layers["began"]
    before = np.abs(gap(batched, batched.X)).mean()
    assert np.abs(gap(batched, values[None])).mean() > 0.8 * before
    for target in ("first", "second", "average"):
        assert np.abs(gap(batched, values[target])).mean() < 0.5 * before, target
    # A cell of the target batch is imputed as without a target: same seed, same networks.
    for target in ("first", "second"):
        own = (batched.obs["batch"] == target).to_numpy()
        np.testing.assert_allclose(values[target][own], values[None][own], rtol=1e-3, atol=1e-4)
        assert np.abs(values[target][~own] - values[None][~own]).max() > 1
    if not posterior:
        np.testing.assert_allclose(values["average"], (values["first"] + values["second"]) / 2, rtol=1e-4)


def test_size_key_gives_shares_of_the_whole_library(adata):
    """Of an object cut to half of its genes, with the sizes of before."""
    adata.obs["total"] = np.asarray(adata.X.sum(1)).ravel()
    cut = adata[:, ::2].copy()
    share = float(cut.X.sum() / adata.obs["total"].sum())
    quick = QUICK | {"output": "rate", "posterior": False, "copy": True}
    rates = {key: tl.began(cut, size_key=key, **quick) for key in (None, "total")}
    for key, expected in ((None, 1.0), ("total", share)):
        got = rates[key].layers["began"].sum(1)
        assert got.mean() == pytest.approx(expected, rel=0.05)
    assert 0.3 < share < 0.7
    assert rates["total"].uns["began"]["params"]["size_key"] == "total"
    # Counts are at the depth of the whole library times these shares: those of the genes that are left.
    counts = tl.began(cut, size_key="total", **quick | {"output": "counts"}).layers["began"]
    np.testing.assert_allclose(counts, rates["total"].layers["began"] * adata.obs["total"].to_numpy()[:, None], rtol=1e-4)
    assert counts.sum() == pytest.approx(float(cut.X.sum()), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"penalty": "auto", "max_epochs": 3}], ids=["given", "chosen"])
def test_minibatches_without_a_removed_molecule(options):
    """Most cells have none to lose."""
    counts = np.zeros((80, 5), dtype=np.float32)
    counts[:12] = np.random.default_rng(0).poisson(2.0, size=(12, 5))
    adata = ad.AnnData(sp.csr_matrix(counts))
    with pytest.warns(UserWarning, match="68 cells have no molecules"):
        tl.began(adata, **QUICK | {"batch_size": 8} | options)
    assert np.isfinite(adata.layers["began"]).all()


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("options", [{}, {"max_epochs": 2}], ids=["chosen", "two epochs"])
def test_few_cells_among_empty_ones_keep_their_molecules(k, options):
    """More scores than cells: what is told beyond the rank of the data is nothing."""
    rng = np.random.default_rng(0)
    counts = np.vstack([rng.poisson(rng.gamma(1, 1, (k, 30)) * 3.0), np.zeros((30 - k, 30))]).astype(np.float32)
    with warnings.catch_warnings():
        # Of empty cells, and of a network that learns little from one cell.
        warnings.simplefilter("ignore", UserWarning)
        got = tl.began(ad.AnnData(sp.csr_matrix(counts)), n_repeats=2, copy=True, **options).layers["began"]
    np.testing.assert_allclose(got[:k].sum(1), counts[:k].sum(1), rtol=0.2)
    assert got[k:].max(initial=0) < 1e-6


def test_one_huge_count(adata):
    counts = adata.X.toarray()
    counts[0, 0] = 1e12
    got = tl.began(ad.AnnData(sp.csr_matrix(counts)), copy=True, **QUICK | {"penalty": "auto"}).layers["began"]
    assert np.isfinite(got).all()
    assert got[0, 0] == pytest.approx(1e12, rel=0.05)


def test_cells_beside_deeper_ones_keep_depth_and_profile():
    """UMI cells beside full-length reads, as near to the truth as if they were imputed alone."""
    rng, n = np.random.default_rng(0), 100
    profiles = rng.gamma(0.4, 1, (3, 60)) + 0.02
    truth = (profiles / profiles.sum(1, keepdims=True))[rng.integers(0, 3, 2 * n)]
    depth = np.r_[rng.lognormal(np.log(2e3), 0.3, n), rng.lognormal(np.log(5e5), 0.3, n)]
    adata = ad.AnnData(rng.poisson(truth * depth[:, None]).astype(np.float32))
    adata.obs["technology"] = np.repeat(["UMI", "full length"], n)
    alone = tl.began(adata[:n].copy(), n_repeats=1, copy=True).layers["began"]
    beside = tl.began(adata, "technology", n_repeats=1, copy=True).layers["began"][:n]
    assert beside.sum() == pytest.approx(adata.X[:n].sum(), rel=0.03)

    def error(values):
        shares = values / values.sum(1, keepdims=True)
        return (truth[:n] * np.log(truth[:n] / shares)).sum(1).mean()

    assert error(beside) < 2 * error(alone)
