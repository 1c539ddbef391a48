"""The random partition of the genes into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

EMPTY = -30.0
"""Log share of an empty place in a block."""


@dataclass(frozen=True)
class Partition:
    """Genes split at random into ``blocks`` of ``genes_per_block`` places. The last places may stay empty.

    Attributes
    ----------
    genes
        The imputed genes in the order of the result, ``(k,)``.
    place
        Place of every gene of the object, ``block * genes_per_block + offset``; -1 for a gene in no block, ``(g,)``.
    blocks, genes_per_block
        P and m. The source calls blocks "images".
    """

    genes: np.ndarray
    place: np.ndarray
    blocks: int
    genes_per_block: int

    @classmethod
    def draw(cls, genes: np.ndarray, n_vars: int, block_size: int, rng: np.random.Generator, *, square: bool = False) -> Partition:
        """Split ``genes`` at random into ``ceil(k / block_size)`` blocks of equal size.

        With ``square`` a block is a square. Its side is a multiple of 4, as the convolutional network needs.
        """
        blocks = math.ceil(len(genes) / block_size)
        size = math.ceil(len(genes) / blocks)
        if square:
            size = (4 * math.ceil(math.sqrt(size) / 4)) ** 2
        place = np.full(n_vars, -1, dtype=np.int64)
        place[genes] = rng.permutation(blocks * size)[: len(genes)] if square else rng.permutation(len(genes))
        return cls(genes, place, blocks, size)

    @property
    def complete(self) -> bool:
        """Whether every gene of the object has a place."""
        return len(self.genes) == len(self.place)

    def to_blocks(self, values: np.ndarray, empty: float) -> torch.Tensor:
        """Values of all genes ``(g,)`` in blocks, ``(P, 1, m)``, with ``empty`` in the empty places."""
        flat = np.full(self.blocks * self.genes_per_block, empty, dtype=np.float32)
        flat[self.place[self.genes]] = values[self.genes]
        return torch.from_numpy(flat).view(self.blocks, 1, self.genes_per_block)

    def to_genes(self, blocked: torch.Tensor) -> torch.Tensor:
        """Values of ``genes``, ``(b, k)``, from blocks ``(P, b, m)``."""
        flat = blocked.transpose(0, 1).reshape(blocked.shape[1], -1)
        return flat.index_select(1, torch.from_numpy(self.place[self.genes]).to(flat.device))
