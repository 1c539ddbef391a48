"""From the rates over repeats to the values a user asked for and their standard deviations."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from ._counts import CACHED, TARGET, chunks, expected_log1p
from ._counts import columns as columns_of
from ._rates import Rates
from .models import posterior as posterior_of


def finish(
    result: Rates,
    counts: sp.csr_matrix,
    size: np.ndarray,
    columns: np.ndarray,
    repeats: int,
    *,
    posterior: bool,
    output: str,
    fill: str,
    expressed_above: np.ndarray | None = None,
    entrywise: bool = False,
) -> None:
    """Turn mean and spread of the rates, in place and in row chunks, into the values and their standard deviations.

    ``expressed_above``: the rate below which a cell without a molecule of the gene is given none, ``(k,)``.
    ``entrywise``: they are of entries that are not zero, and not of molecules.
    """
    for rows in chunks(len(size), len(columns), CACHED):
        depth = torch.from_numpy(size[rows].astype(np.float32))[:, None]
        x = torch.from_numpy(columns_of(counts[rows], columns).toarray())
        mu = torch.from_numpy(result.rates.mean[rows]) * depth
        variance = result.rates.variance(rows, repeats) * depth.square()
        if not posterior:
            mean, variance = mu, result.prior.variance(mu) + variance
        elif result.own is None:
            mean, variance = posterior_of.mean_and_variance(x, mu, result.prior, variance)
        else:
            # The own count says how the cell differs from its own batch's prediction; that factor is carried over.
            own = torch.from_numpy(result.own.mean[rows]) * depth
            mean, own_variance = posterior_of.mean_and_variance(x, own, result.prior, torch.zeros(()))
            factor = mu / own.clamp(min=1e-12)
            variance = own_variance * factor.square() + variance * (mean / own.clamp(min=1e-12)).square()
            mean = mean * factor
        sd = variance.sqrt()
        # Of a gene without a molecule nothing can be said.
        mean[:, ~result.seen] = 0
        sd[:, ~result.seen] = 0
        if fill == "zeros":
            mean = torch.where(x > 0, x, mean)
        if output == "rate":
            mean, sd = mean / depth.clamp(min=1), sd / depth.clamp(min=1)
        elif output == "log1p":
            scale = TARGET / depth.clamp(min=1)
            # Where zeros are missing, no zero is among the counts that are expected.
            logged = (mean * scale).log1p() if entrywise else torch.from_numpy(expected_log1p(mean.numpy(), scale[:, 0].numpy()))
            sd = sd * scale / (1 + scale * mean)
            mean = torch.where(x > 0, (x * scale).log1p(), logged) if fill == "zeros" else logged
        if expressed_above is not None:
            # The standard deviation stays that of the expected value.
            mean[torch.from_numpy(result.rates.mean[rows] < expressed_above) & (x == 0)] = 0
        result.rates.mean[rows] = mean.numpy()
        assert result.rates.squares is not None
        result.rates.squares[rows] = sd.numpy()
