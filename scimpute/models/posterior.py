"""The posterior step (empirical Bayes): it combines the prediction of the network with the cell's own count.

The rate of an entry is Gamma distributed around the network's prediction ``mu`` with an inverse dispersion ``theta``, and the count is
Poisson around the rate. For a known theta the posterior of the rate is Gamma again, with

    mean = (x + theta) / (1 + theta / mu),      variance = mean / (1 + theta / mu).

Theta is not known. Its logarithm is normal over the entries of a gene, and its centre follows the prediction:

    log theta_ij = log theta_j + slope * log(mu_ij / reference_j) + spread * z,      z ~ N(0, 1).

One theta for each gene (slope and spread 0) would give a single stray molecule too much weight. Real counts have more entries far from
their prediction than a Gamma has. And low predictions are relatively less certain. The nodes of a Gauss-Hermite quadrature replace the
normal, so the posterior is a mixture of Gammas. :mod:`.dispersion` fits the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_nodes, _weights = np.polynomial.hermite_e.hermegauss(5)
NODES, WEIGHTS = _nodes.tolist(), (_weights / _weights.sum()).tolist()
"""Nodes and weights of the quadrature of a standard normal."""
MAX_LOG_RATIO = 7.0
"""Theta follows the log ratio of prediction and reference up to here."""
LOG_THETA = (-7.0, 14.0)
"""Range of log theta."""


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

    def centre(self, mu: Tensor) -> Tensor:
        """Centre of log theta of entries ``(b, g)``."""
        return centre_of(self.theta.log(), self.reference.log(), self.slope, mu)

    def variance(self, mu: Tensor) -> Tensor:
        """Variance of the rates before their counts are seen, ``(b, g)``."""
        centre = self.centre(mu)
        return mu.square() * sum(w / theta_at(centre, self.spread, node) for node, w in self.points())

    def points(self) -> list[tuple[float, float]]:
        """Nodes and weights of the quadrature."""
        return list(zip(NODES, WEIGHTS, strict=True)) if self.spread else [(0.0, 1.0)]


def centre_of(log_theta: Tensor, log_reference: Tensor, slope: float | Tensor, mu: Tensor) -> Tensor:
    """Centre of log theta of entries with the prediction ``mu``."""
    return log_theta + slope * (mu.clamp(min=1e-12).log() - log_reference).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def theta_at(centre: Tensor, spread: float | Tensor, node: float) -> Tensor:
    """Theta at a node of the normal."""
    return (centre + spread * node).clamp(*LOG_THETA).exp()


def log_likelihood(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Log-likelihood of the negative binomial, without the part that does not depend on theta."""
    return torch.lgamma(x + theta) - torch.lgamma(theta) + x * (mu / (mu + theta)).log() - theta * (mu / theta).log1p()


def mean_and_variance(counts: Tensor, mu: Tensor, prior: Prior, mu_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance of every entry, ``(b, g)`` each.

    The variance of ``mu`` over repeats, ``mu_variance``, enters by the delta method. All arguments but the prior have shape ``(b, g)``.
    """
    mu = mu.clamp(min=1e-12)
    centre, points = prior.centre(mu), prior.points()
    mean, variance, slope = _moments(mu.new_zeros(()), mu, [theta_at(centre, prior.spread, node) for node, _ in points], points)
    positive = nonzero(counts)
    if len(positive[0]):
        # In float64: the logs of two large gamma functions are subtracted.
        x, mu_x, centre_x = counts[positive].double(), mu[positive].double(), centre[positive].double()
        moments = _moments(x, mu_x, [theta_at(centre_x, prior.spread, node) for node, _ in points], points)
        for whole, part in zip((mean, variance, slope), moments, strict=True):
            whole[positive] = part.to(whole.dtype)
    return mean, variance + slope.square() * mu_variance


def _moments(x: Tensor, mu: Tensor, thetas: Sequence[Tensor], points: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance, and derivative of the mean in ``mu``, of mixtures of Gammas."""
    logs = []
    for theta, (_, weight) in zip(thetas, points, strict=True):
        # For a count of 0 the two gamma functions cancel.
        fit = log_likelihood(x, mu, theta) if x.ndim else -theta * (mu / theta).log1p()
        logs.append(fit + math.log(weight))
    top = logs[0]
    for other in logs[1:]:
        top = torch.maximum(top, other)
    total, mean, second, slope = (torch.zeros_like(mu) for _ in range(4))
    for theta, fit in zip(thetas, logs, strict=True):
        share, odds = (fit - top).exp_(), theta / mu
        centre = (x + theta) / (1 + odds)
        total += share
        mean += share * centre
        second += share * (centre.square() + centre / (1 + odds))
        slope += share * centre * odds / ((1 + odds) * mu)
    mean /= total
    return mean, (second / total - mean.square()).clamp_(min=0), slope / total


def nonzero(values: Tensor) -> tuple[Tensor, ...]:
    """Positions of the non-zero entries."""
    return values.nonzero(as_tuple=True)
