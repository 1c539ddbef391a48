"""In which cells a gene is expressed: what ``fill="expressed"`` leaves at zero.

Knows numpy and scipy, not AnnData.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .._sparse import CACHED, columns

BINS = 128
FOLD, PREDICTED = 5.0, 2.0
"""Where the lower part is without the gene, the upper has so many times its molecules at the same depth, and so many times its rate.

A network orders the cells of a rare gene by the few molecules it has seen, so that the counts alone would part genes that know nothing of
each other. But it draws what it does not know to the mean of the gene.
"""
PSEUDO = 2.0
"""Molecules that the lower part is given: of a gene with a handful nothing is said."""
FEWEST = 5
"""Cells of each part."""
_TINY = 1e-12


def thresholds(rates: np.ndarray, counts: sp.csr_matrix, size: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Rate of each gene below which a cell counts as one that does not express it, ``(k,)`` float32; 0 where that cannot be said.

    The log rates of a gene are parted in two (see :func:`parted`). Any gene can be parted, also one that all cells express; so the counts
    and the rates of the two parts decide whether the lower is without it.

    Parameters
    ----------
    rates
        Predicted rates of the cells, ``(n, k)``.
    counts, size
        Counts of all genes, ``(n, g)``, and library sizes, ``(n,)``.
    genes
        Places of the k genes among the g.
    """
    out = np.zeros(len(genes), dtype=np.float32)
    by_gene = columns(counts, genes).tocsc()
    step = max(1, CACHED // len(size))
    for start in range(0, len(genes), step):
        part = slice(start, start + step)
        logs = np.log(np.maximum(rates[:, part], _TINY))
        low, width = logs.min(0), np.ptp(logs, axis=0) / BINS
        # The highest rate is at the end of the last bin.
        place = np.minimum((logs - low) / np.where(width > 0, width, 1), BINS - 1).astype(np.int64)
        cut = parted(place)
        below = place <= cut
        found = by_gene[:, part].tocoo()
        hits = np.bincount(found.col, found.data, minlength=len(cut))
        lower = np.bincount(found.col, found.data * below[found.row, found.col], minlength=len(cut))
        depth = size @ below
        absent = (hits - lower) * depth > FOLD * (lower + PSEUDO) * (size.sum() - depth)
        number, predicted = below.sum(0), rates[:, part].sum(0, dtype=np.float64, where=below)
        upper = rates[:, part].sum(0, dtype=np.float64) - predicted
        absent &= upper * number > PREDICTED * predicted * (len(size) - number)
        out[part] = np.where(absent & (width > 0), np.exp(low + (cut + 1) * width), 0)
    return out


def parted(place: np.ndarray) -> np.ndarray:
    """Last bin of the lower part of each column, ``(k,)``, for values in bins 0 to BINS - 1, ``(n, k)``.

    The lower of two cuts: where the variance between the parts is largest (Otsu 1979), which is too high where the upper part is the
    wider one; and where two normals, each with its share, mean and variance, fit the values best (Kittler and Illingworth 1986,
    equation 15), which is anywhere where there is one part only.
    """
    n, k = place.shape
    # In float64: squares of sums over 10,000 cells are beyond whole numbers of 64 bits.
    number = np.bincount((place + BINS * np.arange(k)).ravel(), minlength=BINS * k).reshape(k, BINS).astype(np.float64)
    powers = np.stack([number * np.arange(BINS) ** power for power in range(3)])
    lower = powers.cumsum(2)[:, :, :-1]
    error, means = np.zeros((k, BINS - 1)), []
    for cells, total, squares in (lower, powers.sum(2, keepdims=True) - lower):
        some = np.maximum(cells, 1)
        means.append(total / some)
        # A bin has a width.
        variance = squares / some - np.square(means[-1]) + 1 / 12
        error += some / n * (np.log(variance) - 2 * np.log(some / n))
    smaller = np.minimum(lower[0], n - lower[0])
    error[smaller < FEWEST] = np.inf
    between = lower[0] * (n - lower[0]) * np.square(means[1] - means[0])
    return np.minimum(_least(-between), _least(error))


def _least(values: np.ndarray) -> np.ndarray:
    """Place of the least value of each row; of several, as in an empty stretch of bins, their middle."""
    first, last = values.argmin(1), values.shape[1] - 1 - values[:, ::-1].argmin(1)
    return (first + last) // 2
