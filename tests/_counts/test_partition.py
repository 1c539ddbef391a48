"""The random gene partition, and moments over repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scimpute._counts.partition import Partition
from scimpute._counts.rates import RateMoments


@given(
    n_vars=st.integers(1, 120),
    share=st.floats(0, 1),
    block_size=st.integers(1, 60),
    square=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_gene_has_one_place(n_vars, share, block_size, square, seed):
    rng = np.random.default_rng(seed)
    genes = rng.permutation(n_vars)[: max(1, round(share * n_vars))]
    part = Partition.draw(genes, n_vars, block_size, rng, square=square)
    k = len(genes)
    assert part.blocks == math.ceil(k / block_size)
    places = part.place[genes]
    assert len(np.unique(places)) == k
    assert places.min() >= 0
    assert places.max() < part.blocks * part.genes_per_block
    assert (np.delete(part.place, genes) == -1).all()
    assert part.complete == (k == n_vars)
    if square:
        side = math.isqrt(part.genes_per_block)
        assert side**2 == part.genes_per_block
        assert side % 4 == 0
        assert part.genes_per_block >= math.ceil(k / part.blocks)
    else:
        assert part.genes_per_block == math.ceil(k / part.blocks) <= block_size
        assert places.max() == k - 1
    values = rng.normal(size=n_vars).astype(np.float32)
    dealt = part.to_blocks(values, empty=-30.0)
    assert dealt.shape == (part.blocks, 1, part.genes_per_block)
    assert int((dealt == -30.0).sum()) == part.blocks * part.genes_per_block - k
    np.testing.assert_array_equal(part.to_genes(dealt)[0], values[genes])


def test_gather_keeps_cells_apart():
    genes = np.array([5, 0, 3, 1, 6])
    part = Partition.draw(genes, 7, 2, np.random.default_rng(0))
    cells = [part.to_blocks(np.arange(7) + 10.0 * cell, empty=-1) for cell in range(4)]
    expected = 10.0 * np.arange(4)[:, None] + genes
    np.testing.assert_array_equal(part.to_genes(torch.cat(cells, dim=1)), expected)


def test_draw_is_random_and_seeded():
    genes = np.arange(100)
    first, second, other = (Partition.draw(genes, 100, 10, np.random.default_rng(seed)).place for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).sum() > 80
    assert (first != genes).sum() > 80


@pytest.mark.parametrize("repeats", [1, 2, 7])
def test_running_moments_are_numpys(repeats):
    rng = np.random.default_rng(0)
    values = rng.normal(100, 1, size=(repeats, 9, 4)).astype(np.float32)
    moments, mean_only = RateMoments(9, 4), RateMoments(9, 4, spread=False)
    for repeat in range(repeats):
        for rows in (slice(0, 5), slice(5, 9)):
            moments.add(rows, torch.from_numpy(values[repeat, rows].copy()), repeat)
            mean_only.add(rows, torch.from_numpy(values[repeat, rows].copy()), repeat)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(mean_only.mean, moments.mean)
    expected = exact.var(0, ddof=1) if repeats > 1 else np.zeros((9, 4))
    np.testing.assert_allclose(moments.variance(slice(0, 9), repeats), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(moments.variance(slice(2, 4), repeats), expected[2:4], rtol=1e-3, atol=1e-6)
    assert mean_only.m2 is None
