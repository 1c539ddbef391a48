"""Neural matrix factorisation: a vector for every spot and every gene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import linear


class FactorGenerator(nn.Module):
    r"""Neural matrix factorisation: log share of a gene in a spot from a vector of each.

    .. math:: d_{ij} = u_i \cdot v_j + w \cdot \mathrm{gelu}(A u_i + B v_j + c)

    added to the gene's log share. A spot is known by its number, so only the spots of the training can be imputed.

    Parameters
    ----------
    start
        First vectors of the spots, ``(n, f)``; those of the genes start at 0.
    spot_penalty
        Weight of the squared vectors of the spots in the loss.
    """

    PAIRS = 8
    """Hidden units of the network on pairs."""
    PACE = 10.0
    """A spot is seen once an epoch, a gene in every minibatch: its vector moves by larger steps."""

    def __init__(
        self, genes: int, start: Tensor, log_share: Tensor, generator: torch.Generator, *, spot_penalty: float, depth_slope: float
    ) -> None:
        super().__init__()
        factors = start.shape[1]
        self.spot_weight, self.depth_slope = spot_penalty, depth_slope
        self.steps = nn.Parameter(start / self.PACE)
        self.of_genes = nn.Parameter(torch.zeros(genes, factors, dtype=torch.float32))
        self.bias = nn.Parameter(log_share.clone())
        self.left, self.right = linear(factors, self.PAIRS, generator), linear(factors, self.PAIRS, generator)
        self.last = nn.Parameter(torch.zeros(self.PAIRS, dtype=torch.float32))

    @property
    def of_spots(self) -> Tensor:
        """Vectors of the spots, ``(n, f)``."""
        return self.steps * self.PACE

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """Log share of every gene, ``(1, b, m)``. Only the depth is read from the inputs; the feature is the number of the spot."""
        # A spot may be there twice: the gradient of an index would be summed in any order.
        u, v = nn.functional.embedding(features[-1], self.steps) * self.PACE, self.of_genes
        d = u @ v.T
        # One unit after the other: all pairs of all units would be as many times the minibatch.
        for left, right, weight in zip(self.left(u).T, self.right(v).T, self.last, strict=True):
            d = d + weight * nn.functional.gelu(left[:, None] + right)
        return self.bias + d + self.depth_slope * inputs[..., -1:]

    def add_to_log_share(self, by: Tensor) -> None:
        """Add ``(1, 1, m)`` to the log share of every gene in all spots."""
        with torch.no_grad():
            self.bias.add_(by)

    def penalty(self) -> Tensor:
        """Squared vectors of the genes, ``(1,)``."""
        return (self.of_genes.square().sum() + self.last.square().sum())[None]

    def spot_penalty(self) -> Tensor | None:
        """Squared vectors of the spots, with their weight in the loss."""
        return self.spot_weight * self.of_spots.square().sum()
