"""Scale check: warn if a layer of expected counts looks like another scale."""

from __future__ import annotations

import numpy as np

from .. import _check

# Totals of an imputation differ a little from the depths: the rates of a cell need not add up to 1, and averages include other cells.
_FAR = 1.5
# Totals within this relative range are equal. The depths of some data are equal, too.
_EQUAL = 1e-3


def are_equal(totals: np.ndarray, depth: np.ndarray) -> bool:
    """Whether all cells have the same total, as after a normalisation, but not the same depth."""
    nonempty = (depth > 0) & (totals > 0)
    totals, depth = totals[nonempty], depth[nonempty]
    return bool(nonempty.any() and np.ptp(totals) <= _EQUAL * totals.mean() and np.ptp(depth) > _EQUAL * depth.mean())


def warn_of_scale(
    what: str,
    totals: np.ndarray,
    depth: np.ndarray,
    where: str,
    hint: str = "",
    *,
    least: np.ndarray | None = None,
) -> None:
    """Warn if the totals of the cells, ``(n,)``, are far from the depths, or are all the same although the depths differ.

    Parameters
    ----------
    what, where
        Names of the layer and of the matrix with the depths.
    hint
        Another remedy, appended to the warning.
    least
        Lowest right total of each cell, ``(n,)``; None for the depth.
    """
    nonempty = (depth > 0) & (totals > 0)
    if not nonempty.any():
        return
    totals, depth, least = totals[nonempty], depth[nonempty], depth[nonempty] if least is None else least[nonempty]
    times = totals / depth
    off = np.log(totals / np.clip(totals, least, depth))
    equal = are_equal(totals, depth)
    if not equal and np.median(np.abs(off)) <= np.log(_FAR):
        return
    if equal:
        reason = f"every cell of it has the same total, {totals.mean():.6g}, as after a normalisation"
    else:
        reason = f"the totals of its cells are {np.median(times):.3g} times those of {where} (median)"
    _check.warn(
        f"{what} does not look like expected counts: {reason}. Its score is the score of another scale. Pass expected counts at the "
        f"depth of {where}{hint}"
    )
