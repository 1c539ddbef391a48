"""Thresholds of ``fill="expressed"``: they separate the cells that express a gene from the cells that do not."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .._sparse import CACHED_ENTRIES, columns

BINS = 128
COUNT_RATIO, RATE_RATIO = 5.0, 2.0
"""The lower cells lack the gene if the upper ones have so many times their molecules at the same depth, and so many times their rate.

Both conditions are needed. A network orders the cells of a rare gene by the few molecules that it has read, so the counts alone would split
genes without any structure. But it pulls uncertain rates to the mean of the gene.
"""
PSEUDO = 2.0
"""Molecules that are added to the lower cells, so a gene with a handful of molecules is never split."""
MIN_CELLS = 5
"""Each of the two groups needs so many cells."""
_TINY = 1e-12


def thresholds(rates: np.ndarray, counts: sp.csr_matrix, size: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Threshold on the rate of each gene, ``(k,)`` float32: cells below it do not express the gene. 0 if all cells may express it.

    :func:`split_in_two` splits the log rates of a gene in two. Any gene can be split, even one that all cells express. So the counts and
    the rates of both groups decide whether the lower group lacks the gene.

    Parameters
    ----------
    rates
        Predicted rates of the cells, ``(n, k)``.
    counts, size
        Counts of all genes, ``(n, g)``, and library sizes, ``(n,)``.
    genes
        Places of the k genes among the g.
    """
    result = np.zeros(len(genes), dtype=np.float32)
    by_gene = columns(counts, genes).tocsc()
    step = max(1, CACHED_ENTRIES // len(size))
    for start in range(0, len(genes), step):
        part = slice(start, start + step)
        logs = np.log(np.maximum(rates[:, part], _TINY))
        low, width = logs.min(0), np.ptp(logs, axis=0) / BINS
        # The highest rate is the end of the last bin.
        bins = np.minimum((logs - low) / np.where(width > 0, width, 1), BINS - 1).astype(np.int64)
        last = split_in_two(bins)
        below = bins <= last
        molecules = by_gene[:, part].tocoo()
        total = np.bincount(molecules.col, molecules.data, minlength=len(last))
        lower = np.bincount(molecules.col, molecules.data * below[molecules.row, molecules.col], minlength=len(last))
        depth = size @ below
        absent = (total - lower) * depth > COUNT_RATIO * (lower + PSEUDO) * (size.sum() - depth)
        number, predicted = below.sum(0), rates[:, part].sum(0, dtype=np.float64, where=below)
        upper = rates[:, part].sum(0, dtype=np.float64) - predicted
        absent &= upper * number > RATE_RATIO * predicted * (len(size) - number)
        result[part] = np.where(absent & (width > 0), np.exp(low + (last + 1) * width), 0)
    return result


def split_in_two(bins: np.ndarray) -> np.ndarray:
    """Last bin of the lower group of each column, ``(k,)``, for values in bins 0 to BINS - 1, ``(n, k)``.

    The lower of two thresholds. The first has the largest variance between the groups (Otsu 1979); it is too high if the upper group is
    wider. At the second, two normals fit best, each with its share, mean and variance (Kittler and Illingworth 1986, equation 15); it is
    arbitrary if there is only one group.
    """
    n, k = bins.shape
    # In float64: squares of sums over 10,000 cells overflow integers of 64 bits.
    number = np.bincount((bins + BINS * np.arange(k)).ravel(), minlength=BINS * k).reshape(k, BINS).astype(np.float64)
    powers = np.stack([number * np.arange(BINS) ** power for power in range(3)])
    lower = powers.cumsum(2)[:, :, :-1]
    error, means = np.zeros((k, BINS - 1)), []
    for cells, total, squares in (lower, powers.sum(2, keepdims=True) - lower):
        n_cells = np.maximum(cells, 1)
        means.append(total / n_cells)
        # 1 / 12 is the variance within a bin.
        variance = squares / n_cells - np.square(means[-1]) + 1 / 12
        error += n_cells / n * (np.log(variance) - 2 * np.log(n_cells / n))
    smaller = np.minimum(lower[0], n - lower[0])
    error[smaller < MIN_CELLS] = np.inf
    between = lower[0] * (n - lower[0]) * np.square(means[1] - means[0])
    return np.minimum(_argmin(-between), _argmin(error))


def _argmin(values: np.ndarray) -> np.ndarray:
    """Position of the smallest value of each row. Empty bins give equal values: then it is the middle of them."""
    first, last = values.argmin(1), values.shape[1] - 1 - values[:, ::-1].argmin(1)
    return (first + last) // 2
