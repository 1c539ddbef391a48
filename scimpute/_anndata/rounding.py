"""Handles values that are not whole: counts with rounding errors or decimals, and normalised values (numpy and scipy only)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

ROUNDINGS = ("nearest", "random")
"""Ways to round decimals to whole numbers."""
MAX_COUNT = 2.0**53
"""Largest count: above it float64 does not hold every whole number."""
_RELATIVE_ERROR, _MIN_ERROR, _MAX_ERROR = 2e-6, 1e-2, 0.5
"""Rounding error of a computed count: relative to the count, and its limits. Division, log and exp lose about 1e-6 in float32."""
_ROWS_CHECKED, _MIN_ENTRIES = 200, 5
"""Number of first rows that are checked for normalisation, and the fewest non-zero entries of a checked row."""


def tolerance(values: np.ndarray) -> np.ndarray:
    """How far a computed count may be from a whole number."""
    return np.clip(_RELATIVE_ERROR * np.abs(values), _MIN_ERROR, _MAX_ERROR)


def nearest_counts(values: np.ndarray) -> np.ndarray | None:
    """The counts within rounding errors of ``values``. The same array if all values are whole; None if some values are no counts."""
    whole = np.rint(values)
    if np.array_equal(whole, values):
        return values
    if (np.abs(values - whole) > tolerance(values)).any():
        return None
    # Small rates are also near 0, but they are no counts. Rounding errors of zeros have a negligible sum.
    removed = np.abs(values[whole == 0]).sum(dtype=np.float64)
    return whole + np.float32(0) if removed <= 1e-3 * whole.sum(dtype=np.float64) else None


def find_decimals(values: np.ndarray) -> np.ndarray:
    """Indices of the values that are no counts. The value farthest from a whole number is first."""
    distance = np.abs(values - np.rint(values))
    decimals = np.flatnonzero((distance > tolerance(values)) | ((np.rint(values) == 0) & (values != 0)))
    return decimals[np.argsort(-distance[decimals], kind="stable")]


def round_counts(values: np.ndarray, rounding: str, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers: the nearest, or randomly the one below or above, with the value as the mean."""
    if rounding == "nearest":
        return np.rint(values)
    low = np.floor(np.maximum(values, 0))  # rounding errors may be below 0
    return low + (rng.random(values.shape, dtype=np.float32) < values - low)


def sign_of_normalisation(matrix: sp.csr_matrix) -> str | None:
    """Why the values look normalised or logged, by the first rows; None if there is no sign of it."""
    rows = [
        matrix.data[start:stop] for start, stop in zip(matrix.indptr[:_ROWS_CHECKED], matrix.indptr[1 : _ROWS_CHECKED + 1], strict=False)
    ]
    rows = [row.astype(np.float64) for row in rows if len(row) >= _MIN_ENTRIES]
    if not rows or min(row.min() for row in rows) < 0:
        return None
    if max(row.max() for row in rows) < 50:
        exponentials = [np.expm1(row) for row in rows]
        if all((np.abs(row - np.rint(row)) < 1e-4 * (1 + row)).all() for row in exponentials):
            return "expm1 of them are whole numbers: log1p of counts; take them back with np.expm1"
        sign = _sign_of_scaling(exponentials)
        if sign:
            return f"expm1 of them: {sign}: log1p of normalised counts"
    return _sign_of_scaling(rows)


def _sign_of_scaling(rows: list[np.ndarray]) -> str | None:
    sums = np.array([row.sum() for row in rows])
    if len(rows) >= 10 and np.isfinite(sums).all() and np.ptp(sums) < 1e-4 * sums.max():
        return f"every cell adds up to {sums.mean():,.6g}"
    lowest = np.array([row.min() for row in rows])
    multiples = [np.abs(row / low - np.rint(row / low)) < 1e-4 * row / low for row, low in zip(rows, lowest, strict=True)]
    # Molecules shared among genes (0.5 or 0.33 each) are multiples as well, but then all cells have the same few lowest values.
    differ = len(np.unique(np.round(lowest, 5))) > max(4, min(12, len(rows) / 4)) and np.mean(np.abs(lowest - np.rint(lowest)) > 1e-3) > 0.5
    if len(rows) >= 5 and differ and np.mean([row.all() for row in multiples]) > 0.8:
        return "the values of a cell are multiples of its lowest"
    return None
