"""Whether a layer that is to hold expected counts is on their scale."""

from __future__ import annotations

import numpy as np

from .. import _check

# Totals of an imputation differ from the depths a little: rates of a cell need not add up to 1, averages are of other cells.
_FAR = 1.5
# Totals that differ by no more than this are the same; so are the depths of some data.
_EQUAL = 1e-3


def are_equal(totals: np.ndarray, depth: np.ndarray) -> bool:
    """Whether the totals of all cells are the same, as after a normalisation, and the depths are not."""
    some = (depth > 0) & (totals > 0)
    totals, depth = totals[some], depth[some]
    return bool(some.any() and np.ptp(totals) <= _EQUAL * totals.mean() and np.ptp(depth) > _EQUAL * depth.mean())


def warn_of_scale(
    what: str,
    totals: np.ndarray,
    depth: np.ndarray,
    where: str,
    hint: str = "",
    *,
    least: np.ndarray | None = None,
) -> None:
    """Say so where totals of cells, ``(n,)``, are not their depths, or are all the same and the depths are not.

    ``hint`` is what else can be done. Where ``least`` is given, totals from there to the depths are right.
    """
    some = (depth > 0) & (totals > 0)
    if not some.any():
        return
    totals, depth, least = totals[some], depth[some], depth[some] if least is None else least[some]
    times = totals / depth
    off = np.log(totals / np.clip(totals, least, depth))
    equal = are_equal(totals, depth)
    if not equal and np.median(np.abs(off)) <= np.log(_FAR):
        return
    if equal:
        found = f"every cell of it has the same total, {totals.mean():.6g}, as after a normalisation"
    else:
        found = f"the totals of its cells are {np.median(times):.3g} times those of {where} (median)"
    _check.warn(
        f"{what} does not look like expected counts: {found}, and its score is that of another scale. Give expected counts at the depth "
        f"of {where}{hint}"
    )
