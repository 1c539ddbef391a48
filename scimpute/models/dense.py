"""The dense generator and discriminator of every gene block.

Shapes: P gene blocks, m genes a block, b cells, c context values, L levels of a label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .head import BlockGenerator, Head
from .layers import BlockEmbedding, BlockLinear, HiddenLayer


class Generator(BlockGenerator):
    """The dense generator: ``[x', context] -> h -> [h, context, labels] -> h -> [h, context, labels] -> m``.

    Each label has its own embedding, which is joined to the hidden representation. The last layer starts at the null model: its
    weights are zero, and its bias is the log share of each gene.
    """

    def __init__(
        self,
        blocks: int,
        genes: int,
        context: int,
        levels: Sequence[int],
        log_share: Tensor,
        generator: torch.Generator,
        *,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.genes = genes
        self.embeddings = nn.ModuleList(BlockEmbedding(blocks, n, generator) for n in levels)
        side = context + sum(e.size for e in self.embeddings)  # type: ignore[misc]
        self.first = HiddenLayer(blocks, genes + context, width, generator)
        self.second = HiddenLayer(blocks, width + side, width, generator)
        self.output = BlockLinear(blocks, width + side, genes, generator, zero=True)
        with torch.no_grad():
            self.output.bias.copy_(log_share)

    def head(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Head:
        """All but the last layer. Features are ignored: they belong to the spatial methods."""
        side = [inputs[..., self.genes :]]
        side += [embedding(codes) for embedding, codes in zip(self.embeddings, labels, strict=True)]
        hidden = self.first(inputs)
        hidden = hidden + self.second(torch.cat([hidden, *side], dim=-1))
        return Head(torch.cat([hidden, *side], dim=-1), self.output)

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Tensor:
        """Log share of every gene, ``(P, b, m)``."""
        return self.head(inputs, labels, features).log_rate()

    def penalty(self) -> Tensor:
        """Squared output weights summed within each block, ``(P,)``."""
        return self.output.weight.square().sum(dim=(1, 2))

    def add_to_log_share(self, by: Tensor) -> None:
        """Add ``(P, 1, m)`` to the log share of every gene in all cells."""
        with torch.no_grad():
            self.output.bias.add_(by)


class Discriminator(nn.Module):
    """The dense discriminator, an autoencoder with a bottleneck of 16 that reads the labels, too: ``(P, b, m) -> (P, b, m)``."""

    def __init__(
        self, blocks: int, genes: int, levels: Sequence[int], generator: torch.Generator, *, width: int = 32, bottleneck: int = 16
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(BlockEmbedding(blocks, n, generator) for n in levels)
        side = sum(e.size for e in self.embeddings)  # type: ignore[misc]
        self.encode = HiddenLayer(blocks, genes, width, generator)
        self.code = BlockLinear(blocks, width + side, bottleneck, generator)
        self.decode = HiddenLayer(blocks, bottleneck, width, generator)
        self.output = BlockLinear(blocks, width, genes, generator)

    def forward(self, values: Tensor, labels: Sequence[Tensor]) -> Tensor:
        side = [embedding(codes) for embedding, codes in zip(self.embeddings, labels, strict=True)]
        code = self.code(torch.cat([self.encode(values), *side], dim=-1))
        return self.output(self.decode(code))
