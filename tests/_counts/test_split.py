"""Molecules held out of each cell, and what a cell weighs in the choice of them."""

from __future__ import annotations

import numpy as np
import pytest

from scimpute._counts.split import HELDOUT, depth_weights


def test_data_holds_out_molecules_once(adata, data_of):
    data = data_of(adata, outside=np.linspace(0, 5000, 60))
    np.testing.assert_array_equal((data.train + data.heldout).toarray(), adata.X.toarray())
    assert data.heldout.sum() == pytest.approx(HELDOUT * adata.X.sum(), rel=0.15)
    np.testing.assert_allclose(data.size_train + data.size_heldout, data.size)
    outside = data.size_heldout - data.heldout.toarray().sum(1)
    np.testing.assert_allclose(outside, HELDOUT * np.linspace(0, 5000, 60), atol=1e-4)
    sums = data.train.toarray().sum(0)
    np.testing.assert_allclose(data.share, np.maximum(sums, 0.5) / data.size_train.sum())
    np.testing.assert_array_equal(data.validation, np.arange(60))
    assert data.levels == (2, 3)


@pytest.mark.parametrize("genes", [np.random.default_rng(0).permutation(40), np.array([9, 3, 30])], ids=["all", "some"])
def test_dense_keeps_the_order_of_the_genes(adata, genes, data_of):
    """All genes in another order once came back in their own."""
    data, rows = data_of(adata, genes=genes), np.array([5, 0, 59])
    np.testing.assert_array_equal(data.dense(data.counts, rows, data.genes), adata.X.toarray()[np.ix_(rows, genes)])


def test_per_molecule_does_not_depend_on_the_depth(adata, data_of):
    """Deviance per molecule of shares: that of the rates themselves, whatever the exposure."""
    data = data_of(adata)
    y, size = data.heldout.toarray(), data.size_heldout[:, None]
    assert (size > 0).all()
    share = np.full((60, 40), 1 / 40)
    deviance = (share * size - y * np.log(share * size)).sum()
    assert data.per_molecule(deviance, data.genes) == pytest.approx(1 + np.log(40))


def test_depths_of_one_technology_weigh_alike():
    rng = np.random.default_rng(0)
    size, labels = rng.lognormal(8, 0.6, 500), (np.arange(500) % 4,)
    assert depth_weights(size, labels) is None
    assert depth_weights(np.zeros(5), ()) is None
    # A few deep cells are no technology.
    assert depth_weights(np.r_[size, 1e7], (np.append(labels[0], 0),)) is None


@pytest.mark.parametrize("n", [250, 20], ids=["half", "a few, by their label"])
def test_shallow_cells_are_not_drowned(n):
    rng = np.random.default_rng(0)
    size = np.r_[rng.lognormal(8, 0.3, n), rng.lognormal(13, 0.3, 500)]
    weight = depth_weights(size, (np.arange(len(size)) < n,))
    assert weight[size < 8000].min() == 1
    counted = size * weight
    assert counted.max() < 5 * np.median(counted[:n])
    # Without an empty cell nothing changes; an empty one counts as one without molecules.
    np.testing.assert_allclose(
        depth_weights(np.r_[size, np.zeros(400)], (np.r_[np.arange(len(size)) < n, np.ones(400, bool)],))[: len(size)], weight
    )
