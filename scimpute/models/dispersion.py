"""How much rates vary around their prediction, found on training counts and held-out molecules: the prior of :mod:`.posterior`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .posterior import LOG_THETA, NODES, WEIGHTS, Prior, centre_of, log_likelihood, mean_and_variance, nonzero, theta_at

GRID = torch.logspace(-1.5, 3.0, 16, dtype=torch.float32)
STEP = 0.3 * math.log(10)
"""Values of theta (inverse dispersion) among which each gene's is chosen, and the distance of their logs."""
STEPS, OUTER = 3, 1 / 6
"""A quadrature of three points that are places of the grid: the outer two are so many steps away and have this weight. A spread of 1.2."""
CELLS, SAMPLED = 512, 20_000
"""Cells by which the genes are told apart, and entries by which the prior is chosen (of each cell at most as many as it has)."""
FLAT = 1e-4
"""Slope of the deviance per molecule at which the search ends; below it is the rounding of float32, in which a line search gets lost."""
CENTRES, WIDTHS = (0.0, 0.0, 0.5, 0.0), (2.0, 0.5, 0.5, 1.0)
BOUNDS = ((-5.0, 5.0), (-1.0, 1.0), (-1.0, 1.5), (-3.0, 1.1))
"""Of log factor, tilt, slope and log spread: centre and standard deviation of their priors, and the least and largest they are."""


def _mixture_mean(x: Tensor, mu: Tensor, thetas: Sequence[Tensor] | Sequence[float], fits: Sequence[Tensor]) -> Tensor:
    """Posterior mean alone, by the log-likelihoods of the counts under the theta of each node."""
    logs = torch.stack([fit + math.log(weight) for fit, weight in zip(fits, WEIGHTS, strict=True)])
    means = torch.stack([(x + theta) / (1 + theta / mu) for theta in thetas])
    return (logs.softmax(0) * means).sum(0)


def deviance(mean: Tensor, target: Tensor) -> Tensor:
    """Poisson deviance of each cell's held-out molecules under their expected numbers, up to a constant, ``(b,)``."""
    hits = nonzero(target)
    return mean.sum(1).index_add_(0, hits[0], target[hits] * mean[hits].clamp(min=1e-12).log(), alpha=-1)


def heldout_deviance(counts: Tensor, mu: Tensor, target: Tensor, ratio: Tensor, thetas: Tensor = GRID[::3]) -> Tensor:
    """Poisson deviance of each cell's held-out molecules under the posterior mean, for T values of theta that all genes share, ``(T, b)``.

    Log theta has a spread of 1.2 among entries.

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
    prior = Prior(thetas, torch.ones_like(thetas), spread=STEPS * STEP / 3**0.5)
    # Where nothing was seen the posterior mean is a function of the prediction alone.
    knots = torch.linspace(-16, 12, 561, dtype=mu.dtype, device=mu.device)
    kept = mean_and_variance(mu.new_zeros(len(knots), len(thetas)), knots.exp()[:, None].expand(-1, len(thetas)), prior, mu.new_zeros(()))[
        0
    ]
    kept = kept / knots.exp()[:, None]
    logs = mu.clamp(min=1e-12).log()
    left = ((logs - knots[0]) / (knots[1] - knots[0])).clamp_(0, len(knots) - 1.001)
    place = left.long()
    left -= place
    seen = nonzero(counts)
    x, at = counts[seen], mu[seen].clamp(min=1e-12)
    values = _Counts.of(x)
    out = []
    for t, theta in enumerate(thetas.tolist()):
        mean = torch.lerp(kept[place, t], kept[place + 1, t], left).mul_(mu)
        nodes = [theta * math.exp(prior.spread * node) for node in NODES]
        fits = [values.rising(node) + x * (at / (at + node)).log() - node * (at / node).log1p() for node in nodes]
        mean[seen] = _mixture_mean(x, at, nodes, fits)
        out.append(deviance(mean.mul_(ratio[:, None]), target))
    return torch.stack(out)


def marginal_deviance(counts: Tensor, mu: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood of the training counts for each theta of the grid (and a spread of 1.2), up to a constant, ``(T, g)``.

    Each cell has its weight, ``(b,)``.
    Sharp for every gene, but too sure of a model that was fitted to the same counts.
    """
    seen = nonzero(counts)
    x, mean = counts[seen], mu[seen].clamp(min=1e-12)
    values = _Counts.of(x)
    fits: list[Tensor] = []
    out = []
    for place in range(-STEPS, len(GRID) + STEPS):
        theta = float(GRID[0]) * math.exp(place * STEP)
        fit = (mu / theta).log1p_().mul_(-theta)
        fit[seen] += values.rising(theta) + x * (mean / (mean + theta)).log()
        fits.append(fit)
        if len(fits) > 2 * STEPS:
            low, middle, high = (fits[i] for i in (0, STEPS, 2 * STEPS))
            total = torch.logaddexp(low, high).add_(math.log(OUTER))
            out.append(-(weight @ torch.logaddexp(total, middle + math.log(1 - 2 * OUTER))))
            del fits[0]
    return torch.stack(out)


@dataclass(frozen=True)
class _Counts:
    """Whole counts by their value: what is a function of the value is worked out once for each, however large it is."""

    values: Tensor
    place: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Counts:
        return cls(*torch.unique(x, return_inverse=True))

    def rising(self, theta: float) -> Tensor:
        """lgamma(x + theta) - lgamma(theta).

        In float32 the difference itself would be rounded, alike in every entry with the same count, and that adds up over the cells.
        """
        whole = self.values.double()
        return (torch.lgamma(whole + theta) - math.lgamma(theta)).to(self.values)[self.place]


def gene_thetas(marginal: Tensor, share: Tensor, *, n_bins: int = 20, spread: float = 1.0) -> Tensor:
    """Theta of every gene by the training counts, ``(g,)``.

    With a normal prior on log theta around the best common theta of the gene's abundance bin (``spread`` in nats): a gene with a few dozen
    molecules says little of its own theta.

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
    """Some entries of held-out data: what every prior is tried on.

    Attributes
    ----------
    counts, mu, gene
        Count, prediction and gene of each entry, ``(m,)``.
    rate, hits
        What its posterior mean and the log of it count for in the deviance, ``(m,)``.
    """

    counts: Tensor
    mu: Tensor
    gene: Tensor
    rate: Tensor
    hits: Tensor

    @classmethod
    def draw(cls, counts: Tensor, mu: Tensor, target: Tensor, ratio: Tensor, weight: Tensor, number: int) -> Sample:
        """Entries of every cell of ``(b, g)``: as many for the rates, by prediction and count, as for the held-out molecules.

        All entries, once for both, where the ``number`` asked for of each cell is enough for all genes: a sample would only add noise.
        """
        if number >= mu.shape[1]:
            gene = torch.arange(mu.shape[1], device=mu.device).expand(len(mu), -1)
            rate = (weight * ratio)[:, None].expand_as(mu)
            return cls(*(part.flatten() for part in (counts, mu.clamp(min=1e-12), gene, rate, weight[:, None] * target)))
        parts = []
        for weights, of_rates in ((mu + counts, True), (target, False)):
            total = weights.double().cumsum(1)
            # At equal distances, which is random enough and has less noise.
            places = (torch.arange(number, dtype=torch.float64, device=mu.device) + 0.5) / number
            gene = torch.searchsorted(total, total[:, -1:] * places).clamp(max=mu.shape[1] - 1)
            each = (weight[:, None] * total[:, -1:] / number).float().expand(-1, number)
            none = torch.zeros_like(each)
            rate = each * ratio[:, None] / weights.gather(1, gene).clamp(min=1e-12) if of_rates else none
            parts.append((counts.gather(1, gene), mu.gather(1, gene).clamp(min=1e-12), gene, rate, none if of_rates else each))
        return cls(*(torch.cat(part, dim=1).flatten() for part in zip(*parts, strict=True)))


def estimate(parts: Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]], n_cells: int, share: Tensor, reference: Tensor) -> Prior:
    """The prior by training counts and held-out molecules of some cells.

    How the genes differ in theta is found on the training counts. These give a theta that is too large, because the network has seen them;
    and the held-out molecules are too few to give each gene its own. So the latter decide four numbers that all genes share: a factor
    for all genes, how it changes with the abundance of the gene, the slope and the spread; each with a normal prior that gives way
    to some hundred molecules.

    Parameters
    ----------
    parts
        Counts of the training part, their prediction, held-out counts, all ``(b, g)``; held-out over training depth, and what each
        cell counts, ``(b,)``.
    n_cells
        Number of cells in all parts.
    share, reference
        Of each gene the share of all molecules, and the prediction at which it has its theta, ``(g,)``.
    """
    every, start, samples = math.ceil(n_cells / CELLS), 0, []
    marginal = torch.zeros(len(GRID), len(share), dtype=torch.float64, device=share.device)
    # Nothing depends on how the cells are parted.
    for counts, mu, target, ratio, weight in parts:
        some = slice(-start % every, None, every)
        marginal += marginal_deviance(counts[some], mu[some], weight[some])
        samples.append(Sample.draw(counts, mu, target, ratio, weight, math.ceil(SAMPLED / n_cells)))
        start += len(mu)
    sample = Sample(*(torch.cat([getattr(s, name) for s in samples]) for name in vars(samples[0])))
    log_theta = gene_thetas(marginal.float(), share).log()
    found = sample.hits.sum().clamp(min=1e-6)
    log_share = share.log()
    log_share = log_share - (log_share[sample.gene] * sample.hits).sum() / found
    own, about, target_of = log_theta[sample.gene], log_share[sample.gene], reference[sample.gene].log()

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        given = torch.tensor(values, dtype=torch.float32, device=own.device, requires_grad=True)
        factor, tilt, slope, log_spread = given
        centre = centre_of(own + factor + tilt * about, target_of, slope, sample.mu)
        thetas = [theta_at(centre, log_spread.exp(), node) for node in NODES]
        fits = [log_likelihood(sample.counts, sample.mu, theta) for theta in thetas]
        mean = _mixture_mean(sample.counts, sample.mu, thetas, fits).clamp(min=1e-12)
        deviance = sample.rate @ mean - sample.hits @ mean.log()
        total = deviance + ((given - given.new_tensor(CENTRES)) / given.new_tensor(WIDTHS)).square().sum() / 2
        total = total / found
        total.backward()
        return float(total.detach()), given.grad.double().cpu().numpy()  # type: ignore[union-attr]

    best = minimize(loss, CENTRES, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": 30, "gtol": FLAT}).x
    factor, tilt, slope, log_spread = best.tolist()
    theta = (log_theta + factor + tilt * log_share).clamp(*LOG_THETA).exp()
    return Prior(theta, reference, slope, math.exp(log_spread))
