"""From the rates over repeats to the values a user asked for and their standard deviations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from scipy.stats import poisson

from .. import _check, _device
from .._sparse import CACHED, TARGET, chunks
from .._sparse import columns as columns_of
from ..models import posterior as posterior_of
from .rates import Rates


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

    Without a spread there are no standard deviations; the values are the same.
    ``expressed_above``: the rate below which a cell without a molecule of the gene is given none, ``(k,)``.
    ``entrywise``: they are of entries that are not zero, and not of molecules.
    """

    def chunk(rows: slice, alive: Callable[[], None]) -> None:
        depth = torch.from_numpy(size[rows].astype(np.float32))[:, None]
        x = torch.from_numpy(columns_of(counts[rows], columns).toarray())
        mu = torch.from_numpy(result.rates.mean[rows]) * depth
        kept = result.rates.squares is not None
        variance = result.rates.variance(rows, repeats) * depth.square() if kept else torch.zeros(())
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
        if result.rates.squares is not None:
            result.rates.squares[rows] = sd.numpy()

    _device.side_by_side(chunk, chunks(len(size), len(columns), CACHED), torch.device("cpu"))


HALF = float(np.finfo(np.float16).max)
"""The largest number of float16: 65504."""


def check_dtype(dtype: str, output: str, counts: sp.csr_matrix, columns: np.ndarray, names: Sequence[str]) -> None:
    """Refuse before the training values that float16 cannot hold; ``names`` are those of the genes in ``columns``."""
    _check.option("dtype", dtype, ("float32", "float16"))
    if dtype == "float32":
        return
    if output == "rate":
        raise ValueError(
            "dtype='float16' cannot hold output='rate': below 6e-8 everything is 0 in it, and most shares of a library are of that size; "
            "pass output='counts', output='log1p' or dtype='float32'"
        )
    if output == "counts":
        highest = columns_of(counts, columns).max(axis=0).toarray().ravel()
        gene = int(np.argmax(highest))
        if highest[gene] > HALF:
            raise ValueError(
                f"dtype='float16' holds nothing above {HALF:g}, and gene {names[gene]!r} has a count of {highest[gene]:g}; "
                "pass output='log1p', dtype='float32', or leave this gene out"
            )


def narrow(result: Rates, dtype: str, names: Sequence[str]) -> str:
    """Bring values and standard deviations to the type they are to be stored in, one after the other; which that is.

    Where they turn out to be beyond float16 they stay float32, with a warning: a training is not thrown away for it.
    """
    rates = result.rates
    if dtype == "float32":
        return dtype
    for what, whole in (("value", rates.mean), ("standard deviation", rates.squares)):
        highest = np.zeros(1) if whole is None else whole.max(axis=0)
        if highest.max() > HALF:
            _check.tell(
                f"dtype='float16' holds nothing above {HALF:g}, and gene {names[int(highest.argmax())]!r} has a {what} of "
                f"{highest.max():g}: the result is written as float32"
            )
            return "float32"
    rates.mean = rates.mean.astype(np.float16)
    if rates.squares is not None:
        rates.squares = rates.squares.astype(np.float16)
    return dtype


def expected_log1p(mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``E[log1p(scale_i * N)]`` for ``N ~ Poisson(mean_ij)``.

    ``log1p`` of the mean would be too high (Jensen); this is the value that ``sc.pp.normalize_total`` and
    ``sc.pp.log1p`` give on average. Each row has its own scale, so each gets a table over a grid that is even in the square
    root of the mean (the scale on which the function is smooth), read by interpolation that is linear in the mean, as the
    function is near 0, where most entries lie; beyond the grid the second-order expansion is exact to 1e-4.

    Parameters
    ----------
    mean
        Expected counts, shape ``(n, g)``.
    scale
        Factor that takes a count of the row to the target depth, shape ``(n,)``.
    """
    top = 64.0
    roots = np.linspace(0.0, np.sqrt(top), 321)
    support = np.arange(int(top + 10 * np.sqrt(top)) + 1)
    with np.errstate(under="ignore"):  # far from the mean the chance is 0
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
