"""Centred ranks, for Spearman's correlation."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each column minus their mean, ``(n, genes)``; 0 in a constant column. Equal values share a rank."""
    ranks = rankdata(values, axis=0)
    return ranks - ranks.mean(axis=0)
