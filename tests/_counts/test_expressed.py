"""fill="expressed": which cells are without a gene, against loops and against what was planted."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

import scimpute
from scimpute import tl
from scimpute._counts import expressed as _expressed
from scimpute._counts.expressed import BINS, MIN_CELLS, PSEUDO, split_in_two, thresholds

QUICK = {"max_epochs": 20, "n_repeats": 2, "n_context": 3, "width": 16, "penalty": 30.0, "block_size": 16, "progress": False}


def two_kinds(n: int = 400, seed: int = 0) -> tuple[ad.AnnData, np.ndarray]:
    """Counts in which the first ten of forty genes are in every second cell only, and whether a cell has them."""
    rng = np.random.default_rng(seed)
    has = np.arange(n) % 2 == 0
    level = np.repeat([0.5, 3.0], [20, 20]) * rng.lognormal(0, 0.3, 40)
    level[:10] = 0.6
    rate = np.tile(level, (n, 1)) * rng.lognormal(0, 0.3, (n, 1))
    rate[~has, :10] *= 0.02
    # Something by which the two kinds can be told, and that both have.
    rate[has, 30:] *= 2.0
    return ad.AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32))), has


def test_parts_against_loops():
    rng = np.random.default_rng(0)
    place = np.column_stack([rng.binomial(BINS - 1, p, 300) for p in (0.1, 0.5)] + [np.where(rng.random(300) < 0.3, 5, 100)])
    place = np.column_stack([place, np.clip(np.r_[rng.normal(20, 5, 200), rng.normal(80, 25, 100)], 0, BINS - 1).astype(int)])
    cuts = []
    for column in place.T:
        between, error = np.zeros(BINS - 1), np.full(BINS - 1, np.inf)
        for last in range(BINS - 1):
            parts = column[column <= last], column[column > last]
            if min(map(len, parts)):
                between[last] = len(parts[0]) * len(parts[1]) * (parts[0].mean() - parts[1].mean()) ** 2
            if min(map(len, parts)) >= MIN_CELLS:
                shares = [len(part) / len(column) for part in parts]
                # Twice the criterion less 1.
                error[last] = sum(s * (np.log(part.var() + 1 / 12) - 2 * np.log(s)) for s, part in zip(shares, parts))
        best = [np.flatnonzero(np.isclose(values, values.min(), rtol=1e-9)) for values in (-between, error)]
        cuts.append([(found[0] + found[-1]) // 2 for found in best])
    np.testing.assert_array_equal(split_in_two(place), np.min(cuts, axis=1))
    # Between two spikes, in the middle; and of a narrow and a wide part, nearer to the narrow one.
    assert split_in_two(place)[2] == (5 + 99) // 2
    assert cuts[3][1] < cuts[3][0]


def test_parts_of_many_cells():
    """Squares of sums over many cells are larger than whole numbers of 64 bits."""
    rng = np.random.default_rng(0)
    some = np.clip(np.r_[rng.normal(20, 8, 3000), rng.normal(90, 8, 1000)], 0, BINS - 1).astype(int)[:, None]
    assert 40 < split_in_two(some)[0] < 70
    np.testing.assert_array_equal(split_in_two(np.tile(some, (50, 1))), split_in_two(some))


def test_thresholds_lie_between_two_parts_and_nowhere_else():
    rng, n = np.random.default_rng(0), 600
    size, on = rng.uniform(500, 3000, n), np.arange(n) < 200
    rates = np.column_stack(
        [
            np.where(on, 1e-3, 1e-5),  # two parts
            np.where(on, 1e-3, 3e-4),  # two parts, and all cells have it
            np.full(n, 1e-3) * rng.lognormal(0, 0.3, n),  # one part
            np.where(on, 1e-3, 1e-5),  # predicted so, but the counts know nothing of it
            np.full(n, 1e-3),  # the same everywhere
            np.where(on, 2e-6, 1e-8),  # as the first, and a molecule or two
            np.where(on, 1.5e-3, 1e-3),  # the counts say so, the network does not
        ]
    )
    counts = rng.poisson(rates * size[:, None])
    counts[:, 3] = rng.poisson(2e-4 * size)
    counts[~on, 6] = 0
    found = thresholds(rates.astype(np.float32), sp.csr_matrix(counts), size, np.arange(7))
    assert 1e-5 < found[0] < 1e-3
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[1:], 0)


@pytest.mark.parametrize("over", [0.999, 1.001])
def test_the_counts_decide_at_the_fold_that_is_said(over, monkeypatch):
    """By hand: molecules and depths of both parts."""
    rng, n = np.random.default_rng(0), 600
    size, on = rng.uniform(500, 3000, n), np.arange(n) < 200
    rates = np.where(on, 1e-3, 1e-4)[:, None]
    counts = rng.poisson(rates * size[:, None])
    fold = (counts[on].sum() / size[on].sum()) / ((counts[~on].sum() + PSEUDO) / size[~on].sum())
    monkeypatch.setattr(_expressed, "COUNT_RATIO", fold * over)
    found = thresholds(rates.astype(np.float32), sp.csr_matrix(counts), size, np.arange(1))
    assert (found[0] > 0) == (over < 1)


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_do_not_depend_on_the_chunks_and_follow_the_genes(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    adata, _ = two_kinds(seed=seed)
    size, genes = np.asarray(adata.X.sum(1)).ravel().astype(float), rng.permutation(40)[:25]
    rates = rng.lognormal(-6, 1.5, (400, 25)).astype(np.float32)
    expected = thresholds(rates, adata.X, size, genes)
    monkeypatch.setattr(_expressed, "CACHED_ENTRIES", 800)
    np.testing.assert_array_equal(thresholds(rates, adata.X, size, genes), expected)
    np.testing.assert_array_equal(thresholds(rates[:, ::-1], adata.X, size, genes[::-1]), expected[::-1])


@pytest.mark.parametrize("seed", range(3))
def test_cells_without_a_gene_are_told(seed):
    adata, has = two_kinds(seed=seed)
    tl.began(adata, **QUICK, random_state=seed)
    tl.began(adata, **QUICK, random_state=seed, fill="expressed", key_added="found")
    counts, found, everywhere = adata.X.toarray(), adata.layers["found"], adata.layers["began"]
    above = adata.uns["found"]["expressed_above"]
    assert (above[:10] > 0).all()
    assert (above[10:] == 0).all()
    # Nothing else is changed, nor anything of which a molecule was seen.
    zero = found == 0
    assert not (zero & (counts > 0)).any()
    np.testing.assert_array_equal(found[~zero], everywhere[~zero])
    np.testing.assert_array_equal(adata.layers["found_sd"], adata.layers["began_sd"])
    assert (everywhere > 0).all()
    called = zero[:, :10]
    assert called[~has][counts[~has, :10] == 0].mean() > 0.95
    assert called[has].mean() < 0.05
    # That is what a rank correlation with the truth sees.
    size = counts.sum(1)
    better = [stats.spearmanr(found[:, j] / size, has)[0] - stats.spearmanr(everywhere[:, j] / size, has)[0] for j in range(10)]
    assert min(better) > 0.02


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_called_where_genes_know_nothing_of_each_other(seed):
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(rng.lognormal(-1, 1, 60), (300, 60)).astype(np.float32)))
    tl.began(adata, **QUICK, fill="expressed", random_state=seed)
    assert (adata.uns["began"]["expressed_above"] > 0).mean() < 0.05


@pytest.mark.parametrize("output", ["rate", "log1p"])
def test_zeros_are_zeros_on_every_scale(output):
    adata, _ = two_kinds()
    tl.began(adata, **QUICK, fill="expressed")
    tl.began(adata, **QUICK, fill="expressed", output=output, key_added="other")
    np.testing.assert_array_equal(adata.layers["other"] == 0, adata.layers["began"] == 0)
    tl.began(adata, **QUICK, output=output, key_added="everywhere")
    np.testing.assert_array_equal(adata.layers["other_sd"], adata.layers["everywhere_sd"])


@pytest.mark.parametrize("genes", [None, ["3", "0", "7", *map(str, range(39, 14, -1))]], ids=["all", "some"])
def test_a_saved_model_tells_the_same_cells(tmp_path, genes):
    adata, _ = two_kinds()
    path = tmp_path / "model.safetensors"
    tl.began(adata, **QUICK, fill="expressed", genes=genes, save=path)
    expected = adata.to_df(layer="began") if genes is None else adata.obsm["began"]
    assert ((expected == 0).to_numpy().sum(axis=0) > 100).sum() == (10 if genes is None else 3)
    rng = np.random.default_rng(0)
    other = ad.AnnData(adata.X, adata.obs[[]], adata.var[[]])[rng.permutation(400)[:50], rng.permutation(40)].copy()
    tl.apply(other, path)
    found = other.to_df(layer="began") if genes is None else other.obsm["began"]
    expected = expected.loc[found.index, found.columns]
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_scores_of_expected_counts_warn():
    adata, _ = two_kinds()
    scimpute.pp.thin(adata)
    tl.began(adata, **QUICK, layer="thin_train", fill="expressed")
    with pytest.warns(UserWarning, match="'began' was written with fill='expressed'.*impute again with fill='all'"):
        scimpute.metrics.heldout(adata, "began")
