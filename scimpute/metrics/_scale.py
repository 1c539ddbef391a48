"""Whether a layer that is to hold expected counts is on their scale."""

from __future__ import annotations

import numpy as np

from .. import _check

# Totals of an imputation differ from the depths a little: rates of a cell need not add up to 1, averages are of other cells.
_FAR = 1.5
# Totals that differ by no more than this are the same; so are the depths of some data.
_EQUAL = 1e-3


def warn_of_scale(what: str, totals: np.ndarray, depth: np.ndarray, where: str, hint: str = "", *, lower: bool = False) -> None:
    """Say so where totals of cells, ``(n,)``, are not their depths, or are all the same and the depths are not.

    ``hint`` is what else can be done. With ``lower``, totals below the depths are right, and the same for all cells near them.
    """
    some = (depth > 0) & (totals > 0)
    if not some.any():
        return
    totals, depth = totals[some], depth[some]
    times = totals / depth
    off = np.log(np.maximum(times, 1) if lower else times)
    equal = np.ptp(totals) <= _EQUAL * totals.mean() and np.ptp(depth) > _EQUAL * depth.mean()
    far = np.median(np.abs(off)) > np.log(_FAR)
    if not far and (lower or not equal):
        return
    if equal:
        found = f"every cell of it has the same total, {totals.mean():.6g}, as after a normalisation"
    else:
        found = f"the totals of its cells are {np.median(times):.3g} times those of {where} (median)"
    _check.warn(
        f"{what} does not look like expected counts: {found}, and its score is that of another scale. Give expected counts at the depth "
        f"of {where}{hint}"
    )
