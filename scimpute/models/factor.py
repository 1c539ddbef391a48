"""Neural matrix factorisation: a vector for every spot and every gene."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .head import BlockGenerator
from .layers import linear


class FactorGenerator(BlockGenerator):
    r"""Neural matrix factorisation: log share of a gene in a spot from a vector of each.

    .. math:: d_{ij} = u_i \cdot v_j + w \cdot \mathrm{gelu}(A u_i + B v_j + c)

    The sum :math:`d_{ij}` is added to the log share of the gene. A spot is known by its number, so only the spots of the training can be
    imputed.

    Parameters
    ----------
    start
        Initial vectors of the spots, ``(n, f)``. Those of the genes start at 0.
    spot_weight
        Weight of the squared vectors of the spots in the loss.
    """

    PAIR_UNITS = 8
    """Hidden units of the network that reads a spot and a gene."""
    SPOT_PACE = 10.0
    """Factor on the steps of the spots. A spot is read once per epoch, a gene in every minibatch."""

    def __init__(
        self, genes: int, start: Tensor, log_share: Tensor, generator: torch.Generator, *, spot_weight: float, depth_slope: float
    ) -> None:
        super().__init__()
        factors = start.shape[1]
        self.spot_weight, self.depth_slope = spot_weight, depth_slope
        self.scaled_spots = nn.Parameter(start / self.SPOT_PACE)
        self.gene_factors = nn.Parameter(torch.zeros(genes, factors, dtype=torch.float32))
        self.bias = nn.Parameter(log_share.clone())
        self.left, self.right = linear(factors, self.PAIR_UNITS, generator), linear(factors, self.PAIR_UNITS, generator)
        self.last = nn.Parameter(torch.zeros(self.PAIR_UNITS, dtype=torch.float32))

    @property
    def spot_factors(self) -> Tensor:
        """Vectors of the spots, ``(n, f)``."""
        return self.scaled_spots * self.SPOT_PACE

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Tensor:
        """Log share of every gene, ``(1, b, m)``. The last feature is the number of the spot. Of the inputs only the depth is read."""
        # A spot may occur twice. `embedding` adds its gradients in a fixed order, plain indexing in any order.
        u, v = nn.functional.embedding(features[-1], self.scaled_spots) * self.SPOT_PACE, self.gene_factors
        d = u @ v.T
        # One unit after the other: all units at once would need PAIR_UNITS times the memory.
        for left, right, weight in zip(self.left(u).T, self.right(v).T, self.last, strict=True):
            d = d + weight * nn.functional.gelu(left[:, None] + right)
        return self.bias + d + self.depth_slope * inputs[..., -1:]

    def add_to_log_share(self, by: Tensor) -> None:
        """Add ``(1, 1, m)`` to the log share of every gene in all spots."""
        with torch.no_grad():
            self.bias.add_(by)

    def penalty(self) -> Tensor:
        """Squared vectors of the genes, ``(1,)``."""
        return (self.gene_factors.square().sum() + self.last.square().sum())[None]

    def spot_penalty(self) -> Tensor | None:
        """Squared vectors of the spots, with their weight in the loss."""
        return self.spot_weight * self.spot_factors.square().sum()
