"""Arithmetic on counts, against scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scimpute._sparse import binomial, chunks, column_sums, columns, row_sums, split_molecules


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8, 12, 300])
def test_binomial_mean_and_variance(count, keep):
    n = 20_000
    # Other counts in between: every entry has to be followed by itself.
    counts = np.tile(np.array([count, 9, 2], np.float32), n)
    kept = binomial(counts, keep, np.random.default_rng(count))[::3]
    assert kept.dtype == np.float32
    assert kept.min() >= 0
    assert kept.max() <= count
    np.testing.assert_array_equal(kept, kept.round())
    spread = count * keep * (1 - keep)
    assert abs(kept.mean(dtype=np.float64) - count * keep) < 5 * np.sqrt(spread / n)
    np.testing.assert_allclose(kept.var(dtype=np.float64), spread, rtol=0.1)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_binomial_distribution(count):
    """Chi-square of the whole distribution: single trials and the generator for the rest join to one binomial."""
    from scipy.stats import binom, chisquare

    n = 50_000
    kept = binomial(np.full(n, count, np.float32), 0.7, np.random.default_rng(1)).astype(int)
    expected = binom.pmf(np.arange(count + 1), count, 0.7) * n
    frequent = expected > 5
    observed = np.bincount(kept, minlength=count + 1)
    observed, expected = (np.append(x[frequent], x[~frequent].sum()) for x in (observed, expected))
    assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4


def test_binomial_bounds_and_seed():
    counts = 1 + np.random.default_rng(0).poisson(5, size=500).astype(np.float32)
    before = counts.copy()
    np.testing.assert_array_equal(binomial(counts, 1.0, np.random.default_rng(0)), counts)
    assert not binomial(counts, 0.0, np.random.default_rng(0)).any()
    first, second, other = (binomial(counts, 0.6, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    np.testing.assert_array_equal(counts, before)
    assert binomial(np.zeros(0, np.float32), 0.5, np.random.default_rng(0)).shape == (0,)


def test_split_is_numpys_binomial_and_sums_to_the_input():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.3, size=(30, 20)).astype(np.float32))
    before = counts.copy()
    kept, removed = split_molecules(counts, 0.8, np.random.default_rng(7))
    expected = counts.copy()
    expected.data = np.random.default_rng(7).binomial(counts.data.astype(np.int64), 0.8).astype(np.float32)
    np.testing.assert_array_equal(kept.toarray(), expected.toarray())
    np.testing.assert_array_equal((kept + removed).toarray(), counts.toarray())
    for part in (kept, removed):
        assert part.dtype == np.float32
        assert (part.data > 0).all()
        assert part.has_canonical_format
        assert part.nnz < counts.nnz
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(before, name))
        assert not np.shares_memory(getattr(kept, name), getattr(removed, name))


def test_split_gives_independent_poisson_parts():
    counts = sp.csr_matrix(np.random.default_rng(1).poisson(4.0, size=(200, 200)).astype(np.float32))
    kept, removed = (part.toarray().ravel() for part in split_molecules(counts, 0.7, np.random.default_rng(2)))
    assert abs(np.corrcoef(kept, removed)[0, 1]) < 5 / 200
    for part, mean in ((kept, 2.8), (removed, 1.2)):
        assert part.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean) / 200)
        assert part.var() == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("genes", [[2, 0, 1, 3], [3, 2, 1, 0], [0, 1, 2, 3], [3, 1], [1]])
def test_columns_come_in_the_order_asked(genes):
    """All genes in another order once came back in their own."""
    matrix = sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(columns(matrix, np.array(genes)).toarray(), matrix.toarray()[:, genes])


def test_columns_does_not_copy_for_nothing():
    matrix = sp.csr_matrix(np.eye(4, dtype=np.float32))
    assert columns(matrix, np.arange(4)) is matrix


def test_sums_are_float64():
    matrix = sp.csr_matrix(np.array([[2**24, 1], [1, 0]], dtype=np.float32))
    np.testing.assert_array_equal(row_sums(matrix), [2**24 + 1, 1])
    np.testing.assert_array_equal(column_sums(matrix), [2**24 + 1, 1])
    small = sp.csr_matrix(np.full((3, 100), 100, dtype=np.int8))
    np.testing.assert_array_equal(row_sums(small), 10_000)
    assert row_sums(small).shape == (3,)
    assert column_sums(small).shape == (100,)


@given(n=st.integers(0, 300), width=st.integers(0, 50), entries=st.integers(1, 2000))
def test_chunks_cover_every_row_once(n, width, entries):
    parts = list(chunks(n, width, entries))
    assert [row for part in parts for row in range(n)[part]] == list(range(n))
    assert all((part.stop - part.start) * width <= max(entries, width) for part in parts)
