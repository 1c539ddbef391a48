"""Values that are not whole numbers: counts with rounding errors, counts with decimals, or no counts (numpy and scipy only)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

ROUNDINGS = ("nearest", "random")
"""Ways to make whole numbers of decimals."""
HIGHEST = 2.0**53
"""Above it not even float64 holds every whole number."""
# What float32 loses where counts are divided, logged and brought back: about 1e-6 of the value. Where that is half, nothing can be said.
_SHARE, _SLACK, _MOST = 2e-6, 1e-2, 0.5
_ROWS, _ENTRIES = 200, 5


def slack(values: np.ndarray) -> np.ndarray:
    """By how much a count may be off where it was computed and not read."""
    return np.clip(_SHARE * np.abs(values), _SLACK, _MOST)


def nearest_counts(values: np.ndarray) -> np.ndarray | None:
    """The counts that values are but for rounding errors; the values themselves where all are whole; None where they are neither."""
    whole = np.rint(values)
    if np.array_equal(whole, values):
        return values
    if (np.abs(values - whole) > slack(values)).any():
        return None
    # Small rates are near 0, too, and are no counts. What is left of a zero is next to nothing.
    lost = np.abs(values[whole == 0]).sum(dtype=np.float64)
    return whole + np.float32(0) if lost <= 1e-3 * whole.sum(dtype=np.float64) else None


def find_decimals(values: np.ndarray) -> np.ndarray:
    """Places of the values that are no counts, the farthest first."""
    off = np.abs(values - np.rint(values))
    places = np.flatnonzero((off > slack(values)) | ((np.rint(values) == 0) & (values != 0)))
    return places[np.argsort(-off[places], kind="stable")]


def rounded(values: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers: the nearest, or at random one of the two around a value, so that the mean is the value."""
    if how == "nearest":
        return np.rint(values)
    low = np.floor(np.maximum(values, 0))  # rounding errors may be below 0
    return low + (rng.random(values.shape, dtype=np.float32) < values - low)


def normalised(matrix: sp.csr_matrix) -> str | None:
    """What shows that values are normalised or logged and not counts, if something does; the first rows are looked at."""
    rows = [matrix.data[start:stop] for start, stop in zip(matrix.indptr[:_ROWS], matrix.indptr[1 : _ROWS + 1], strict=False)]
    rows = [row.astype(np.float64) for row in rows if len(row) >= _ENTRIES]
    if not rows or min(row.min() for row in rows) < 0:
        return None
    if max(row.max() for row in rows) < 50:
        back = [np.expm1(row) for row in rows]
        if all((np.abs(row - np.rint(row)) < 1e-4 * (1 + row)).all() for row in back):
            return "expm1 of them are whole numbers: log1p of counts; take them back with np.expm1"
        found = _scaled(back)
        if found:
            return f"expm1 of them: {found}: log1p of normalised counts"
    return _scaled(rows)


def _scaled(rows: list[np.ndarray]) -> str | None:
    sums = np.array([row.sum() for row in rows])
    if len(rows) >= 10 and np.isfinite(sums).all() and np.ptp(sums) < 1e-4 * sums.max():
        return f"every cell adds up to {sums.mean():,.6g}"
    least = np.array([row.min() for row in rows])
    multiples = [np.abs(row / low - np.rint(row / low)) < 1e-4 * row / low for row, low in zip(rows, least, strict=True)]
    # Molecules that were shared out, .5 and .33 of them, are multiples as well, but of the same few numbers.
    own = len(np.unique(np.round(least, 5))) > max(4, min(12, len(rows) / 4)) and np.mean(np.abs(least - np.rint(least)) > 1e-3) > 0.5
    if len(rows) >= 5 and own and np.mean([found.all() for found in multiples]) > 0.8:
        return "the values of a cell are multiples of its lowest"
    return None
