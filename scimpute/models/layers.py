"""Layers that hold one small network per gene block. One batched product runs all of them.

Shapes: P blocks, b cells, m genes a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class BlockLinear(nn.Module):
    """P independent linear maps: ``(P, b, n_in) -> (P, b, n_out)``.

    Weights have shape ``(P, n_in, n_out)``. ``zero=True`` starts from the zero map.
    """

    def __init__(self, blocks: int, n_in: int, n_out: int, generator: torch.Generator, *, zero: bool = False) -> None:
        super().__init__()
        weight = torch.zeros(blocks, n_in, n_out, dtype=torch.float32)
        if not zero:
            bound = 1 / math.sqrt(n_in)
            weight.uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(blocks, 1, n_out, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class BlockEmbedding(nn.Module):
    """P independent tables of a categorical label: codes ``(b,) -> (P, b, size)``."""

    def __init__(self, blocks: int, n_levels: int, generator: torch.Generator, *, largest: int = 16) -> None:
        super().__init__()
        size = min(n_levels, largest)
        # A start near the one-hot code keeps few levels far apart.
        table = torch.eye(n_levels, size, dtype=torch.float32).repeat(blocks, 1, 1)
        table += 0.1 * torch.randn(table.shape, generator=generator, dtype=torch.float32)
        self.table = nn.Parameter(table)

    @property
    def size(self) -> int:
        return self.table.shape[2]

    def forward(self, codes: Tensor) -> Tensor:
        return self.table.index_select(1, codes)


class HiddenLayer(nn.Module):
    """BlockLinear, LayerNorm, GELU."""

    def __init__(self, blocks: int, n_in: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = BlockLinear(blocks, n_in, width, generator)
        self.norm = nn.LayerNorm(width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.linear(x)))


def start_uniform(layer: nn.Linear | nn.Conv2d, generator: torch.Generator, *, bias: bool = False) -> None:
    """Draw the weights of a layer from a given generator. With ``bias`` draw its biases, too; otherwise they start at 0."""
    bound = layer.weight[0].numel() ** -0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        assert layer.bias is not None
        if bias:
            layer.bias.uniform_(-bound, bound, generator=generator)
        else:
            layer.bias.zero_()


def linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = False) -> nn.Linear:
    """A linear layer with weights from a given generator. (torch itself would draw them from the global one.)"""
    layer = skip_init(nn.Linear, n_in, n_out, dtype=torch.float32)
    start_uniform(layer, generator, bias=bias)
    return layer
