"""The posterior step (empirical Bayes): it combines the prediction of the network with the cell's own count.

The rate of an entry is Gamma distributed around the network's prediction ``mu`` with an inverse dispersion ``theta``, and the count is
Poisson around the rate. For a known theta the posterior of the rate is Gamma again, with

    mean = (x + theta) / (1 + theta / mu),      variance = mean / (1 + theta / mu).

Theta is not known. Its logarithm is normal over the entries of a gene, and its centre follows the prediction:

    log theta_ij = log theta_j + slope * log(mu_ij / reference_j) + spread * z,      z ~ N(0, 1).

One theta for each gene (slope and spread 0) would give a single stray molecule too much weight. Real counts have more entries far from
their prediction than a Gamma has. And low predictions are relatively less certain. The nodes of a Gauss-Hermite quadrature replace the
normal, so the posterior is a mixture of Gammas. :mod:`.dispersion` fits the prior, and :mod:`.quadrature` computes the mixture.

Most entries are zeros. For a zero, mean and standard deviation are functions of the gene and the prediction alone. So with many cells they
are read from a table of each gene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .quadrature import LOG_SINGLE, LOG_THETA, NODES, SMALL_COUNT, WEIGHTS, mixture

MAX_LOG_RATIO = 7.0
"""Theta follows the log ratio of prediction and reference up to here."""
LEAST = 1e-12
"""Smallest prediction."""
STEP, KNOTS = 1 / 16, (-MAX_LOG_RATIO, 5.0)
"""Distance, and first and last, of the knots of a table, in log(mu / reference)."""
TOLERANCE = 1e-3
"""Largest relative error of a value from a table."""
TABLE_CELLS = 400
"""From so many cells on a table costs less than it saves."""
PIECE = 10_000
"""Entries that are evaluated together. All nodes of them fit the cache of a core."""
TABLE_PIECE = 50_000
"""Entries that are read from a table together. With their part of the table they fit the cache of a core."""


class NonZero(NamedTuple):
    """The non-zero entries of a matrix ``(b, g)``, one row after the other.

    Attributes
    ----------
    place
        ``row * g + column`` of each.
    column, values
        Their columns and values.
    """

    place: Tensor
    column: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> NonZero:
        first = np.arange(matrix.shape[0], dtype=np.int64) * matrix.shape[1]
        place = np.repeat(first, np.diff(matrix.indptr)) + matrix.indices
        return cls(*map(torch.from_numpy, (place, matrix.indices, matrix.data.astype(np.float32, copy=False))))

    def to(self, device: torch.device | str) -> NonZero:
        return NonZero(*(part.to(device) for part in self))


@dataclass(frozen=True)
class Prior:
    """How the rates of g genes vary around their prediction.

    Attributes
    ----------
    theta, reference
        Inverse dispersion of each gene at its reference, and the reference: a prediction in expected molecules. Both ``(g,)``.
    slope, spread
        Slope of log theta in the log of the prediction, and standard deviation of log theta among entries.
    """

    theta: Tensor
    reference: Tensor
    slope: float = 0.0
    spread: float = 0.0

    def __getitem__(self, genes: Tensor) -> Prior:
        return Prior(self.theta[genes], self.reference[genes], self.slope, self.spread)

    def to(self, device: torch.device | str) -> Prior:
        return Prior(self.theta.to(device), self.reference.to(device), self.slope, self.spread)

    def log_thetas(self, log_mu: Tensor, log_theta: Tensor, log_reference: Tensor) -> Tensor:
        """Log theta at every node of the quadrature, ``(nodes, m)``, of entries ``(m,)`` and the logs of their genes."""
        centre = centre_of(log_theta, log_reference, self.slope, log_mu)
        nodes = log_mu.new_tensor(NODES if self.spread else [0.0])
        return (centre + self.spread * nodes.view(-1, *[1] * log_mu.ndim)).clamp_(*LOG_THETA)

    def relative_sd(self, log_mu: Tensor) -> Tensor:
        """Standard deviation of the rates before their counts are seen, over the prediction, ``(b, g)``."""
        dispersion = self.log_thetas(log_mu, self.theta.log(), self.reference.log()).neg_().exp_()
        weights = log_mu.new_tensor(WEIGHTS if self.spread else [1.0])
        return torch.tensordot(weights, dispersion, dims=1).sqrt_()


def centre_of(log_theta: Tensor, log_reference: Tensor, slope: float | Tensor, log_mu: Tensor) -> Tensor:
    """Centre of log theta of entries with a prediction."""
    return log_theta + slope * (log_mu - log_reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


class Posterior:
    """Posterior mean and standard deviation of the rates of g genes, as multiples of the prediction.

    Multiples stay finite where the square of a count or of a prediction is beyond float32.

    Parameters
    ----------
    prior
        Prior of the genes.
    n_cells
        About how many cells follow. It decides whether to make a table.
    sd
        Whether to compute standard deviations.
    repeats
        Whether predictions come with a spread over repeats.
    """

    def __init__(self, prior: Prior, n_cells: int = 0, *, sd: bool = True, repeats: bool = True) -> None:
        self.prior, self.sd = prior, sd
        self.log_theta, self.log_reference = prior.theta.log(), prior.reference.log()
        self.n_moments = 1 + sd + (sd and repeats)
        # With one node a zero costs no more than a look at a table.
        self.table = self._tabulated() if prior.spread and n_cells >= TABLE_CELLS else None

    def __call__(self, log_mu: Tensor, counts: NonZero, relative_sd: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of every entry over its prediction, ``(b, g)`` each.

        Parameters
        ----------
        log_mu
            Logs of the predictions, ``(b, g)``.
        counts
            The cells' own counts.
        relative_sd
            Standard deviation of the predictions over repeats, over their mean, ``(b, g)``. It enters by the delta method.
        """
        log_mu = log_mu.contiguous()
        if self.table is None:
            mean = torch.full_like(log_mu, math.nan)
            sd = torch.empty_like(mean) if self.sd else None
        else:
            mean, *squares = self.table.read(log_mu)
            sd = _sd(squares, relative_sd) if self.sd else None
        flat = mean.view(-1)
        flat[counts.place] = 0
        # A sum is NaN if one of its terms is, and a sum costs nothing.
        missing = flat.isnan().nonzero()[:, 0] if math.isnan(float(flat.sum())) else counts.place[:0]
        x, order = counts.values.sort(descending=True)
        place, gene = (of.index_select(0, order) for of in (counts.place, counts.column))
        if len(missing):
            place, x = torch.cat([place, missing]), torch.cat([x, x.new_zeros(len(missing))])
            gene = torch.cat([gene, (missing % log_mu.shape[1]).to(gene)])
        logs = log_mu.view(-1).index_select(0, place)
        spread = None if relative_sd is None else relative_sd.view(-1).index_select(0, place)
        single = (x <= SMALL_COUNT) & (logs <= LOG_SINGLE)
        for chosen, dtype in ((single, torch.float32), (~single, torch.float64)):
            for part in chosen.nonzero()[:, 0].split(PIECE):
                at, *given = (of.index_select(0, part) for of in (place, logs, gene, x))
                found, *squares = self._exact(*given, dtype=dtype)
                flat.index_copy_(0, at, found.to(flat.dtype))
                if sd is not None:
                    relative = None if spread is None else spread.index_select(0, part).to(dtype)
                    sd.view(-1).index_copy_(0, at, _sd(squares, relative).to(sd.dtype))
        return mean, sd

    def _exact(self, log_mu: Tensor, gene: Tensor, x: Tensor, *, dtype: torch.dtype) -> list[Tensor]:
        """Mean, variance and slope by the quadrature, ``(m,)`` each. Counts fall."""
        log_theta, log_reference = (of.index_select(0, gene).to(dtype) for of in (self.log_theta, self.log_reference))
        log_mu = log_mu.to(dtype)
        return self._mixture(x.to(dtype), log_mu, self.prior.log_thetas(log_mu, log_theta, log_reference))

    def _mixture(self, x: Tensor, log_mu: Tensor, log_theta: Tensor) -> list[Tensor]:
        return mixture(x, log_mu.exp(), log_theta, WEIGHTS if self.prior.spread else [1.0], self.n_moments)

    def _tabulated(self) -> _Table:
        # One knot more on each side stands for all predictions beyond.
        low, high = KNOTS[0] - STEP, KNOTS[1] + STEP
        n_knots, n_genes = round((high - low) / STEP) + 1, len(self.log_theta)
        knots = torch.linspace(low, high, n_knots, device=self.log_theta.device)[:, None]
        values = self.log_theta.new_empty(self.n_moments, n_knots, n_genes)
        step = max(1, PIECE // n_genes)
        for start in range(0, n_knots, step):
            log_mu = knots[start : start + step] + self.log_reference
            log_thetas = self.prior.log_thetas(log_mu, self.log_theta, self.log_reference).flatten(1)
            found = self._mixture(log_mu.new_zeros(log_mu.numel()), log_mu.flatten(), log_thetas)
            for moment, value in zip(values, found, strict=True):
                moment[start : start + step] = value.view_as(log_mu)
        step = max(1, TABLE_PIECE // n_knots)
        for start in range(0, n_genes, step):
            part, log_reference = (of[..., start : start + step] for of in (values, self.log_reference))
            part.masked_fill_(_inexact(part) | (knots + log_reference > LOG_SINGLE), math.nan)
        return _Table(values, (-low - self.log_reference) / STEP)


class _Table:
    """Moments of zeros at knots of log(mu / reference), with a line between two knots.

    It holds NaN where a line is not precise, where float32 is not, and beyond the knots.

    Parameters
    ----------
    values
        The moments of the knots, ``(moments, K, g)``.
    offset
        Place of a prediction of 1 among the knots of each gene, ``(g,)``.
    """

    def __init__(self, values: Tensor, offset: Tensor) -> None:
        self.values, self.offset = values.flatten(1), offset
        self.last = values.shape[1] - 1
        self.columns = torch.arange(len(offset), dtype=torch.int32, device=offset.device)

    def read(self, log_mu: Tensor) -> list[Tensor]:
        """Every moment of entries ``(b, g)``."""
        result = [torch.empty_like(log_mu) for _ in self.values]
        # One block of genes after the other, because the whole table is larger than the cache.
        step = max(1, TABLE_PIECE // len(log_mu))
        for start in range(0, log_mu.shape[1], step):
            genes = slice(start, start + step)
            logs = log_mu[:, genes]
            place = torch.add(self.offset[genes], logs, alpha=1 / STEP).nan_to_num_().clamp_(0, self.last - 1e-3)
            low = place.int()
            fraction = place.frac_()
            low = low.mul_(len(self.offset)).add_(self.columns[genes]).view(-1)
            for moment, out in zip(self.values, result, strict=True):
                below, above = moment.index_select(0, low), moment[len(self.offset) :].index_select(0, low)
                torch.lerp(below.view_as(logs), above.view_as(logs), fraction, out=out[:, genes])
        return result


def _inexact(moments: Tensor) -> Tensor:
    """Knots at which no line must end, ``(K, g)``, by the moments at the knots, ``(moments, K, g)``.

    If the slope jumps between two knots, the second differences at both add up to the jump. Half the larger one is then the largest error.
    Where the function is smooth, an eighth of it is.
    """
    bad = torch.zeros(moments.shape[1:], dtype=torch.bool, device=moments.device)
    bad[[0, -1]] = True
    # A variance may be twice as wrong as its root.
    for moment, error in zip(moments, (TOLERANCE, 2 * TOLERANCE, TOLERANCE), strict=False):
        inner = moment[1:-1]
        bend = (moment[2:] + moment[:-2]).sub_(inner, alpha=2).abs_()
        # The second difference at an end reaches beyond it, and theta does not follow the prediction there.
        bend[0], bend[-1] = bend[1], bend[-2]
        bad[1:-1] |= bend.sub_(inner, alpha=2 * error) > 0
    return bad


def _sd(squares: list[Tensor], relative_sd: Tensor | None) -> Tensor:
    """Standard deviation from the variance, and with a spread of the predictions also from the slope. ``squares`` is overwritten."""
    variance, *slope = squares
    if relative_sd is not None:
        step = slope[0].mul_(relative_sd)
        variance.addcmul_(step, step)
    return variance.sqrt_()
