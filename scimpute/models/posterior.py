"""The empirical-Bayes step: the cell's own count, used once more.

The rate of an entry is Gamma distributed around the network's prediction ``mu`` with a size ``theta`` of its gene, and the
count is Poisson around the rate; then the posterior of the rate is Gamma again, with

    mean = (x + theta) / (1 + theta / mu),      variance = mean / (1 + theta / mu).
"""

from __future__ import annotations

import torch
from torch import Tensor

GRID = torch.logspace(-1.5, 3.0, 16, dtype=torch.float32)
"""Sizes among which each gene's is chosen."""


def mean_and_variance(counts: Tensor, mu: Tensor, theta: Tensor, mu_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance of every entry; the spread of ``mu`` over repeats enters by the delta method.

    ``counts``, ``mu`` and ``mu_variance`` have shape ``(b, g)``, ``theta`` ``(g,)``.
    """
    odds = theta / mu.clamp(min=1e-12)
    mean = (counts + theta) / (1 + odds)
    slope = mean * odds / ((1 + odds) * mu.clamp(min=1e-12))
    return mean, mean / (1 + odds) + slope.square() * mu_variance


def heldout_deviance(counts: Tensor, mu: Tensor, target: Tensor, ratio: Tensor, sizes: Tensor = GRID) -> Tensor:
    """Poisson deviance of held-out molecules under the posterior mean, for each gene and each of T sizes, ``(T, g)``.

    Parameters
    ----------
    counts, mu
        Counts of the training part and their prediction, ``(b, g)``.
    target
        Held-out counts of the same cells, ``(b, g)``.
    ratio
        Held-out depth of a cell over its training depth, ``(b,)``.
    """
    hits, seen = _nonzero(target), _nonzero(counts)
    prior, own, exposure = mu[hits], counts[hits], ratio[hits[0]]
    drawn, weight = mu[seen], counts[seen] * ratio[seen[0]]
    out = []
    for theta in sizes.tolist():
        # posterior mean = (counts + theta) * mu / (mu + theta): a dense part and one on the non-zeros.
        total = theta * (ratio @ (mu / (mu + theta)))
        total.index_add_(0, seen[1], weight * drawn / (drawn + theta))
        rate = (own + theta) * prior / (prior + theta) * exposure
        out.append(total.index_add_(0, hits[1], target[hits] * rate.clamp(min=1e-12).log(), alpha=-1))
    return torch.stack(out)


def marginal_deviance(counts: Tensor, mu: Tensor) -> Tensor:
    """Negative log-likelihood of the training counts under the negative binomial, up to a constant, ``(T, g)``.

    Sharp for every gene, but too sure of a model that was fitted to the same counts.
    """
    seen = _nonzero(counts)
    x, mean = counts[seen], mu[seen].clamp(min=1e-12)
    # lgamma(x + theta) - lgamma(theta) for whole x: in float32 the difference itself would be rounded, alike in every
    # entry with the same count, and that adds up over the cells.
    number, steps = x.long(), torch.arange(int(counts.max()), dtype=torch.float64)
    out = []
    for theta in GRID.tolist():
        total = theta * (mu / theta).log1p_().sum(0)
        rising = torch.nn.functional.pad((theta + steps).log().cumsum(0), (1, 0))
        data = rising.to(x)[number] + x * (mean / (mean + theta)).log()
        out.append(total.index_add_(0, seen[1], data, alpha=-1))
    return torch.stack(out)


def _nonzero(values: Tensor) -> tuple[Tensor, ...]:
    return values.nonzero(as_tuple=True)


def choose_sizes(marginal: Tensor, heldout: Tensor, share: Tensor, *, n_bins: int = 20, spread: float = 1.0) -> Tensor:
    """Size of every gene, ``(g,)``: how genes differ from the training counts, how large they are from held-out molecules.

    The held-out molecules are too few to give each gene a size, and the training counts give sizes that are too large,
    because the network has seen them. So each gene's size is first found on the training counts, with a normal prior on log theta around
    the best common size of its abundance bin (``spread`` in nats: a gene with a few dozen molecules says little of its own size);
    then all sizes of a bin are multiplied by the factor that predicts the held-out molecules best.

    Parameters
    ----------
    marginal, heldout
        ``(T, g)`` of :func:`marginal_deviance` and :func:`heldout_deviance`.
    share
        Share of each gene of all molecules, ``(g,)``.
    """
    log_grid = GRID.log().to(marginal.device)
    order = share.argsort()
    bins = order.chunk(min(n_bins, len(order)))
    centre = torch.empty_like(share)
    for part in bins:
        centre[part] = log_grid[marginal[:, part].sum(1).argmin()]
    prior = (log_grid[:, None] - centre[None, :]).square() / (2 * spread**2)
    best = (marginal + prior).argmin(0)
    steps = torch.arange(-len(GRID), len(GRID) + 1, device=best.device)
    for part in bins:
        moved = (best[part] + steps[:, None]).clamp(0, len(GRID) - 1)
        best[part] = moved[heldout[:, part].gather(0, moved).sum(1).argmin()]
    return log_grid[best].exp()
