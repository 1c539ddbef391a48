"""Arithmetic on count matrices that more than one part of the package needs (numpy and scipy only)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from scipy.stats import poisson

TARGET = 1e4
"""Molecules per cell after normalisation: CP10k, scanpy's customary ``target_sum``."""


def binomial(counts: np.ndarray, keep: float, rng: np.random.Generator) -> np.ndarray:
    """Molecules kept out of ``counts`` (1 or more, as the non-zeros of a sparse matrix), each with probability ``keep``.

    Nearly all entries of a single-cell matrix are small, and the first molecules of an entry are drawn as single
    trials on the ever fewer entries that have them; the general binomial generator, far slower, sees only the rest.
    """
    kept = (rng.random(counts.shape, dtype=np.float32) < keep).astype(np.float32)
    left = np.flatnonzero(counts > 1)
    for molecules in range(2, 7):
        kept[left] += rng.random(left.shape, dtype=np.float32) < keep
        left = left[counts[left] > molecules]
    kept[left] += rng.binomial(counts[left].astype(np.int64) - 6, keep)
    return kept


def split(counts: sp.csr_matrix, keep: float, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Binomial split of every entry into two matrices that are independent given the rates."""
    kept = rng.binomial(counts.data.astype(np.int64), keep).astype(np.float32)
    parts = []
    for data in (kept, counts.data - kept):
        part = sp.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def row_sums(matrix: sp.csr_matrix) -> np.ndarray:
    """Sum of every row in float64: float32 loses molecules beyond 2^24, small integers overflow.

    scipy's ``sum(dtype=np.float64)`` converts only after it has added in the type of the matrix; a product adds in float64.
    """
    return np.asarray(matrix @ np.ones(matrix.shape[1])).ravel()


def column_sums(matrix: sp.csr_matrix) -> np.ndarray:
    """Sum of every column in float64."""
    return np.asarray(matrix.T @ np.ones(matrix.shape[0])).ravel()


def usual_size(size: np.ndarray) -> float:
    """Median library size of the cells that have any molecule; 1 where none has."""
    there = size[size > 0]
    return max(float(np.median(there)), 1.0) if there.size else 1.0


def columns(matrix: sp.csr_matrix, genes: np.ndarray) -> sp.csr_matrix:
    """Some columns in the order given; the matrix itself where that is all of them as they are."""
    if len(genes) == matrix.shape[1] and np.array_equal(genes, np.arange(len(genes))):
        return matrix
    return matrix[:, genes]


CACHED = 300_000
"""Entries that several passes are made over: so many stay in the cache of a core."""


def chunks(n_rows: int, n_columns: int, entries: int = 4_000_000) -> Iterator[slice]:
    """Row slices of about ``entries`` dense entries each: the only size in which anything is made dense."""
    step = max(1, entries // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def expected_log1p(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``E[log1p(scale_i * N)]`` for ``N ~ Poisson(mean_ij)``.

    ``log1p`` of the mean would be too high (Jensen); this is the value that ``sc.pp.normalize_total`` and
    ``sc.pp.log1p`` give on average. Each row has its own scale, so each gets a table over a grid that is even in the square
    root of the mean (the scale on which the function is smooth), read by interpolation that is linear in the mean, as the
    function is near 0, where most entries lie; beyond the grid the second-order expansion is exact to 1e-4.

    Parameters
    ----------
    mean
        Expected counts, shape ``(n, g)``.
    scale
        Factor that takes a count of the row to the target depth, shape ``(n,)``.
    """
    top = 64.0
    roots = np.linspace(0.0, np.sqrt(top), 321)
    support = np.arange(int(top + 10 * np.sqrt(top)) + 1)
    with np.errstate(under="ignore"):  # far from the mean the chance is 0
        weights = poisson.pmf(support[None, :], roots[:, None] ** 2)
    table = np.log1p(np.asarray(scale, dtype=np.float64)[:, None] * support) @ weights.T
    result = np.empty(mean.shape, dtype=np.float32)
    for i, row in enumerate(np.asarray(mean, dtype=np.float64)):
        place = np.minimum(np.sqrt(row), roots[-1]) / roots[1]
        low = np.minimum(place.astype(np.int64), len(roots) - 2)
        weight = (place * place - low * low) / (2 * low + 1)
        result[i] = table[i, low] + weight * (table[i, low + 1] - table[i, low])
        far = np.flatnonzero(row > top)
        if far.size:
            scaled = scale[i] * row[far]
            result[i, far] = np.log1p(scaled) - 0.5 * scale[i] * scaled / (1 + scaled) ** 2
    return result
