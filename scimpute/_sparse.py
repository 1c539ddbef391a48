"""Arithmetic on count matrices that more than one part of the package needs (numpy and scipy only)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

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


def log1p_cp10k(values: Any, totals: np.ndarray) -> Any:
    """``log1p`` of counts per 10,000 molecules, in the precision of the values.

    Parameters
    ----------
    values
        Counts of cells, ``(n, g)`` or single entries ``(n,)``; an array, or CSR, of which only the non-zeros are touched.
    totals
        Molecules of each cell, ``(n,)``; 0 is taken as 1.
    """
    scale = (TARGET / np.where(totals > 0, totals, 1)).astype(values.dtype)
    if isinstance(values, np.ndarray):
        return np.log1p(values * scale.reshape(-1, *[1] * (values.ndim - 1)))
    logged = np.log1p(values.data * np.repeat(scale, np.diff(values.indptr)))
    return sp.csr_matrix((logged, values.indices, values.indptr), shape=values.shape)


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
