"""Likelihoods: what is hidden from a network, and what it loses: molecules, or whole entries."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .batch import Batch


class _PoissonDeviance(torch.autograd.Function):
    """``sum exposure_i * exp(log_rate) - sum removed * log_rate`` with its gradient made in the same pass.

    Above a log rate of 0 (a share of 1, which only a diverging network gives) the value is capped and the gradient is not,
    so that it still points back.
    """

    @staticmethod
    def forward(ctx, log_rate: Tensor, exposure: Tensor, place: Tensor, removed: Tensor) -> Tensor:  # type: ignore[override]
        log_rate = log_rate.contiguous()
        data = log_rate.view(-1)[place] @ removed
        gradient = log_rate.clamp(max=0).exp_().mul_(exposure[:, None])
        total = gradient.sum()
        gradient.view(-1).index_add_(0, place, removed, alpha=-1)
        ctx.save_for_backward(gradient)
        return total - data

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad), None, None, None


def poisson_deviance(log_rate: Tensor, exposure: Tensor, place: Tensor, removed: Tensor) -> Tensor:
    """Negative Poisson log-likelihood of the removed molecules, up to a constant.

    The first term needs every entry, the second only those that lost molecules; working on these alone is what
    makes the loss cheap. ``log_rate`` has shape ``(P, b, m)``; its gradient is formed in the forward pass.
    """
    return _PoissonDeviance.apply(log_rate, exposure, place, removed)


def squared_error(log_rate: Tensor, exposure: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """Squared differences of the logs of predicted and measured counts, summed over the hidden entries.

    Takes what :func:`poisson_deviance` takes; ``exposure`` is the library size, ``values`` the hidden counts.
    """
    _, spots, genes = log_rate.shape
    spot = place // genes % spots
    return (log_rate.reshape(-1)[place] + exposure[spot].log() - values.log()).square().sum()


class Likelihood(Protocol):
    """What is hidden from a network, and what it loses where it predicts that badly."""

    name: str

    def loss(self, log_rate: Tensor, batch: Batch) -> Tensor:
        """Loss of a minibatch, summed over its targets; ``log_rate`` is ``(P, b, m)``."""
        ...

    def n_targets(self, batch: Batch) -> Tensor:
        """Number of hidden molecules, or entries."""
        ...

    def scale(self, batch: Batch) -> Tensor:
        """What the loss is divided by in the training, so that its size does not depend on the depth of the data."""
        ...


class Poisson:
    """Molecules are hidden (count splitting). A zero is an observation like any other."""

    name = "poisson"

    def loss(self, log_rate: Tensor, batch: Batch) -> Tensor:
        return poisson_deviance(log_rate, batch.exposure, batch.place, batch.removed)

    def n_targets(self, batch: Batch) -> Tensor:
        return batch.removed.sum()

    def scale(self, batch: Batch) -> Tensor:
        # The exposure also has the molecules of genes that are not imputed.
        return batch.exposure.sum()


class HiddenEntries:
    """Whole non-zero entries are hidden, and zeros count as missing. The loss is the squared error of the logs."""

    name = "squared"

    def loss(self, log_rate: Tensor, batch: Batch) -> Tensor:
        return squared_error(log_rate, batch.exposure, batch.place, batch.removed)

    def n_targets(self, batch: Batch) -> Tensor:
        return batch.removed.new_tensor(float(len(batch.removed)))

    def scale(self, batch: Batch) -> Tensor:
        return self.n_targets(batch)
