"""Whether the values of a query are on the scale of the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from .linear import Scale

if TYPE_CHECKING:
    pass


_TIMES = 1.25
"""Factor between the values of two cohorts from which they are on other scales: that of natural logs and log2 is 1.44."""
_HIGHEST, _MANY = 0.99, 200
"""Quantile of the values that is compared, and genes from which it can be trusted alone."""
_FAR = 3.0
"""Standard deviations from the mean at which half of the genes of a cohort are not by chance."""
_TELLS = 50
"""Observed values by which another scale is told from chance, at least."""
_LOGS = {"natural logs": 1.0, "log2": float(np.log(2)), "log10": float(np.log(10))}
"""What a natural log is divided by."""
_CLOSE = 0.1


def other_scale(values: np.ndarray, scale: Scale) -> str | None:
    """What seems wrong where the values of a query are on another scale than those of the training."""
    lowest = float(np.fmin.reduce(values, axis=None))
    if lowest < 0 <= scale.lowest[0]:
        return f"there are negative values here (min {lowest:g}) and were none in the training: these values look scaled or centred"
    if np.isfinite(values).sum() < _TELLS:
        return None
    some = ~np.isnan(values).all(axis=0)
    mean, known, spread = np.nanmean(values[:, some], axis=0, dtype=np.float64), scale.mean[some], scale.sd[some]
    if np.sqrt(np.square(known).mean()) < spread.mean():
        # Centred genes: a factor could not be told from chance.
        away = float(np.median(np.abs(mean - known) / spread))
        if away > _FAR:
            return f"half of the genes are more than {away:.0f} standard deviations of the training from their mean there"
        return None
    # The highest values are alike in cohorts of other tissues, whose genes are not, however they were chosen. Of few genes both must agree.
    drawn = known[:, None] + spread[:, None] * norm.ppf((np.arange(50) + 0.5) / 50)
    times = float(np.nanquantile(values[:, some], _HIGHEST) / np.quantile(drawn, _HIGHEST))
    means = float(mean @ known / (known @ known)) if len(known) < _MANY else times
    if min(times, means) < _TIMES and max(times, means) > 1 / _TIMES:
        return None
    logs = [(here, there) for here in _LOGS for there in _LOGS if abs(np.log(times * _LOGS[here] / _LOGS[there])) < _CLOSE]
    guess = f", as with {logs[0][0]} here and {logs[0][1]} in the training" if logs else ""
    return f"the highest values are {times:.3g} times those of the same genes in the training{guess}"
