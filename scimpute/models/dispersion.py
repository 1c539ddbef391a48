"""The prior of :mod:`.posterior`: how much rates vary around their prediction. Training counts and held-out molecules decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .posterior import NonZero, Posterior, Prior, centre_of
from .quadrature import LOG_THETA, NODES, WEIGHTS

GRID = torch.logspace(-1.5, 3.0, 16, dtype=torch.float32)
STEP = 0.3 * math.log(10)
"""Candidate values of theta (inverse dispersion) of a gene, and the distance of their logs."""
QUADRATURE_STEPS, OUTER_WEIGHT = 3, 1 / 6
"""A quadrature of three grid points. The outer two are this many steps away and have this weight: a spread of 1.2."""
MARGINAL_CELLS, SAMPLED_ENTRIES = 512, 20_000
"""About this many cells give each gene its theta. About this many entries decide the rest of the prior."""
GRADIENT_TOLERANCE = 1e-4
"""The search ends at this slope of the deviance per molecule. Rounding errors of float32 hide smaller slopes."""
PRIOR_MEANS, PRIOR_SDS = (0.0, 0.0, 0.5, 0.0), (2.0, 0.5, 0.5, 1.0)
BOUNDS = ((-5.0, 5.0), (-1.0, 1.0), (-1.0, 1.5), (-3.0, 1.1))
"""Mean and standard deviation of the normal priors, and range, of log factor, tilt, slope and log spread (see :func:`estimate`)."""


def _log_likelihood(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Log-likelihood of the negative binomial, without the part that does not depend on theta."""
    return torch.lgamma(x + theta) - torch.lgamma(theta) + x * (mu / (mu + theta)).log() - theta * (mu / theta).log1p()


def _mixture_mean(x: Tensor, mu: Tensor, thetas: Sequence[Tensor] | Sequence[float], fits: Sequence[Tensor]) -> Tensor:
    """Posterior mean, from the log-likelihoods of the counts under the theta of each node."""
    logs = torch.stack([fit + math.log(weight) for fit, weight in zip(fits, WEIGHTS, strict=True)])
    means = torch.stack([(x + theta) / (1 + theta / mu) for theta in thetas])
    return (logs.softmax(0) * means).sum(0)


def deviance(mean: Tensor, target: Tensor) -> Tensor:
    """Poisson deviance of each cell's held-out molecules under their expected numbers, up to a constant, ``(b,)``."""
    positive = target.nonzero(as_tuple=True)
    return mean.sum(1).index_add_(0, positive[0], target[positive] * mean[positive].clamp(min=1e-12).log(), alpha=-1)


def heldout_deviance(counts: Tensor, mu: Tensor, target: Tensor, ratio: Tensor, thetas: Tensor = GRID[::3]) -> Tensor:
    """Poisson deviance of each cell's held-out molecules under the posterior mean, ``(T, b)``, for T values of theta.

    All genes share theta. Log theta has a spread of 1.2 among entries.

    Parameters
    ----------
    counts, mu
        Counts of the training part and their prediction, ``(b, g)``.
    target
        Held-out counts of the same cells, ``(b, g)``.
    ratio
        Held-out depth of a cell over its training depth, ``(b,)``.
    """
    thetas = thetas.to(mu.device)
    prior = Prior(thetas, torch.ones_like(thetas), spread=QUADRATURE_STEPS * STEP / 3**0.5)
    # For a count of 0 the posterior mean is a function of the prediction alone, so it is interpolated between knots.
    knots = torch.linspace(-16, 12, 561, dtype=mu.dtype, device=mu.device)
    none = torch.empty(0, dtype=torch.int64, device=mu.device)
    ratios, _ = Posterior(prior, sd=False)(knots[:, None].repeat(1, len(thetas)), NonZero(none, none, mu.new_empty(0)))
    logs = mu.clamp(min=1e-12).log()
    fraction = ((logs - knots[0]) / (knots[1] - knots[0])).clamp_(0, len(knots) - 1.001)
    place = fraction.long()
    fraction -= place
    positive = counts.nonzero(as_tuple=True)
    x, mu_x = counts[positive], mu[positive].clamp(min=1e-12)
    values = _Counts.of(x)
    deviances = []
    for t, theta in enumerate(thetas.tolist()):
        mean = torch.lerp(ratios[place, t], ratios[place + 1, t], fraction).mul_(mu)
        nodes = [theta * math.exp(prior.spread * node) for node in NODES]
        fits = [values.rising(node) + x * (mu_x / (mu_x + node)).log() - node * (mu_x / node).log1p() for node in nodes]
        mean[positive] = _mixture_mean(x, mu_x, nodes, fits)
        deviances.append(deviance(mean.mul_(ratio[:, None]), target))
    return torch.stack(deviances)


def marginal_deviance(counts: Tensor, mu: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood of the training counts for each theta of the grid (with a spread of 1.2), up to a constant, ``(T, g)``.

    ``weight`` is the weight of each cell, ``(b,)``. The result is precise for every gene. But it is too optimistic, because the model was
    fitted to the same counts.
    """
    positive = counts.nonzero(as_tuple=True)
    x, mean = counts[positive], mu[positive].clamp(min=1e-12)
    values = _Counts.of(x)
    fits: list[Tensor] = []
    deviances = []
    for place in range(-QUADRATURE_STEPS, len(GRID) + QUADRATURE_STEPS):
        theta = float(GRID[0]) * math.exp(place * STEP)
        fit = (mu / theta).log1p_().mul_(-theta)
        fit[positive] += values.rising(theta) + x * (mean / (mean + theta)).log()
        fits.append(fit)
        if len(fits) > 2 * QUADRATURE_STEPS:
            low, middle, high = (fits[i] for i in (0, QUADRATURE_STEPS, 2 * QUADRATURE_STEPS))
            total = torch.logaddexp(low, high).add_(math.log(OUTER_WEIGHT))
            deviances.append(-(weight @ torch.logaddexp(total, middle + math.log(1 - 2 * OUTER_WEIGHT))))
            del fits[0]
    return torch.stack(deviances)


@dataclass(frozen=True)
class _Counts:
    """Counts by their value, so a function of the count is computed once for each value."""

    values: Tensor
    place: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Counts:
        return cls(*torch.unique(x, return_inverse=True))

    def rising(self, theta: float) -> Tensor:
        """lgamma(x + theta) - lgamma(theta).

        In float32 the difference is rounded the same way in every entry with the same count. Such errors add up over cells.
        """
        whole = self.values.double()
        return (torch.lgamma(whole + theta) - math.lgamma(theta)).to(self.values)[self.place]


def gene_thetas(marginal: Tensor, share: Tensor, *, n_bins: int = 20, spread: float = 1.0) -> Tensor:
    """Theta of every gene by the training counts, ``(g,)``.

    Log theta has a normal prior with the standard deviation ``spread``. Its mean is the best common theta of the genes of similar
    abundance, because a few dozen molecules say little about the theta of a gene.

    Parameters
    ----------
    marginal
        ``(T, g)`` of :func:`marginal_deviance`.
    share
        Share of each gene of all molecules, ``(g,)``.
    """
    log_grid = GRID.log().to(marginal.device)
    centre = torch.empty_like(share)
    for part in share.argsort().chunk(min(n_bins, len(share))):
        centre[part] = log_grid[marginal[:, part].sum(1).argmin()]
    prior = (log_grid[:, None] - centre[None, :]).square() / (2 * spread**2)
    return log_grid[(marginal + prior).argmin(0)].exp()


@dataclass(frozen=True)
class Sample:
    """A sample of entries of the held-out data. Every candidate prior is scored on it.

    Attributes
    ----------
    counts, mu, gene
        Count, prediction and gene of each entry, ``(m,)``.
    rate, hits
        Weights of the posterior mean and of its log in the deviance, ``(m,)``.
    """

    counts: Tensor
    mu: Tensor
    gene: Tensor
    rate: Tensor
    hits: Tensor

    @classmethod
    def draw(cls, counts: Tensor, mu: Tensor, target: Tensor, ratio: Tensor, weight: Tensor, number: int) -> Sample:
        """Draw ``number`` entries of each cell for the rates, and as many for the held-out molecules.

        Entries for the rates are drawn in proportion to prediction plus count. If ``number`` reaches the number of genes, all entries
        are taken, since a sample would only add noise.
        """
        if number >= mu.shape[1]:
            gene = torch.arange(mu.shape[1], device=mu.device).expand(len(mu), -1)
            rate = (weight * ratio)[:, None].expand_as(mu)
            return cls(*(part.flatten() for part in (counts, mu.clamp(min=1e-12), gene, rate, weight[:, None] * target)))
        parts = []
        for weights, for_rates in ((mu + counts, True), (target, False)):
            total = weights.double().cumsum(1)
            # At equal distances along the cumulative weights, which has less noise than independent draws.
            quantiles = (torch.arange(number, dtype=torch.float64, device=mu.device) + 0.5) / number
            gene = torch.searchsorted(total, total[:, -1:] * quantiles).clamp(max=mu.shape[1] - 1)
            each = (weight[:, None] * total[:, -1:] / number).float().expand(-1, number)
            none = torch.zeros_like(each)
            rate = each * ratio[:, None] / weights.gather(1, gene).clamp(min=1e-12) if for_rates else none
            parts.append((counts.gather(1, gene), mu.gather(1, gene).clamp(min=1e-12), gene, rate, none if for_rates else each))
        return cls(*(torch.cat(part, dim=1).flatten() for part in zip(*parts, strict=True)))


def estimate(parts: Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]], n_cells: int, share: Tensor, reference: Tensor) -> Prior:
    """Fit the prior to the training counts and the held-out molecules of some cells.

    The training counts say how the genes differ in theta. But they give too large a theta, because the network was fitted to them. The
    held-out molecules are too few for a theta of each gene. So they decide four numbers for all genes: a factor on theta, its change
    with the abundance of the gene (tilt), the slope and the spread. Each has a normal prior, which a few hundred molecules overrule.

    Parameters
    ----------
    parts
        Training counts, their prediction, held-out counts, all ``(b, g)``; held-out over training depth, and weight of each cell, ``(b,)``.
    n_cells
        Number of cells in all parts.
    share, reference
        Share of each gene of all molecules, and the prediction at which it has its theta, ``(g,)``.
    """
    stride, start, samples = math.ceil(n_cells / MARGINAL_CELLS), 0, []
    marginal = torch.zeros(len(GRID), len(share), dtype=torch.float64, device=share.device)
    # The result does not depend on the division of the cells into parts.
    for counts, mu, target, ratio, weight in parts:
        strided = slice(-start % stride, None, stride)
        marginal += marginal_deviance(counts[strided], mu[strided], weight[strided])
        samples.append(Sample.draw(counts, mu, target, ratio, weight, math.ceil(SAMPLED_ENTRIES / n_cells)))
        start += len(mu)
    sample = Sample(*(torch.cat([getattr(s, name) for s in samples]) for name in vars(samples[0])))
    log_theta = gene_thetas(marginal.float(), share).log()
    n_molecules = sample.hits.sum().clamp(min=1e-6)
    log_share = share.log()
    log_share = log_share - (log_share[sample.gene] * sample.hits).sum() / n_molecules
    theta_of, share_of, reference_of = log_theta[sample.gene], log_share[sample.gene], reference[sample.gene].log()

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        numbers = torch.tensor(values, dtype=torch.float32, device=theta_of.device, requires_grad=True)
        factor, tilt, slope, log_spread = numbers
        centre = centre_of(theta_of + factor + tilt * share_of, reference_of, slope, sample.mu.log())
        thetas = [(centre + log_spread.exp() * node).clamp(*LOG_THETA).exp() for node in NODES]
        fits = [_log_likelihood(sample.counts, sample.mu, theta) for theta in thetas]
        mean = _mixture_mean(sample.counts, sample.mu, thetas, fits).clamp(min=1e-12)
        deviance = sample.rate @ mean - sample.hits @ mean.log()
        total = deviance + ((numbers - numbers.new_tensor(PRIOR_MEANS)) / numbers.new_tensor(PRIOR_SDS)).square().sum() / 2
        total = total / n_molecules
        total.backward()
        return float(total.detach()), numbers.grad.double().cpu().numpy()  # type: ignore[union-attr]

    best = minimize(loss, PRIOR_MEANS, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": 30, "gtol": GRADIENT_TOLERANCE}).x
    factor, tilt, slope, log_spread = best.tolist()
    theta = (log_theta + factor + tilt * log_share).clamp(*LOG_THETA).exp()
    return Prior(theta, reference, slope, math.exp(log_spread))
