"""A mixture of Gammas in place of a Gamma whose inverse dispersion theta is uncertain: five nodes of a Gauss-Hermite quadrature.

Arrays of all nodes have shape ``(nodes, m)``. Entries are in falling order of their counts, so entries with more than k molecules are the
first ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_nodes, _weights = np.polynomial.hermite_e.hermegauss(5)
NODES, WEIGHTS = _nodes.tolist(), (_weights / _weights.sum()).tolist()
"""Nodes and weights of the quadrature of a standard normal."""
LOG_THETA = (-7.0, 14.0)
"""Range of log theta."""
SMALL_COUNT = 11
"""Up to here the ratio of two gamma functions is a product of few factors. In float32 it does not overflow within the range of theta."""
LOG_SINGLE = 5.5
"""Up to this log of the prediction, and for small counts, float32 is precise to 1e-4."""


def mixture(x: Tensor, mu: Tensor, log_theta: Tensor, weights: Sequence[float], n_moments: int) -> list[Tensor]:
    """Posterior of the rate: the first of mean / mu, variance / mu^2 and slope, ``(m,)`` each.

    Parameters
    ----------
    x, mu
        Counts and their predictions, ``(m,)``.
    log_theta
        ``(nodes, m)``, one row for each weight.

    Notes
    -----
    The slope is the derivative of the mean in mu at the theta of each node. What the prediction says about theta is left out.
    """
    theta = log_theta.exp()
    share = misfit(x, mu, theta, log_theta)
    share = torch.sub(share.amin(0), share, out=share).exp_().mul_(share.new_tensor(weights)[:, None])
    total = share.sum(0)
    whole, ratio = theta + mu, theta + x
    ratio /= whole
    product = share * ratio
    mean = product.sum(0).div_(total)
    moments = [mean]
    if n_moments > 1:
        # The variance within a node, and between nodes.
        within = product.div_(whole).sum(0)
        moments.append(within.add_(ratio.sub_(mean).square_().mul_(share).sum(0)).div_(total))
    if n_moments > 2:
        moments.append(product.mul_(theta).sum(0).div_(total))
    return moments


def misfit(x: Tensor, mu: Tensor, theta: Tensor, log_theta: Tensor) -> Tensor:
    """Negative log-likelihood of the negative binomial, up to a constant of each entry, ``(nodes, m)``."""
    large = int((x > SMALL_COUNT).sum())
    if not large:
        return _of_small_counts(x, mu, theta)
    few, many = slice(large, None), slice(large)
    parts = [_of_large_counts(x[many], mu[many], theta[:, many], log_theta[:, many])]
    if large < len(x):
        parts.append(_of_small_counts(x[few], mu[few], theta[:, few]))
    return torch.cat(parts, dim=1)


def _of_small_counts(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    # gamma(x + theta) / gamma(theta) = theta (theta + 1) ... (theta + x - 1), and theta^x goes into the other term.
    result = (mu / theta).log1p_()
    product: Tensor | None = None
    for k in range(1, int(x[0]) if len(x) else 0):
        first = int((x > k).sum())
        factor = (k / theta[:, :first]).add_(1)
        if product is None:
            product = factor
        else:
            product[:, :first] *= factor
    result *= theta + x
    if product is not None:
        result[:, : product.shape[1]] -= product.log_()
    return result


def _of_large_counts(x: Tensor, mu: Tensor, theta: Tensor, log_theta: Tensor) -> Tensor:
    """By Stirling's formula for gamma(x + theta). Differences of huge logs are left out, so counts of any size are fine."""
    total = theta + x
    fit = ((x - mu) / (mu + theta)).log1p_().mul_(total)
    fit += total.log().mul_(-0.5) + 1 / (12 * total) + (log_theta - 1) * theta
    return torch.lgamma(theta).sub_(fit)
