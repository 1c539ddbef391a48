"""The last step of a generator: log shares, and their loss and gradient without a second copy of them.

Shapes: P gene blocks, m genes a block, b cells, k hidden values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import BlockLinear


@dataclass(frozen=True)
class Head:
    """Log shares that are not computed yet: hidden values ``(P, b, k)`` and the linear layer that follows."""

    hidden: Tensor
    layer: BlockLinear

    def log_rate(self, n_cells: int | None = None) -> Tensor:
        """Log shares of the first cells (None: of all), ``(P, b, m)``."""
        return self.layer(self.hidden[:, :n_cells])

    def rows(self, n_cells: int) -> Head:
        """The head of the first cells."""
        return Head(self.hidden[:, :n_cells], self.layer)


@dataclass(frozen=True)
class Computed:
    """Log shares of a generator whose last layer is not a plain linear layer, ``(P, b, m)``."""

    values: Tensor

    def log_rate(self, n_cells: int | None = None) -> Tensor:
        """Log shares of the first cells (None: of all), ``(P, b, m)``."""
        return self.values[:, :n_cells]

    def rows(self, n_cells: int) -> Computed:
        """The head of the first cells."""
        return Computed(self.values[:, :n_cells])


class BlockGenerator(nn.Module):
    """A generator of log shares ``(P, b, m)``."""

    def head(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Head | Computed:
        """What :meth:`forward` would compute, before the last layer if that is possible."""
        return Computed(self(inputs, labels, features))

    def penalty(self) -> Tensor:
        """Squared output weights summed within each block, ``(P,)``."""
        raise NotImplementedError


class PoissonHead(torch.autograd.Function):
    """Poisson deviance of a linear layer: ``sum exposure_i * exp(log_rate) - sum removed * log_rate``, ``log_rate = hidden W + bias``.

    The forward pass turns the log rates into their own gradient, in place, and takes from it the gradients of hidden values, weights
    and bias. So the largest array of a step exists once. The second result is the sum of the squared weights: its gradient is added in
    the same pass.

    Only a diverging network gives a log rate above 0, a share above 1. There the value is capped. The gradient is not, so it still
    points back.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, exposure, place, removed):  # type: ignore[no-untyped-def, override]
        log_rate = torch.baddbmm(bias, hidden, weight)
        flat = log_rate.view(-1)
        data = flat[place] @ removed
        gradient = log_rate.clamp_(max=0).exp_().mul_(exposure[:, None])
        total = gradient.sum()
        flat.index_add_(0, place, removed, alpha=-1)
        of_hidden = torch.bmm(gradient, weight.transpose(1, 2))
        of_weight = torch.bmm(hidden.transpose(1, 2), gradient)
        ctx.save_for_backward(of_hidden, of_weight, gradient.sum(1, keepdim=True), weight)
        squares = weight.view(-1)
        return total - data, squares @ squares

    @staticmethod
    def backward(ctx, grad, grad_squares):  # type: ignore[no-untyped-def, override]
        of_hidden, of_weight, of_bias, weight = ctx.saved_tensors
        of_weight = of_weight.mul_(grad).addcmul_(weight, 2 * grad_squares)
        return of_hidden.mul_(grad), of_weight, of_bias.mul_(grad), None, None, None
