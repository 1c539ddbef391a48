"""Minibatches made on the non-zeros, against dense recomputation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from scimpute._counts.minibatches import THINNING, CellBatches, Context, nonzero_entries
from scimpute._counts.partition import Partition
from scimpute._train import n_batches, shuffled

CPU = torch.device("cpu")


@given(n=st.integers(1, 400), batch_size=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_shuffled_gives_every_row_once(n, batch_size, seed):
    rows = np.arange(n) * 3 + 7
    parts = list(shuffled(rows, batch_size, np.random.default_rng(seed)))
    assert sorted(np.concatenate(parts)) == list(rows)
    assert len(parts) == n_batches(n, batch_size)
    sizes = [len(part) for part in parts]
    assert min(sizes) >= min(n, 2)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)


def test_shuffled_follows_its_generator():
    first, second, other = (np.concatenate(list(shuffled(np.arange(50), 8, np.random.default_rng(seed)))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert (first != np.arange(50)).any()


def counts_of(n: int = 12, g: int = 30, mean: float = 1.5, seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(mean * rng.gamma(1, 1, size=g), size=(n, g)).astype(np.float32))


def sums(counts: sp.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(1), dtype=np.float64).ravel()


@given(seed=st.integers(0, 2**31), density=st.floats(0, 1))
def test_entries_are_those_of_the_dense_rows(seed, density):
    """Also of empty rows, repeated rows, and rows out of order."""
    rng = np.random.default_rng(seed)
    counts = sp.random(9, 6, density, format="csr", random_state=rng, dtype=np.float32)
    rows = rng.integers(0, 9, size=rng.integers(1, 12))
    values, genes, row, starts = nonzero_entries(counts, rows)
    dense = np.zeros((len(rows), 6), np.float32)
    dense[row, genes] = values
    np.testing.assert_array_equal(dense, counts.toarray()[rows])
    lengths = np.diff(counts.indptr)[rows]
    np.testing.assert_array_equal(starts, np.cumsum(lengths) - lengths)


def dense_context(context: Context, kept: np.ndarray, size: np.ndarray) -> np.ndarray:
    scores = np.sqrt(kept * 1e4 / size[:, None]) @ context.loadings.numpy()
    return np.column_stack([scores, np.log(size / context.median_size)])


def test_context_is_the_svd_with_scores_of_unit_spread():
    counts = counts_of(40, 8, 4.0)
    size = sums(counts)
    context = Context.fit(counts, size, 5, seed=0)
    assert context.n_values == 6
    assert context.median_size == np.median(size)
    root = np.sqrt(counts.toarray() * 1e4 / size[:, None])
    left, values, _ = np.linalg.svd(root, full_matrices=False)
    expected = (left * values)[:, :5]
    expected /= np.hypot(expected.std(axis=0), 0.1 * expected.mean(axis=0))
    cp10k = torch.from_numpy(counts.data * (1e4 / size).astype(np.float32)[np.repeat(np.arange(40), np.diff(counts.indptr))])
    got = context(
        torch.from_numpy(counts.indices.astype(np.int64)),
        cp10k,
        torch.from_numpy(counts.indptr[:-1].astype(np.int64)),
        torch.from_numpy(size).float(),
    ).numpy()
    np.testing.assert_allclose(np.abs(got[:, :5]), np.abs(expected), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(got[:, :5].std(axis=0), expected.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(got[:, 5], np.log(size / np.median(size)), rtol=1e-5, atol=1e-6)
    shorter = context.truncated(2)
    assert shorter.n_values == 3
    np.testing.assert_array_equal(shorter.loadings, context.loadings[:, :2])
    assert shorter.median_size == context.median_size


@pytest.mark.parametrize(("shape", "n_values"), [((3, 30), 3), ((30, 3), 3), ((5, 1), 1)])
def test_context_is_cut_to_what_the_matrix_has(shape, n_values):
    counts = counts_of(*shape, mean=5.0)
    assert Context.fit(counts, sums(counts), 20, seed=0).n_values == n_values


def make(counts, size, *, square=False, genes=None, block_size=8, labels=()) -> CellBatches:
    g = counts.shape[1]
    genes = np.arange(g) if genes is None else genes
    partition = Partition.draw(genes, g, block_size, np.random.default_rng(3), square=square)
    return CellBatches(counts, size, labels, partition, Context.fit(counts, size, 4, seed=0), CPU)


def dense_removed(batches: CellBatches, batch, n_rows: int) -> np.ndarray:
    """Removed molecules, ``(b, k)`` in the order of the partition's genes."""
    part = batches.partition
    flat = torch.zeros(part.blocks, n_rows, part.genes_per_block)
    flat.view(-1)[batch.place] = batch.removed
    return part.to_genes(flat).numpy()


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("outside", [0, 1000], ids=["all genes", "molecules outside"])
def test_thinned_against_dense(square, outside):
    counts = counts_of()
    size = sums(counts) + outside * np.linspace(0.5, 1, 12)
    labels = (np.arange(12) % 3, np.arange(12) % 2)
    batches = make(counts, size, square=square, labels=labels)
    rows = np.array([4, 0, 11, 7, 8])
    batch = batches.thinned(rows, np.random.default_rng(5))
    removed = dense_removed(batches, batch, 5)
    whole = counts.toarray()[rows]
    kept = whole - removed
    assert (removed >= 0).all()
    assert (kept >= 0).all()
    assert len(batch.removed) == (removed > 0).sum()
    assert 0 < removed.sum() < whole.sum()
    # Molecules outside the object's genes: one rate for all cells, between the bounds.
    seen = size[rows] - batch.exposure.numpy()
    if outside:
        keep = (seen - kept.sum(1)) / (size[rows] - whole.sum(1))
        np.testing.assert_allclose(keep, keep[0], rtol=1e-3)
        assert THINNING[0] < keep[0] < THINNING[1]
    else:
        np.testing.assert_allclose(batch.exposure, removed.sum(1))
    part = batches.partition
    m = part.genes_per_block
    np.testing.assert_allclose(part.to_genes(batch.inputs[..., :m]), np.log1p(kept * 1e4 / seen[:, None]), rtol=1e-4, atol=1e-5)
    empty = np.setdiff1d(np.arange(part.blocks * m), part.place)
    assert not batch.inputs[..., :m].transpose(0, 1).reshape(5, -1)[:, empty].any()
    for block in batch.inputs[..., m:]:
        np.testing.assert_allclose(block, dense_context(batches.context, kept, seen), rtol=1e-3, atol=1e-3)
    for got, label in zip(batch.labels, labels, strict=True):
        np.testing.assert_array_equal(got, label[rows])


def test_thinning_is_even_over_its_range():
    counts = sp.csr_matrix(np.full((4, 50), 200, np.float32))
    batches, rng, rows = make(counts, sums(counts)), np.random.default_rng(0), np.arange(4)
    shown = np.array([1 - float(batches.thinned(rows, rng).exposure.sum()) / counts.sum() for _ in range(200)])
    assert THINNING[0] - 0.02 < shown.min() < THINNING[0] + 0.05
    assert THINNING[1] - 0.05 < shown.max() < THINNING[1] + 0.02
    assert abs(shown.mean() - np.mean(THINNING)) < 0.03


def test_subset_of_genes_has_the_context_and_exposure_of_all():
    counts = counts_of()
    size, rows, genes = sums(counts), np.array([1, 9, 2]), np.array([20, 3, 28, 4, 11])
    every, some = make(counts, size), make(counts, size, genes=genes, block_size=3)
    first, second = (batches.thinned(rows, np.random.default_rng(2)) for batches in (every, some))
    np.testing.assert_array_equal(dense_removed(some, second, 3), dense_removed(every, first, 3)[:, genes])
    np.testing.assert_array_equal(second.exposure, first.exposure)
    m, n = every.partition.genes_per_block, some.partition.genes_per_block
    torch.testing.assert_close(second.inputs[0, :, n:], first.inputs[0, :, m:])
    torch.testing.assert_close(some.partition.to_genes(second.inputs[..., :n]), every.partition.to_genes(first.inputs[..., :m])[:, genes])


def test_against_shows_whole_cells_and_another_matrix():
    counts, target = counts_of(), counts_of(mean=0.2, seed=1)
    size, exposure, rows = sums(counts) + 5, np.arange(12) + 0.5, np.array([3, 10, 0])
    batches = make(counts, size)
    batch = batches.against(rows, target, exposure)
    np.testing.assert_array_equal(dense_removed(batches, batch, 3), target.toarray()[rows])
    np.testing.assert_allclose(batch.exposure, exposure[rows])
    torch.testing.assert_close(batch.inputs, batches.inputs(rows))
    part, whole = batches.partition, counts.toarray()[rows]
    m = part.genes_per_block
    np.testing.assert_allclose(part.to_genes(batch.inputs[..., :m]), np.log1p(whole * 1e4 / size[rows, None]), rtol=1e-5)
    np.testing.assert_allclose(batch.inputs[-1, :, m:], dense_context(batches.context, whole, size[rows]), rtol=1e-4, atol=1e-4)


def test_cell_without_molecules_is_finite():
    counts = counts_of()
    counts.data[: counts.indptr[1]] = 0
    counts.eliminate_zeros()
    batch = make(counts, sums(counts)).thinned(np.arange(2), np.random.default_rng(0))
    assert torch.isfinite(batch.inputs).all()
    assert float(batch.exposure[0]) == 0
    assert math.isclose(float(batch.exposure[1]), float(batch.removed.sum()))


# The sum of a cell's shares


def shares_of(counts, size, log_rate: np.ndarray, **options: Any) -> np.ndarray:
    """Shares ``(n, g)`` of a network that gives each cell these logs."""
    g = counts.shape[1]
    partition = Partition.draw(np.arange(g), g, 8, np.random.default_rng(3))
    batches = CellBatches(
        counts, size, (), partition, Context.fit(counts, size, 4, seed=0), CPU, measured=np.ones(g, dtype=bool), **options
    )
    dealt = torch.cat([partition.to_blocks(row, -30.0) for row in log_rate], dim=1)
    return partition.to_genes(batches.shares(np.arange(len(log_rate)), dealt)).numpy()


@pytest.mark.parametrize("offset", [0.0, 0.4, -300.0], ids=["as they should be", "too large", "all 0 in float32"])
def test_shares_sum_to_one_where_all_genes_are_measured(offset):
    counts = counts_of()
    log_rate = np.random.default_rng(0).normal(-3, 1, counts.shape)
    got = shares_of(counts, sums(counts), log_rate + offset)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(got, np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True), rtol=1e-4)


def test_sum_of_shares_lies_between_the_network_and_the_counts():
    """With half of the molecules outside it is a Beta mean, nearer to the counts the deeper the cell is."""
    counts = counts_of(mean=5.0)
    size = sums(counts) * np.linspace(1, 100, 12)
    log_rate = np.full(counts.shape, np.log(0.9 / counts.shape[1]))
    got = shares_of(counts, size, log_rate, covered=0.5).sum(1)
    sure = 1 / 0.05**2
    np.testing.assert_allclose(got, (sums(counts) + sure * 0.9) / (size + sure), rtol=1e-4)


def test_sums_are_left_where_they_are_not_known():
    """Some genes in no block, or values that are no shares."""
    counts = counts_of()
    some = make(counts, sums(counts), genes=np.arange(counts.shape[1] - 3))
    some.measured = np.ones(counts.shape[1], dtype=bool)
    for batches in (some, make(counts, sums(counts))):
        shape = (batches.partition.blocks, 12, batches.partition.genes_per_block)
        assert (batches.shares(np.arange(12), torch.full(shape, -4.0)) == np.float32(np.exp(-4))).all()


def test_a_weight_is_a_factor_of_molecules_and_exposure():
    counts = counts_of()
    plain, weighted = make(counts, sums(counts)), make(counts, sums(counts))
    weighted.weight = np.linspace(0.1, 1, 12)
    rows = np.array([4, 0, 11])
    one, other = (batches.thinned(rows, np.random.default_rng(5)) for batches in (plain, weighted))
    np.testing.assert_allclose(other.exposure, one.exposure.numpy() * weighted.weight[rows], rtol=1e-6)
    np.testing.assert_allclose(dense_removed(weighted, other, 3), dense_removed(plain, one, 3) * weighted.weight[rows][:, None], rtol=1e-6)
    assert torch.equal(one.inputs, other.inputs)
