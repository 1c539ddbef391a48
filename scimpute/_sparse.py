"""Arithmetic on count matrices for several parts of the package. It needs only numpy and scipy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

TARGET_SUM = 1e4
"""Molecules per cell after normalisation: CP10k, the usual ``target_sum`` in scanpy."""


def binomial(counts: np.ndarray, keep: float, rng: np.random.Generator) -> np.ndarray:
    """Number of molecules of each entry that stay, if each stays with probability ``keep``. All ``counts`` are at least 1.

    Nearly all entries of a single-cell matrix are small. Therefore the first six molecules of an entry are single trials. The general
    binomial generator is far slower and draws only the rest of larger entries.
    """
    kept = (rng.random(counts.shape, dtype=np.float32) < keep).astype(np.float32)
    larger = np.flatnonzero(counts > 1)
    for molecules in range(2, 7):
        kept[larger] += rng.random(larger.shape, dtype=np.float32) < keep
        larger = larger[counts[larger] > molecules]
    kept[larger] += rng.binomial(counts[larger].astype(np.int64) - 6, keep)
    return kept


def split_molecules(counts: sp.csr_matrix, keep: float, rng: np.random.Generator) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Split every entry binomially into two matrices. Given the rates, the two matrices are independent."""
    kept = rng.binomial(counts.data.astype(np.int64), keep).astype(np.float32)
    parts = []
    for data in (kept, counts.data - kept):
        part = sp.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def row_sums(matrix: sp.csr_matrix) -> np.ndarray:
    """Sum of every row in float64. float32 would lose molecules beyond 2^24, and small integers would overflow.

    scipy's ``sum(dtype=np.float64)`` adds in the type of the matrix and converts the sum. A matrix product adds in float64.
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
        Counts of cells, ``(n, g)``, or one entry of each cell, ``(n,)``. An array or CSR; the zeros of CSR are not touched.
    totals
        Molecules of each cell, ``(n,)``. A total of 0 is replaced by 1.
    """
    scale = (TARGET_SUM / np.where(totals > 0, totals, 1)).astype(values.dtype)
    if isinstance(values, np.ndarray):
        return np.log1p(values * scale.reshape(-1, *[1] * (values.ndim - 1)))
    logged = np.log1p(values.data * np.repeat(scale, np.diff(values.indptr)))
    return sp.csr_matrix((logged, values.indices, values.indptr), shape=values.shape)


def median_size_of(size: np.ndarray) -> float:
    """Median library size of the cells with molecules, at least 1."""
    positive = size[size > 0]
    return max(float(np.median(positive)), 1.0) if positive.size else 1.0


def columns(matrix: sp.csr_matrix, genes: np.ndarray) -> sp.csr_matrix:
    """The columns ``genes`` in this order. If these are all columns in their own order, the matrix itself is returned."""
    if len(genes) == matrix.shape[1] and np.array_equal(genes, np.arange(len(genes))):
        return matrix
    return matrix[:, genes]


CACHED_ENTRIES = 300_000
"""Entries that fit the cache of a core, for work that passes over the same entries several times."""


def chunks(n_rows: int, n_columns: int, entries: int = 4_000_000) -> Iterator[slice]:
    """Row slices of about ``entries`` dense entries each. The package makes sparse matrices dense only in such slices."""
    step = max(1, entries // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
