"""The expected value of normalised and logged counts."""

from __future__ import annotations

import numpy as np
from scipy.stats import poisson


def expected_log1p(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``E[log1p(scale_i * N)]`` for ``N ~ Poisson(mean_ij)``.

    This is the mean of what ``sc.pp.normalize_total`` and ``sc.pp.log1p`` give. ``log1p`` of the mean would be too high (Jensen). Each row
    has its own scale, so each row gets its own table. The grid is even in the square root of the mean, where the function is smooth. The
    interpolation is linear in the mean, as the function is near 0, where most entries lie. Beyond the grid the second-order expansion is
    exact to 1e-4.

    Parameters
    ----------
    mean
        Expected counts, shape ``(n, g)``.
    scale
        Factor from a count of the row to the target depth, shape ``(n,)``.
    """
    top = 64.0
    roots = np.linspace(0.0, np.sqrt(top), 321)
    support = np.arange(int(top + 10 * np.sqrt(top)) + 1)
    with np.errstate(under="ignore"):  # far from the mean the probability is 0
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
