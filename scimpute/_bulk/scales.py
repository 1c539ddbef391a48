"""A check for `tl.apply`: the values of the query must be on the scale of the training."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from .table import Standardiser

_MAX_RATIO = 1.25
"""Values of two cohorts whose ratio is larger are on different scales. For natural logs and log2 the ratio is 1.44."""
_QUANTILE, _ENOUGH_GENES = 0.99, 200
"""The quantile of the values for the comparison, and the number of genes for which this comparison is enough."""
_MAX_SHIFT = 3.0
"""Half of the genes cannot be this many standard deviations from their mean by chance."""
_MIN_VALUES = 50
"""Fewer observed values cannot show that the scale differs."""
_LOG_BASES = {"natural logs": 1.0, "log2": float(np.log(2)), "log10": float(np.log(10))}
"""Divisor that turns natural logs into these logs."""
_TOLERANCE = 0.1
"""Largest deviation of the log ratio at which the message names two logs as the reason."""


def other_scale(values: np.ndarray, training: Standardiser) -> str | None:
    """A message if the values of a query, ``(n, g)``, seem to be on another scale than the training values. Otherwise None."""
    lowest = float(np.fmin.reduce(values, axis=None))
    if lowest < 0 <= training.lowest[0]:
        return f"there are negative values here (min {lowest:g}) and were none in the training: these values look scaled or centred"
    if np.isfinite(values).sum() < _MIN_VALUES:
        return None
    observed = ~np.isnan(values).all(axis=0)
    mean, expected, sd = np.nanmean(values[:, observed], axis=0, dtype=np.float64), training.mean[observed], training.sd[observed]
    if np.sqrt(np.square(expected).mean()) < sd.mean():
        # If means are near 0, as for centred genes, their ratio says nothing. Their shift does.
        shift = float(np.median(np.abs(mean - expected) / sd))
        if shift > _MAX_SHIFT:
            return f"half of the genes are more than {shift:.0f} standard deviations of the training from their mean there"
        return None
    # The highest values are similar even in cohorts of different tissues; the means of genes are not. With few genes both must agree.
    simulated = expected[:, None] + sd[:, None] * norm.ppf((np.arange(50) + 0.5) / 50)
    ratio = float(np.nanquantile(values[:, observed], _QUANTILE) / np.quantile(simulated, _QUANTILE))
    of_means = float(mean @ expected / (expected @ expected)) if len(expected) < _ENOUGH_GENES else ratio
    if min(ratio, of_means) < _MAX_RATIO and max(ratio, of_means) > 1 / _MAX_RATIO:
        return None
    pairs = [(query_log, training_log) for query_log in _LOG_BASES for training_log in _LOG_BASES]
    logs = [(a, b) for a, b in pairs if abs(np.log(ratio * _LOG_BASES[a] / _LOG_BASES[b])) < _TOLERANCE]
    guess = f", as with {logs[0][0]} here and {logs[0][1]} in the training" if logs else ""
    return f"the highest values are {ratio:.3g} times those of the same genes in the training{guess}"
