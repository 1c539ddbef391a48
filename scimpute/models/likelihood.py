"""Likelihoods: a network predicts hidden molecules (Poisson) or hidden entries (squared error of logs)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .batch import Batch
from .head import BlockGenerator, Computed, Head, PoissonHead


class _PoissonDeviance(torch.autograd.Function):
    """``sum exposure_i * exp(log_rate) - sum removed * log_rate``; the forward pass also makes the gradient.

    Only a diverging network gives a log rate above 0, a share above 1. There the value is capped. The gradient is not, so it still
    points back.
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

    The first term needs every entry. The second needs only the entries that lost molecules, which makes the loss cheap.
    ``log_rate`` has shape ``(P, b, m)``.
    """
    return _PoissonDeviance.apply(log_rate, exposure, place, removed)


def squared_error(log_rate: Tensor, exposure: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """Squared differences of the logs of predicted and measured counts, summed over the hidden entries.

    The arguments are those of :func:`poisson_deviance`: ``exposure`` is the library size, ``values`` are the hidden counts.
    """
    _, spots, genes = log_rate.shape
    spot = place // genes % spots
    return (log_rate.reshape(-1)[place] + exposure[spot].log() - values.log()).square().sum()


class Likelihood(ABC):
    """The loss of a network on hidden molecules or entries.

    Attributes
    ----------
    name
        Its name among the arguments of the public functions.
    zeros_missing
        Whether a zero is a missing value. Otherwise it is an observation like any other.
    """

    name: ClassVar[str]
    zeros_missing: ClassVar[bool]

    @abstractmethod
    def loss(self, log_rate: Tensor, batch: Batch) -> Tensor:
        """Loss of a minibatch, summed over its targets. ``log_rate`` has shape ``(P, b, m)``."""

    @abstractmethod
    def n_targets(self, batch: Batch) -> Tensor:
        """Number of hidden molecules, or entries."""

    @abstractmethod
    def scale(self, batch: Batch) -> Tensor:
        """Divisor of the loss in the training. It makes the loss independent of the depth of the data."""

    def objective(self, generator: BlockGenerator, head: Head | Computed, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a minibatch, and the sum of the squared output weights of the generator."""
        return self.loss(head.log_rate(), batch), generator.penalty().sum()


class Poisson(Likelihood):
    """Molecules are hidden (count splitting)."""

    name = "poisson"
    zeros_missing = False

    def loss(self, log_rate: Tensor, batch: Batch) -> Tensor:
        return poisson_deviance(log_rate, batch.exposure, batch.place, batch.removed)

    def n_targets(self, batch: Batch) -> Tensor:
        return batch.removed.sum()

    def scale(self, batch: Batch) -> Tensor:
        # The exposure includes the molecules of genes that are not imputed.
        return batch.exposure.sum()

    def objective(self, generator: BlockGenerator, head: Head | Computed, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(head, Computed):
            return super().objective(generator, head, batch)
        layer = head.layer
        return PoissonHead.apply(head.hidden, layer.weight, layer.bias, batch.exposure, batch.place, batch.removed)


class HiddenEntries(Likelihood):
    """Whole non-zero entries are hidden. The loss is the squared error of the logs."""

    name = "squared"
    zeros_missing = True

    def loss(self, log_rate: Tensor, batch: Batch) -> Tensor:
        return squared_error(log_rate, batch.exposure, batch.place, batch.removed)

    def n_targets(self, batch: Batch) -> Tensor:
        return batch.removed.new_tensor(float(len(batch.removed)))

    def scale(self, batch: Batch) -> Tensor:
        return self.n_targets(batch)


LIKELIHOODS: dict[str, Likelihood] = {likelihood.name: likelihood for likelihood in (Poisson(), HiddenEntries())}
