"""The image-shaped generator and discriminator of the source (scIGANs, Xu 2020, with BEGAN, Berthelot 2017).

Shapes: P gene blocks, m = side * side genes a block, b cells, c context values. A block is an image of side x side
pixels, one per gene. All P images of a cell go through one grouped convolution (``groups=P``), each with its own weights.

The partition is random, so neighbouring pixels are unrelated genes. The source enlarges small maps by repetition, which gives 16 genes
nearly the same value. Here a linear layer makes as many numbers at full size: 32 maps of side/4 are 2 maps of side. So every gene keeps
its own weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import BlockGenerator
from .layers import BlockEmbedding, BlockLinear

LABEL_MAPS = 8
CODE_MAPS = 16
BOTTLENECK = 16


def to_images(values: Tensor, maps: int) -> Tensor:
    """``(P, b, maps * s * s) -> (b, P * maps, s, s)``."""
    blocks, cells, size = values.shape
    side = math.isqrt(size // maps)
    return values.transpose(0, 1).reshape(cells, blocks * maps, side, side)


def to_blocks(images: Tensor, blocks: int) -> Tensor:
    """``(b, P * maps, s, s) -> (P, b, maps * s * s)``, contiguous, because the likelihood indexes the flat view."""
    return images.reshape(len(images), blocks, -1).transpose(0, 1).contiguous()


def join(parts: Sequence[Tensor], blocks: int) -> Tensor:
    """Join the maps of several ``(b, P * maps_i, s, s)`` block by block: ``(b, P * sum(maps_i), s, s)``."""
    return torch.cat([part.unflatten(1, (blocks, -1)) for part in parts], dim=2).flatten(1, 2)


def side_of(genes: int) -> int:
    """Side of the square of ``genes`` pixels."""
    side = math.isqrt(genes)
    if side * side != genes or side == 0 or side % 4:
        raise ValueError(
            f"genes per block must be the square of a multiple of 4 for a convolutional network, such as 256, 400 or 576; got {genes}"
        )
    return side


class BlockConv(nn.Module):
    """P independent 3x3 convolutions: ``(b, P * n_in, s, s) -> (b, P * n_out, s, s)``.

    Weights have shape ``(P * n_out, n_in, 3, 3)``. ``zero=True`` starts from the zero map. Use ``bias=False`` if a
    BatchNorm or a bias of each pixel follows.
    """

    def __init__(self, blocks: int, n_in: int, n_out: int, generator: torch.Generator, *, zero: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.blocks = blocks
        weight = torch.zeros(blocks * n_out, n_in, 3, 3, dtype=torch.float32)
        if not zero:
            bound = 1 / math.sqrt(9 * n_in)
            weight.uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(blocks * n_out, dtype=torch.float32)) if bias else None

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, self.bias, padding=1, groups=self.blocks)


class NormedConv(nn.Sequential):
    """BlockConv, BatchNorm, ReLU. BatchNorm treats each map alone, so the blocks stay independent."""

    def __init__(self, blocks: int, n_in: int, n_out: int, generator: torch.Generator) -> None:
        super().__init__(
            BlockConv(blocks, n_in, n_out, generator),
            nn.BatchNorm2d(blocks * n_out, dtype=torch.float32),
            nn.ReLU(inplace=True),
        )


class LabelMaps(nn.Module):
    """A label as maps, ``(b,) -> (b, P * 8, s, s)``: embedding, linear layer to an image, 3x3 convolution."""

    def __init__(self, blocks: int, genes: int, n_levels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = BlockEmbedding(blocks, n_levels, generator)
        self.linear = BlockLinear(blocks, self.embedding.size, genes, generator)
        self.conv = NormedConv(blocks, 1, LABEL_MAPS, generator)

    def forward(self, codes: Tensor) -> Tensor:
        return self.conv(to_images(self.linear(self.embedding(codes)), 1))


class ConvGenerator(BlockGenerator):
    """``[x', context] -> linear -> images, BN, joined by x' itself -> width maps; + 8 maps a label -> width maps -> m``.

    The linear layer gives ``width // 16`` images (at least one), as many numbers as ``width`` maps of side/4. With 32 maps these are
    2 m (m + c) weights per block. All 32 maps at full size would have 32 m (m + c), tens of millions for a block of 1,000 genes. The
    block itself is one more image, so a gene's own value reaches its pixel.

    The start is the null model: the last convolution is zero, and each pixel has a bias, the log share of its gene.

    Parameters
    ----------
    blocks, genes, context
        P, m (the square of a multiple of 4) and c.
    levels
        Number of levels of each label.
    log_share
        ``(P, 1, m)``, the log share of every gene.
    generator
        Draws the random start.
    width
        Number of maps.
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
        width: int = 32,
    ) -> None:
        super().__init__()
        side_of(genes)
        self.blocks, self.genes = blocks, genes
        self.images = max(1, width // 16)
        self.linear = BlockLinear(blocks, genes + context, self.images * genes, generator)
        self.norm = nn.BatchNorm2d(blocks * self.images, dtype=torch.float32)
        self.cell = NormedConv(blocks, self.images + 1, width, generator)
        self.labels = nn.ModuleList(LabelMaps(blocks, genes, n, generator) for n in levels)
        self.mix = NormedConv(blocks, width + LABEL_MAPS * len(levels), width, generator)
        self.output = BlockConv(blocks, width, 1, generator, zero=True)
        self.bias = nn.Parameter(log_share.detach().to(torch.float32, copy=True))

    def forward(self, inputs: Tensor, labels: Sequence[Tensor], features: Sequence[Tensor] = ()) -> Tensor:
        """Log share of every gene, ``(P, b, m)``, from ``(P, b, m + c)`` and level codes ``(b,)`` of each label."""
        cell = self.norm(to_images(self.linear(inputs), self.images))
        parts = [self.cell(join([cell, to_images(inputs[..., : self.genes], 1)], self.blocks))]
        parts += [label(codes) for label, codes in zip(self.labels, labels, strict=True)]
        change = self.output(self.mix(join(parts, self.blocks)))
        return to_blocks(change, self.blocks) + self.bias

    def penalty(self) -> Tensor:
        """Squared weights of the last convolution summed within each block, ``(P,)``."""
        return self.output.weight.square().view(self.blocks, -1).sum(1)

    def add_to_log_share(self, by: Tensor) -> None:
        """Add ``(P, 1, m)`` to the log share of every gene in all cells."""
        with torch.no_grad():
            self.bias.add_(by)


class ConvDiscriminator(nn.Module):
    """An autoencoder with a bottleneck of 16, conditioned on the labels: ``(P, b, m) -> (P, b, m)``.

    Convolution and pooling, twice, give 16 maps of side/4. Labels join, and the bottleneck follows. A linear layer leads back to an
    image, and convolutions to one map. The activation is ELU as in BEGAN. There is no BatchNorm: it would mix real and imputed cells,
    and a batch may have a single cell. Each pixel has a bias, so the reconstruction of a gene starts from its mean.
    """

    def __init__(self, blocks: int, genes: int, levels: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        side_of(genes)
        self.blocks = blocks
        self.embeddings = nn.ModuleList(BlockEmbedding(blocks, n, generator) for n in levels)
        condition = sum(e.size for e in self.embeddings)  # type: ignore[misc]
        self.first = BlockConv(blocks, 1, CODE_MAPS, generator, bias=True)
        self.second = BlockConv(blocks, CODE_MAPS, CODE_MAPS, generator, bias=True)
        # 16 maps of side/4 are m numbers.
        self.code = BlockLinear(blocks, genes + condition, BOTTLENECK, generator)
        self.back = BlockLinear(blocks, BOTTLENECK, genes, generator)
        self.third = BlockConv(blocks, 1, CODE_MAPS, generator, bias=True)
        self.output = BlockConv(blocks, CODE_MAPS, 1, generator)
        self.bias = nn.Parameter(torch.zeros(blocks, 1, genes, dtype=torch.float32))

    def forward(self, values: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """Reconstruction of ``(P, b, m)``, from level codes ``(b,)`` of each label."""
        images = F.avg_pool2d(F.elu(self.first(to_images(values, 1))), 2)
        images = F.avg_pool2d(F.elu(self.second(images)), 2)
        condition = [embedding(codes) for embedding, codes in zip(self.embeddings, labels, strict=True)]
        code = F.elu(self.code(torch.cat([to_blocks(images, self.blocks), *condition], dim=-1)))
        images = F.elu(self.third(to_images(self.back(code), 1)))
        return to_blocks(self.output(images), self.blocks) + self.bias
